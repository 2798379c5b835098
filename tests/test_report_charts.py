"""Charts: well-formed, named, nothing outside the drawing, no text over another, and the picture is of the numbers."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import matplotlib
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from e2wm_jax.report import Plan, Point, Stop, Thing, bar_chart, heat_map, line_chart, scatter_chart, walk_map
from e2wm_jax.report.figure import WIDTH
from e2wm_jax.report.numbers import number

LOSSES = {"LoRA": [(step, 3 / step) for step in range(1, 60)], "EWC-LoRA": [(step, 2 / step) for step in range(1, 60)]}
anything = st.floats(width=64)
word = st.text("abcdefgh _", min_size=1, max_size=24)
# Without the phase that shrinks: each of its many steps would draw.
short = settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
AXES = {"x_label": "steps", "y_label": "nats"}


def corners(path: ET.Element) -> list[tuple[float, float]]:
    """The corners of a path, in the order drawn."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] ?(-?[\d.]+)[ ,](-?[\d.]+)", path.get("d"))]


def place(node: ET.Element) -> tuple[float, float]:
    """Where a text or a marker stands."""
    if moved := re.match(r"translate\(([\d.-]+) ([\d.-]+)\)", node.get("transform", "")):
        return float(moved[1]), float(moved[2])
    return float(node.get("x")), float(node.get("y"))


def positions(svg: ET.Element) -> Iterator[tuple[float, float]]:
    for node in svg:
        if node.tag in ("text", "use"):
            yield place(node)
        elif node.tag == "path":
            yield from corners(node)
        elif node.tag != "defs":
            yield from positions(node)


def text_boxes(svg: ET.Element) -> list[tuple[float, float, float, float, str]]:
    """What each text covers, set as large as on a phone."""
    boxes = []
    for node in svg.iter("text"):
        (x, y), wide = place(node), 8.0 * len(node.text)
        before = {"middle": 0.5, "end": 1.0}.get(node.get("style").partition("text-anchor: ")[2].partition(";")[0], 0.0)
        if "rotate(-90" in node.get("transform", ""):
            boxes.append((x - 11, y - wide, x, y, node.text))
        else:
            boxes.append((x - before * wide, y - 11, x + (1 - before) * wide, y, node.text))
    return boxes


def check(chart: str, *, apart: bool = True) -> ET.Element:
    """The drawing of a chart, found well-formed, named, described, inside of its view box, its texts apart."""
    svg = ET.fromstring(chart).find("svg")
    assert [child.tag for child in svg[:2]] == ["title", "desc"]
    assert svg.get("role") == "img"
    _, _, width, height = map(float, svg.get("viewBox").split())
    assert width == WIDTH
    for x, y in positions(svg):
        assert -0.6 <= x <= width + 0.6
        assert -0.6 <= y <= height + 0.6
    for a, b in itertools.combinations(text_boxes(svg), 2) if apart else ():
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    return svg


def of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [node for node in svg.iter() if name in node.get("class", "").split()]


def texts(svg: ET.Element) -> list[str]:
    return [node.text for node in svg.iter("text")]


def said(svg: ET.Element, name: str) -> list[str]:
    return [text for node in of_class(svg, name) for text in texts(node)]


def color(node: ET.Element) -> str:
    return re.search(r"var\(--(c\d)\)", ET.tostring(node, encoding="unicode"))[1]


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1234, "1,234"), (0.05, "0.05"), (-2.5, "-2.5"), (1e-7, "1x10⁻⁷"), (3.21e9, "3.21x10⁹"),
        (999_999.9, "1x10⁶"), (0.99999, "1"), (100, "100"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_write_them(value, text):
    assert number(value) == text.replace("-", "\u2212").replace("x", "\u00d7")


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_chart_names_its_series_and_axes():
    svg = check(line_chart(LOSSES, title="Losses", **AXES))
    assert svg.find("title").text == "Losses"
    assert "LoRA: from 3 at 1 to 0.05085 at 59." in svg.find("desc").text
    assert {"LoRA", "EWC-LoRA", "steps", "nats"} <= set(texts(svg))
    lines = of_class(svg, "line")
    assert [color(line) for line in lines] == ["c0", "c1"]
    assert ["dasharray" in ET.tostring(line, encoding="unicode") for line in lines] == [False, True]


def test_the_same_numbers_give_the_same_bytes_whatever_the_style_of_the_user():
    chart = line_chart(LOSSES, title="t", **AXES)
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.grid": True, "font.size": 30, "svg.fonttype": "path"}):
        assert line_chart(LOSSES, title="t", **AXES) == chart


def test_a_larger_value_stands_higher_and_a_later_one_further_right():
    svg = check(line_chart({"a": [(0, 1.0), (1, 2.0), (2, 4.0)]}, title="t", **AXES))
    (x0, y0), (x1, y1), (x2, y2) = corners(of_class(svg, "line")[0].find("path"))
    assert x0 < x1 < x2
    assert y0 - y1 == pytest.approx((y1 - y2) / 2, abs=0.2)


def smoothed(points):
    """The places of a smoothed chart's light line, if there is one, and of its heavy one; and its texts."""
    svg = check(line_chart({"a": points}, title="t", x_label="step", y_label="y", smooth=True))
    light, heavy = ([corners(node.find("path")) for node in of_class(svg, name)] for name in ("raw", "line"))
    return light[0] if light else None, heavy[0], texts(svg)


def test_smoothing_is_the_mean_over_a_tenth_of_the_points():
    values = [float(step % 3 == 0) for step in range(100)]
    light, heavy, shown = smoothed(list(enumerate(values)))
    assert "bold: mean of up to 9 points" in shown
    down, up = light[1][1], light[0][1]
    at = {round(99 * (x - heavy[0][0]) / (heavy[-1][0] - heavy[0][0])): (y - down) / (up - down) for x, y in heavy}
    for index in set(at) & set(range(4, 96)):
        assert at[index] == pytest.approx(sum(values[index - 4 : index + 5]) / 9, abs=0.002)
    assert at[1] == pytest.approx(1 / 3, abs=0.002), "of itself and its two neighbors"
    assert (at[0], at[99]) == (pytest.approx(1), pytest.approx(1)), "it begins and ends where the data do"


def test_few_points_are_not_smoothed():
    light, heavy, shown = smoothed([(step, step**2) for step in range(29)])
    assert light is None
    assert not any(text.startswith("bold") for text in shown)
    bottom, top = heavy[0][1], heavy[-1][1]
    assert (bottom - heavy[14][1]) / (bottom - top) == pytest.approx(14**2 / 28**2, abs=0.002)
    assert "bold: mean of up to 3 points" in smoothed([(step, 1.0) for step in range(30)])[2]


def test_what_counts_has_whole_ticks():
    assert {"1", "2"} <= set(smoothed([(1, 1.0), (2, 2.0)])[2]) - {"1.5"} | {"2"}
    svg = check(line_chart({"a": [(1, 0.25), (2, 0.3)]}, title="t", **AXES))
    assert "1.5" not in texts(svg)
    svg = check(bar_chart({"Walk": {"steps": 2}, "Grab": {"steps": 1}}, title="t", x_label="steps"))
    assert sorted(text for text in texts(svg) if re.fullmatch(r"[\d.]+", text)) == ["0", "1", "1", "2", "2"]
    assert "1.50" in texts(check(bar_chart({"a": {"b": 1.5}, "c": {"b": 1}}, title="t", x_label="x")))


def test_a_value_that_is_not_finite_leaves_a_gap_and_a_point_alone_its_marker():
    points = [(n, 1.0 + n % 2) for n in range(20)] + [(20, math.nan), (21, 2.0), (22, math.inf), (23, 1.0), (24, 2.0)]
    svg = check(line_chart({"a": points}, title="t", **AXES))
    line = of_class(svg, "line")[0]
    assert line.find("path").get("d").count("M") == 3
    assert len(list(line.iter("use"))) == 2, "the point between the gaps, and the last one"


def test_a_long_run_is_thinned_without_losing_its_spike():
    points = [(step, 100.0 if step == 33_333 else 1.0 + step % 2) for step in range(50_000)]
    svg = check(line_chart({"a": points}, title="t", **AXES))
    heights = [y for _, y in corners(of_class(svg, "line")[0].find("path"))]
    assert len(heights) <= 4000
    assert max(heights) - min(heights) > 150


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(1, math.nan)]}, {"a": [(math.inf, 1)]}])
def test_nothing_to_draw_is_said(series):
    assert texts(check(line_chart(series, title="t", **AXES))) == ["nothing to draw"]


@short
@given(
    st.dictionaries(st.text(max_size=80), st.lists(st.tuples(anything, anything), max_size=20), max_size=8),
    st.booleans(),
)
@example({"": [(0.0, 1e250), (0.0, 1e-250)]}, True)
def test_line_charts_of_any_numbers_are_sound(series, smooth):
    check(line_chart(series, title="t", x_label="x", y_label="y", smooth=smooth), apart=False)


some_value = st.floats(-1e9, 1e9).map(lambda value: float(f"{value:.3g}"))


@short
@given(
    st.dictionaries(word, st.lists(st.tuples(st.integers(0, 10_000), some_value), max_size=20), max_size=8), word, word
)
def test_line_charts_of_a_run_have_no_text_over_another(series, x_label, y_label):
    check(line_chart(series, title="t", x_label=x_label, y_label=y_label, smooth=True))


# --- points ----------------------------------------------------------------------------------------------------------


def test_points_that_coincide_share_a_label():
    points = [Point("base", 0.0, 0.5), Point("LoRA", 1.0, 0.5), Point("ewc", 1.001, 0.5), Point("l2", 2.0, 0.7)]
    svg = check(scatter_chart(points, title="t", **AXES, base="base"))
    assert said(svg, "name") == ["base", "LoRA, ewc", "l2"]


def test_a_scatter_chart_shows_labels_errors_arrows_and_the_better_side():
    points = [
        Point("base", 20, 0.3),
        Point("LoRA", 38, 0.7, x_error=2.0, y_error=0.1),
        Point("EWC", 22, 0.68, y_error=(0.1, 0)),
    ]
    svg = check(scatter_chart(points, title="t", **AXES, better=("lower", "higher"), base="base"))
    assert {"base", "LoRA", "EWC", "better ↖"} <= set(texts(svg))
    assert len(of_class(svg, "error")) == 3
    assert len(of_class(svg, "arrow")) == 2
    assert [node.find("title").text for node in of_class(svg, "marker")] == ["base", "LoRA", "EWC"]
    assert len({use.get("href") for node in of_class(svg, "marker") for use in node.iter("use")}) == 3


def test_points_of_a_series_share_a_color_and_are_joined():
    points = [Point(f"ewc {n}", n, n * n, series="EWC") for n in range(4)] + [Point("base", 0, 5)]
    svg = check(scatter_chart(points, title="t", **AXES))
    assert len(of_class(svg, "link")) == 3
    assert texts(svg).count("EWC") == 1
    assert [color(node) for node in of_class(svg, "marker")] == ["c0"] * 4 + ["c1"]


def test_labels_of_crowded_points_do_not_cover_each_other():
    points = [Point(f"model {n}", 1 + n % 3 * 0.01, 1 + n // 3 * 0.01) for n in range(9)] + [Point("far", 2, 2)]
    svg = check(scatter_chart(points, title="t", **AXES))
    assert len(said(svg, "name")) == 10


def test_order_gives_a_name_the_same_color_in_every_chart():
    order = ["base", "LoRA", "EWC-LoRA"]
    lines = check(line_chart({"EWC-LoRA": [(0, 1)]}, title="t", **AXES, order=order))
    points = check(scatter_chart([Point("EWC-LoRA", 1, 2)], title="t", **AXES, order=order))
    bars = check(bar_chart({"task": {"EWC-LoRA": 0.5}}, title="t", x_label="x", order=order))
    for svg, name in ((lines, "line"), (points, "marker"), (bars, "bar")):
        assert {color(node) for node in of_class(svg, name)} == {"c2"}


spread = st.none() | anything | st.tuples(anything, anything)
some_point = st.builds(
    Point, st.text(max_size=60), anything, anything, spread, spread, st.none() | st.sampled_from("ab")
)


@short
@given(st.lists(some_point, max_size=8))
def test_scatter_charts_of_any_numbers_are_sound(points):
    base = points[0].label if points else None
    check(scatter_chart(points, title="t", **AXES, better=(None, "lower"), base=base), apart=False)


# --- bars ------------------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_their_values_and_baselines_stand_across():
    values = {"counting": {"base": 0.2, "LoRA": 0.8}, "location QA": {"base": 0.4, "LoRA": None}}
    errors = {"counting": {"LoRA": (0.1, 0.05)}}
    svg = check(bar_chart(values, title="t", x_label="accuracy", baselines={"counting": 0.3}, errors=errors))
    ends = [[x for x, _ in corners(node.find("path"))] for node in of_class(svg, "bar")]
    widths = [max(xs) - min(xs) for xs in ends]
    assert widths == [pytest.approx(widths[0] * share, abs=0.3) for share in (1, 4, 2)]
    assert len(of_class(svg, "whisker")) == 1
    assert len(of_class(svg, "tick")) == 1
    assert {"counting", "0.200", "0.800", "\u2013", "majority"} <= set(texts(svg))
    assert "counting: base 0.2, LoRA 0.8, baseline 0.3." in svg.find("desc").text


def test_a_task_name_is_whole_where_it_fits_and_takes_several_lines_where_not():
    name = "activity_recognition_qa_official_cleaned"
    shown = texts(check(bar_chart({"bAbI 1": {"a": 1.0}, name: {"a": 1.0}}, title="t", x_label="x")))
    assert {"bAbI 1", "activity_", "recognition_qa_", "official_cleaned"} <= set(shown)


scores = st.dictionaries(st.text(max_size=40), st.none() | anything, max_size=4)


@short
@given(st.dictionaries(st.text(max_size=60), scores, max_size=5), st.data())
def test_bar_charts_of_any_numbers_are_sound(values, data):
    baselines = data.draw(st.fixed_dictionaries({task: st.none() | anything for task in values}))
    errors = {task: {model: data.draw(spread) for model in bars} for task, bars in values.items()}
    check(bar_chart(values, title="t", x_label="x", baselines=baselines, errors=errors), apart=False)


@short
@given(st.dictionaries(word, st.dictionaries(word, st.none() | some_value, max_size=4), max_size=6), word)
def test_bar_charts_have_no_text_over_another(values, label):
    check(bar_chart(values, title="t", x_label=label, baselines=dict.fromkeys(values, 1.0)))


# --- heat ------------------------------------------------------------------------------------------------------------


def test_a_heat_map_shades_by_magnitude_and_marks_what_has_no_shade():
    values = [[1e-8, 1e-4, 0.0], [1e-6, math.nan, 1e-7]]
    svg = check(heat_map(values, ["layer 0", "layer 1"], ["q", "k", "v"], title="Fisher", value_label="mean"))
    shade = {node.find("title").text: re.search(r"--(h\d+)", node[1].get("style"))[1] for node in of_class(svg, "cell")}
    assert shade["layer 0, q: 1\u00d710⁻⁸"] == "h0"
    assert shade["layer 0, k: 0.0001"] == "h10"
    assert shade["layer 1, q: 1\u00d710⁻⁶"] == "h5"
    assert [node.find("title").text for node in of_class(svg, "mark")] == ["layer 0, v: 0", "layer 1, k: not finite"]
    assert {"zero or less", "not finite"} <= set(texts(svg))
    assert "to 0.0001 at layer 0, k" in svg.find("desc").text


def test_long_column_names_stand_upright_and_keep_their_ends():
    columns = [f"model.layers.self_attn.projection.q_proj.{n}" for n in range(9)]
    svg = check(heat_map([[1.0] * 9], ["layer"], columns, title="t"))
    upright = [node.text for node in svg.iter("text") if "rotate(-90" in node.get("transform", "")]
    assert len(upright) == 9
    assert all(text.startswith("…") and text.endswith(f"q_proj.{n}") for n, text in enumerate(upright))


def test_a_heat_map_names_the_mismatch():
    with pytest.raises(ValueError, match=r"2 rows of \[1, 2\] columns, the labels name 2 rows of 2"):
        heat_map([[1, 2], [1]], ["a", "b"], ["c", "d"], title="t")


@short
@given(st.integers(0, 9), st.integers(0, 9), st.data())
def test_heat_maps_of_any_numbers_are_sound(rows, columns, data):
    values = [[data.draw(anything) for _ in range(columns)] for _ in range(rows)]
    names = data.draw(st.lists(st.text(max_size=40), min_size=rows + columns, max_size=rows + columns))
    check(heat_map(values, names[:rows], names[rows:], title="t"), apart=False)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 40), (90, 7)])
def test_heat_maps_have_no_text_over_another(rows, columns):
    values = [[10.0 ** -(n + m % 5) for m in range(columns)] for n in range(rows)]
    names = [f"layer {n}" for n in range(rows)], [f"down_proj_{m}" for m in range(columns)]
    check(heat_map(values, *names, title="t", value_label="mean of F"))


# --- walks -----------------------------------------------------------------------------------------------------------


def test_a_walk_stands_in_its_rooms_and_fails_where_it_fails():
    things = [Thing("start", 1), Thing("", 0), Thing("fridge", 0), Thing("bed", 2)]
    stops = [Stop("Walk", 1), Stop("Walk", 2), Stop("Open", 2, ok=False), Stop("Walk", 3, ok=False), Stop("Sit", None)]
    svg = check(walk_map(["kitchen", "hall", "bedroom"], things, stops, title="t", doors=[(0, 1)], start=0))
    assert {"kitchen", "hall", "bedroom", "fridge", "bed", "start", "1 Walk"} <= set(texts(svg))
    assert said(svg, "failed") == ["3 Open \u2717", "4 Walk \u2717"]
    assert len(of_class(svg, "arrow")) == 2, "to the kitchen and to the fridge; nobody came to the bed"
    assert len(of_class(svg, "door")) == 1
    described = (
        "Doors: kitchen to hall. 1 Walk at kitchen. 2 Walk at fridge in the kitchen. 3 Open at fridge in the kitchen, "
    )
    assert described + "failed. 4 Walk at bed in the bedroom, failed. 5 Sit." in svg.find("desc").text


def test_rooms_with_a_door_come_to_stand_beside_each_other():
    doors = [(0, 3), (3, 1), (1, 2)]  # a row of four rooms
    svg = check(walk_map(["a", "b", "c", "d"], [], [], title="t", doors=doors))
    assert len(of_class(svg, "door")) == 3


def test_each_person_has_a_way():
    stops = [Stop("Walk", 0), Stop("Walk", 1, actor=1), Stop("Walk", 1), Stop("Walk", 0, actor=1)]
    svg = check(walk_map(["hall"], [Thing("bed", 0), Thing("lamp", 0)], stops, title="t"))
    assert [color(node) for node in of_class(svg, "arrow")] == ["c0", "c1"]
    assert {"person 1", "person 2"} <= set(texts(svg))


def walk(data: st.DataObject, words: st.SearchStrategy[str]) -> tuple[list[str], list[Thing], list[Stop], dict]:
    rooms = data.draw(st.lists(words, max_size=7))
    room = st.integers(0, max(len(rooms) - 1, 0))
    things = data.draw(st.lists(st.builds(Thing, words, room), max_size=6 if rooms else 0))
    thing = st.none() | st.integers(0, len(things) - 1) if things else st.none()
    stops = data.draw(st.lists(st.builds(Stop, words, thing, st.booleans(), st.integers(0, 2)), max_size=12))
    doors = data.draw(st.lists(st.tuples(room, room).filter(lambda pair: pair[0] < pair[1]), max_size=5))
    return rooms, things, stops, {"doors": doors if len(rooms) > 1 else [], "start": data.draw(thing)}


@short
@given(st.data())
def test_walks_of_any_kind_are_sound(data):
    rooms, things, stops, more = walk(data, st.text(max_size=40))
    check(walk_map(rooms, things, stops, title="t", **more), apart=False)
    near = st.floats(-100, 100)
    boxes = [tuple(sorted(data.draw(st.tuples(near, near)))) for _ in range(2 * len(rooms))]
    plan = Plan([(x[0], y[0], x[1], y[1]) for x, y in zip(boxes[::2], boxes[1::2], strict=True)],
                [data.draw(st.tuples(near, near)) for _ in things])  # fmt: skip
    check(walk_map(rooms, things, stops, plan=plan, title="t", start=more["start"]), apart=False)


@short
@given(st.data())
def test_walks_in_two_columns_have_no_text_over_another(data):
    rooms, things, stops, more = walk(data, word)
    check(walk_map(rooms, things, stops, title="t", **more))


def test_rooms_and_things_without_an_extent_keep_their_names_inside():
    rooms, things = ["hall", "bedroom"], [Thing("bed", 1), Thing("lamp", 1)]
    stops = [Stop("Walk", 0), Stop("Walk", 1)]
    for corner in ((0.0, 0.0), (4.0, 0.0), (0.0, 4.0), (4.0, 4.0)):
        plan = Plan([(0.0, 0.0, 4.0, 4.0), (*corner, *corner)], [corner, corner])
        svg = check(walk_map(rooms, things, stops, plan=plan, title="t"), apart=False)
        assert len(of_class(svg, "room-name")) == 2
        assert {"1 Walk", "2 Walk"} <= {name[-6:] for name in texts(svg)}
