"""Charts: well-formed, named, nothing outside the drawing, and the picture says what the numbers say."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from e2wm_jax.report import (
    Plan,
    Point,
    Stop,
    Thing,
    bar_chart,
    drawing,
    floor_plan,
    heat_map,
    line_chart,
    room_map,
    scatter_chart,
)

LOSSES = {"LoRA": [(step, 3 / step) for step in range(1, 60)], "EWC-LoRA": [(step, 2 / step) for step in range(1, 60)]}
anything = st.floats(width=64)
short = settings(max_examples=60, deadline=None)


def positions(node: ET.Element, dx: float = 0.0, dy: float = 0.0) -> Iterator[tuple[float, float]]:
    """Every coordinate pair of the drawing; a marker counts by its center."""

    def get(name: str) -> float:
        return float(node.get(name, "0"))

    if move := re.match(r"translate\((.*),(.*)\)", node.get("transform", "")):
        dx, dy = dx + float(move[1]), dy + float(move[2])
    if node.tag == "rect":
        yield from [(dx + get("x"), dy + get("y")), (dx + get("x") + get("width"), dy + get("y") + get("height"))]
    elif node.tag == "line":
        yield from [(dx + get("x1"), dy + get("y1")), (dx + get("x2"), dy + get("y2"))]
    elif node.tag == "text":
        yield (dx + get("x"), dy + get("y"))
    elif node.tag == "circle":
        yield (dx + get("cx"), dy + get("cy"))
    elif node.tag == "path" and "marker" in node.get("class", ""):
        yield (dx, dy)
    elif node.tag == "path" and "way" in node.get("class", ""):
        # A point at the end of a way moves from its first corner; a curve stays among its ends and handles.
        numbers = list(map(float, re.findall(r"-?[\d.]+", node.get("d").partition("l")[0])))
        yield from ((dx + x, dy + y) for x, y in zip(numbers[::2], numbers[1::2], strict=True))
    elif node.tag == "path":
        yield from (
            (dx + float(x), dy + float(y)) for x, y in (p.split(",") for p in re.findall(r"[^ML]+", node.get("d")))
        )
    for child in node:
        yield from positions(child, dx, dy)


def check(chart: str) -> ET.Element:
    """The drawing of a chart, found well-formed, named, described, and nowhere outside its view box."""
    svg = ET.fromstring(chart).find("svg")
    assert [child.tag for child in svg[:2]] == ["title", "desc"]
    assert svg.get("role") == "img"
    _, _, width, height = map(float, svg.get("viewBox").split())
    for x, y in positions(svg):
        assert -0.1 <= x <= width + 0.1
        assert -0.1 <= y <= height + 0.1
    return svg


def of_class(svg: ET.Element, name: str) -> list[ET.Element]:
    return [node for node in svg.iter() if name in node.get("class", "").split()]


def texts(svg: ET.Element) -> list[str]:
    return [node.text for node in svg.iter("text")]


# --- numbers and axes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1234, "1,234"), (0.05, "0.05"), (-2.5, "-2.5"), (1e-7, "1x10⁻⁷"), (3.21e9, "3.21x10⁹"),
        (999_999.9, "1x10⁶"), (0.99999, "1"), (100, "100"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_write_them(value, text):
    assert drawing.number(value) == text.replace("-", "\u2212").replace("x", "\u00d7")


@short
@given(st.floats(-1e250, 1e250), st.floats(-1e250, 1e250), st.integers(5, 8))
def test_ticks_are_round_inside_the_range_and_told_apart(a, b, count):
    axis = drawing.fit([drawing.finite(a), drawing.finite(b)], 0.0, 100.0)
    ticks = axis.ticks(count)
    slack = 1e-6 * (axis.high - axis.low)
    assert 2 <= len(ticks) <= count + 1
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)
    labels = drawing.tick_labels(axis, ticks)
    assert len(set(labels)) == len(labels)
    step = ticks[1] - ticks[0]
    assert min(abs(step / (size * 10 ** round(math.log10(step / size))) - 1) for size in (1, 2, 5)) < 1e-3


@short
@given(st.floats(1e-250, 1e250), st.floats(1e-250, 1e250))
def test_logarithmic_ticks_are_inside_the_range(a, b):
    axis = drawing.fit([a, b], 0.0, 100.0, log=True)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 13
    assert all(axis.low - 1e-6 <= math.log10(tick) <= axis.high + 1e-6 for tick in ticks)


def test_two_decades_have_ticks_at_1_2_5():
    axis = drawing.Axis(-1.0, 1.0, 0.0, 100.0, log=True)
    assert drawing.tick_labels(axis, axis.ticks()) == ["0.1", "0.2", "0.5", "1", "2", "5", "10"]


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_chart_names_its_series_and_axes():
    svg = check(line_chart(LOSSES, title="Losses", x_label="step", y_label="nats"))
    assert svg.find("title").text == "Losses"
    assert "LoRA: from 3 at 1 to 0.05085 at 59." in svg.find("desc").text
    assert {"LoRA", "EWC-LoRA", "step", "nats"} <= set(texts(svg))
    lines = [node for node in of_class(svg, "line") if node.tag == "path"]
    assert len({node.get("class") for node in lines}) == 2
    assert len({node.get("stroke-dasharray") for node in lines}) == 2


def test_a_larger_value_stands_higher_and_a_later_one_further_right():
    svg = check(line_chart({"a": [(0, 1.0), (1, 2.0), (2, 4.0)]}, title="t", x_label="x", y_label="y"))
    path = next(node for node in of_class(svg, "line") if node.tag == "path")
    (x0, y0), (x1, y1), (x2, y2) = positions(path)
    assert x0 < x1 < x2
    assert y0 - y1 == pytest.approx((y1 - y2) / 2, abs=0.2)


def smoothed(points):
    """The axes' places of a smoothed chart's light line, if there is one, and of its heavy one; and its texts."""
    svg = check(line_chart({"a": points}, title="t", x_label="step", y_label="y", smooth=True))
    heavy = next(node for node in of_class(svg, "line") if node.tag == "path")
    light = [list(positions(raw)) for raw in of_class(svg, "raw")]
    return light[0] if light else None, list(positions(heavy)), texts(svg)


def test_smoothing_is_the_mean_over_a_tenth_of_the_points():
    values = [float(step % 3 == 0) for step in range(100)]
    light, heavy, said = smoothed(list(enumerate(values)))
    assert "bold: mean of up to 9 points" in said
    down, up = light[1][1], light[0][1]
    means = [(y - down) / (up - down) for _, y in heavy]
    for index in (4, 5, 50, 95):
        assert means[index] == pytest.approx(sum(values[index - 4 : index + 5]) / 9, abs=0.002)
    assert means[1] == pytest.approx(1 / 3, abs=0.002), "of itself and its two neighbors"
    assert (means[0], means[99]) == (pytest.approx(1), pytest.approx(1)), "it begins and ends where the data do"


def test_few_points_are_not_smoothed():
    light, heavy, said = smoothed([(step, step**2) for step in range(29)])
    assert light is None
    assert not any(text.startswith("bold") for text in said)
    bottom, top = heavy[0][1], heavy[-1][1]
    assert (bottom - heavy[14][1]) / (bottom - top) == pytest.approx(14**2 / 28**2, abs=0.002)
    assert "bold: mean of up to 3 points" in smoothed([(step, 1.0) for step in range(30)])[2]


def test_what_counts_has_whole_ticks():
    ticks = [text for text in smoothed([(1, 1.0), (2, 2.0)])[2] if re.fullmatch(r"[\d.]+", text)]
    assert ticks[-2:] == ["1", "2"]
    svg = check(bar_chart({"Walk": {"steps": 2}, "Grab": {"steps": 1}}, title="t", x_label="steps"))
    assert [text for text in texts(svg) if re.fullmatch(r"[\d.]+", text)] == ["0", "1", "2", "2", "1"]
    assert "1.50" in texts(check(bar_chart({"a": {"b": 1.5}, "c": {"b": 1}}, title="t", x_label="x")))


def test_a_value_that_is_not_finite_leaves_a_gap():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 2.0), (4, math.inf), (5, 1.0)]
    svg = check(line_chart({"a": points}, title="t", x_label="x", y_label="y"))
    path = next(node for node in of_class(svg, "line") if node.tag == "path")
    assert path.get("d").count("M") == 3


def test_a_long_run_is_thinned_without_losing_its_spike():
    points = [(step, 100.0 if step == 33_333 else 1.0) for step in range(50_000)]
    svg = check(line_chart({"a": points}, title="t", x_label="x", y_label="y"))
    path = next(node for node in of_class(svg, "line") if node.tag == "path")
    heights = [y for _, y in positions(path)]
    assert len(heights) <= 800
    assert max(heights) - min(heights) > 200


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(1, math.nan)]}, {"a": [(math.inf, 1)]}])
def test_nothing_to_draw_is_said(series):
    assert texts(check(line_chart(series, title="t", x_label="x", y_label="y"))) == ["nothing to draw"]


@short
@given(
    st.dictionaries(st.text(max_size=80), st.lists(st.tuples(anything, anything), max_size=20), max_size=8),
    st.booleans(),
    st.booleans(),
)
@example({"": [(0.0, 1e250), (0.0, 1e-250)]}, True, False)
def test_line_charts_of_any_numbers_are_sound(series, log_y, smooth):
    check(line_chart(series, title="t", x_label="x", y_label="y", log_y=log_y, smooth=smooth))


# --- points ----------------------------------------------------------------------------------------------------------


def test_points_that_coincide_share_a_label():
    points = [Point("base", 0.0, 0.5), Point("LoRA", 1.0, 0.5), Point("ewc", 1.001, 0.5), Point("l2", 2.0, 0.7)]
    svg = check(scatter_chart(points, title="t", x_label="x", y_label="y", base="base"))
    assert [node.text for node in of_class(svg, "name")] == ["base", "LoRA, ewc", "l2"]


def test_a_scatter_chart_shows_labels_errors_arrows_and_the_better_side():
    points = [
        Point("base", 20, 0.3),
        Point("LoRA", 38, 0.7, x_error=2.0, y_error=0.1),
        Point("EWC", 22, 0.68, y_error=(0.1, 0)),
    ]
    chart = scatter_chart(points, title="t", x_label="x", y_label="y", better=("lower", "higher"), base="base")
    svg = check(chart)
    assert {"base", "LoRA", "EWC", "better ↖"} <= set(texts(svg))
    assert len(of_class(svg, "error")) == 3
    assert len(of_class(svg, "head")) == 2
    assert len({node.get("d") for node in of_class(svg, "marker")}) == 3


def test_points_of_a_series_share_a_color_and_are_joined():
    points = [Point(f"ewc {n}", n, n * n, series="EWC") for n in range(4)] + [Point("base", 0, 5)]
    svg = check(scatter_chart(points, title="t", x_label="x", y_label="y"))
    assert len(of_class(svg, "link")) == 3
    assert texts(svg).count("EWC") == 1
    assert sorted(node.get("class")[-2:] for node in of_class(svg, "marker")) == ["c0"] * 5 + ["c1"]


def test_labels_of_crowded_points_do_not_cover_each_other():
    points = [Point(f"model {n}", 1 + n % 3 * 0.01, 1 + n // 3 * 0.01) for n in range(9)] + [Point("far", 2, 2)]
    svg = check(scatter_chart(points, title="t", x_label="x", y_label="y"))
    boxes = []
    for node in of_class(svg, "name"):
        wide = drawing.width_of(node.text)
        left = float(node.get("x")) - {"start": 0, "middle": wide / 2, "end": wide}[node.get("text-anchor")]
        boxes.append((left, float(node.get("y")), left + wide))
    apart = [a[2] <= b[0] + 0.1 or b[2] <= a[0] + 0.1 or abs(a[1] - b[1]) > 12 for a in boxes for b in boxes if a < b]
    assert len(apart) == 45
    assert all(apart)


def test_order_gives_a_name_the_same_color_in_every_chart():
    order = ["base", "LoRA", "EWC-LoRA"]
    lines = check(line_chart({"EWC-LoRA": [(0, 1)]}, title="t", x_label="x", y_label="y", order=order))
    points = check(scatter_chart([Point("EWC-LoRA", 1, 2)], title="t", x_label="x", y_label="y", order=order))
    bars = check(bar_chart({"task": {"EWC-LoRA": 0.5}}, title="t", x_label="x", order=order))
    for svg in (lines, points, bars):
        assert {node.get("class") for node in of_class(svg, "marker")} == {"marker c2"}


spread = st.none() | anything | st.tuples(anything, anything)
some_point = st.builds(
    Point, st.text(max_size=60), anything, anything, spread, spread, st.none() | st.sampled_from("ab")
)


@short
@given(st.lists(some_point, max_size=8))
def test_scatter_charts_of_any_numbers_are_sound(points):
    base = points[0].label if points else None
    check(scatter_chart(points, title="t", x_label="x", y_label="y", better=(None, "lower"), base=base))


# --- bars ------------------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_their_values_and_baselines_stand_across():
    values = {"counting": {"base": 0.2, "LoRA": 0.8}, "location QA": {"base": 0.4, "LoRA": None}}
    errors = {"counting": {"LoRA": (0.1, 0.05)}}
    chart = bar_chart(values, title="t", x_label="accuracy", baselines={"counting": 0.3}, errors=errors)
    svg = check(chart)
    widths = [float(node.get("width")) for node in of_class(svg, "bar")[2:]]
    assert widths == [pytest.approx(widths[0] * share, abs=0.3) for share in (1, 4, 2)]
    assert len(of_class(svg, "whisker")) == 1
    assert len(of_class(svg, "tick")) == 2
    assert {"counting", "0.200", "0.800", "\u2013", "majority"} <= set(texts(svg))
    assert "counting: base 0.2, LoRA 0.8, baseline 0.3." in svg.find("desc").text


def test_a_task_name_is_whole_where_it_fits_and_takes_several_lines_where_not():
    name = "activity_recognition_qa_official_cleaned"
    shown = texts(check(bar_chart({"bAbI 1": {"a": 1.0}, name: {"a": 1.0}}, title="t", x_label="x")))
    assert {"bAbI 1", "activity_", "recognition_qa_", "official_cleaned"} <= set(shown)
    assert "bAbI 1" in texts(check(bar_chart({"bAbI 1": {"a": 1.0}}, title="t", x_label="x")))


scores = st.dictionaries(st.text(max_size=40), st.none() | anything, max_size=4)


@short
@given(st.dictionaries(st.text(max_size=60), scores, max_size=5), st.data())
def test_bar_charts_of_any_numbers_are_sound(values, data):
    baselines = data.draw(st.fixed_dictionaries({task: st.none() | anything for task in values}))
    errors = {task: {model: data.draw(spread) for model in bars} for task, bars in values.items()}
    check(bar_chart(values, title="t", x_label="x", baselines=baselines, errors=errors))


# --- heat ------------------------------------------------------------------------------------------------------------


def test_a_heat_map_shades_by_magnitude_and_marks_what_has_no_shade():
    values = [[1e-8, 1e-4, 0.0], [1e-6, math.nan, 1e-7]]
    svg = check(heat_map(values, ["layer 0", "layer 1"], ["q", "k", "v"], title="Fisher", value_label="mean"))
    shade = {
        group.find("title").text: group[1].get("class") for group in svg.iter("g") if group.find("title") is not None
    }
    assert shade["layer 0, q: 1\u00d710⁻⁸"] == "h0"
    assert shade["layer 0, k: 0.0001"] == "h10"
    assert shade["layer 1, q: 1\u00d710⁻⁶"] == "h5"
    assert shade["layer 0, v: 0"] == "dot"
    assert shade["layer 1, k: not finite"] == "cross"
    assert {"zero or less", "not finite"} <= set(texts(svg))
    assert "to 0.0001 at layer 0, k" in svg.find("desc").text


def test_long_column_names_stand_upright_and_keep_their_ends():
    columns = [f"model.layers.self_attn.projection.q_proj.{n}" for n in range(9)]
    svg = check(heat_map([[1.0] * 9], ["layer"], columns, title="t"))
    upright = [node for node in svg.iter("text") if "rotate" in node.get("transform", "")]
    assert len(upright) == 9
    assert all(node.text.startswith("…") and node.text.endswith(f"q_proj.{n}") for n, node in enumerate(upright))


def test_a_heat_map_names_the_mismatch():
    with pytest.raises(ValueError, match=r"2 rows of \[1, 2\] columns, the labels name 2 rows of 2"):
        heat_map([[1, 2], [1]], ["a", "b"], ["c", "d"], title="t")


@short
@given(st.integers(0, 9), st.integers(0, 9), st.booleans(), st.data())
def test_heat_maps_of_any_numbers_are_sound(rows, columns, log, data):
    values = [[data.draw(anything) for _ in range(columns)] for _ in range(rows)]
    names = data.draw(st.lists(st.text(max_size=40), min_size=rows + columns, max_size=rows + columns))
    check(heat_map(values, names[:rows], names[rows:], title="t", log=log))


# --- walks -----------------------------------------------------------------------------------------------------------


def test_a_walk_stands_in_its_rooms_and_fails_where_it_fails():
    things = [Thing("start", 1), Thing("", 0), Thing("fridge", 0), Thing("bed", 2)]
    stops = [Stop("Walk", 1), Stop("Walk", 2), Stop("Open", 2, ok=False), Stop("Walk", 3, ok=False), Stop("Sit", None)]
    svg = check(room_map(["kitchen", "hall", "bedroom"], things, stops, title="t", doors=[(0, 1)], start=0))
    assert {"kitchen", "hall", "bedroom", "fridge", "bed", "start", "1 Walk"} <= set(texts(svg))
    failed = [node.text for node in of_class(svg, "failed")]
    assert failed == ["3 Open \u2717", "4 Walk \u2717"]
    assert len(of_class(svg, "way")) == 2, "to the kitchen and to the fridge; nobody came to the bed"
    assert len(of_class(svg, "door")) == 1
    said = (
        "Doors: kitchen to hall. 1 Walk at kitchen. 2 Walk at fridge in the kitchen. 3 Open at fridge in the kitchen, "
    )
    assert said + "failed. 4 Walk at bed in the bedroom, failed. 5 Sit." in svg.find("desc").text


def test_rooms_with_a_door_come_to_stand_beside_each_other():
    doors = [(0, 3), (3, 1), (1, 2)]  # a row of four rooms
    svg = check(room_map(["a", "b", "c", "d"], [], [], title="t", doors=doors))
    assert len(of_class(svg, "door")) == 3


def test_each_person_has_a_way():
    stops = [Stop("Walk", 0), Stop("Walk", 1, actor=1), Stop("Walk", 1), Stop("Walk", 0, actor=1)]
    svg = check(room_map(["hall"], [Thing("bed", 0), Thing("lamp", 0)], stops, title="t"))
    assert [node.get("class") for node in of_class(svg, "way")] == ["way c0", "way c1"]


@short
@given(st.data())
def test_walks_of_any_kind_are_sound(data):
    rooms = data.draw(st.lists(st.text(max_size=40), max_size=7))
    room = st.integers(0, max(len(rooms) - 1, 0))
    things = data.draw(st.lists(st.builds(Thing, st.text(max_size=40), room), max_size=6 if rooms else 0))
    thing = st.none() | st.integers(0, len(things) - 1) if things else st.none()
    step = st.builds(Stop, st.text(min_size=1, max_size=30), thing, st.booleans(), st.integers(0, 2))
    stops = data.draw(st.lists(step, max_size=12))
    doors = data.draw(st.lists(st.tuples(room, room).filter(lambda pair: pair[0] < pair[1]), max_size=5))
    start = data.draw(thing)
    check(room_map(rooms, things, stops, title="t", doors=doors if len(rooms) > 1 else [], start=start))
    near = st.floats(-100, 100)
    boxes = [tuple(sorted(data.draw(st.tuples(near, near)))) for _ in range(2 * len(rooms))]
    plan = Plan([(x[0], y[0], x[1], y[1]) for x, y in zip(boxes[::2], boxes[1::2], strict=True)],
                [data.draw(st.tuples(near, near)) for _ in things])  # fmt: skip
    check(floor_plan(rooms, things, stops, plan, title="t", start=start))


def test_rooms_and_things_without_an_extent_keep_their_names_inside():
    rooms, things = ["hall", "bedroom"], [Thing("bed", 1), Thing("lamp", 1)]
    stops = [Stop("Walk", 0), Stop("Walk", 1)]
    for corner in ((0.0, 0.0), (4.0, 0.0), (0.0, 4.0), (4.0, 4.0)):
        plan = Plan([(0.0, 0.0, 4.0, 4.0), (*corner, *corner)], [corner, corner])
        svg = check(floor_plan(rooms, things, stops, plan, title="t"))
        assert len(of_class(svg, "room-name")) == 2
        assert {"1 Walk", "2 Walk"} <= {name[-6:] for name in texts(svg)}
