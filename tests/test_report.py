"""Reports: every text kept as text, pages that fetch nothing, colors that can be told from the page."""

import itertools
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from e2wm_jax.report import (
    Plan,
    Point,
    Section,
    Stop,
    Thing,
    bar_chart,
    details,
    heat_map,
    key_values,
    line_chart,
    page,
    paragraph,
    scatter_chart,
    standalone,
    table,
    texts,
    trajectory,
    walk_map,
    write,
)
from e2wm_jax.report.blocks import block
from e2wm_jax.report.figure import SERIES, look

VOID = {"meta", "link", "br", "hr", "img"}
LOSSES = {"LoRA": [(step, 3 / step) for step in range(1, 60)]}
NASTY = "<script>alert('x')</script> & \"quoted\" \x00\ud800"


class Outline(HTMLParser):
    """Checks that tags are closed in order; keeps tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def outline(html: str) -> Outline:
    parsed = Outline()
    parsed.feed(html)
    parsed.close()
    assert parsed.open == []
    return parsed


# --- text ------------------------------------------------------------------------------------------------------------


def test_a_table_aligns_numbers_and_marks_the_best():
    rows = [["base", 0.1, 20.41, "31.2 ± 1.2", None], ["LoRA", 0.6123, 138.2, "71.0 ± 1.1", "new"]]
    html = table(
        ["model", "ROUGE-L", "ppl", "QA", "note"], rows, best={"ROUGE-L": "highest", "ppl": "lowest", "QA": "highest"}
    )
    parsed = outline(html)
    assert [cell["class"] for cell in parsed.named("td")[:5]] == [
        "words brief",
        "number",
        "number",
        "number",
        "words brief",
    ]
    assert re.findall(r"<strong>(.*?)</strong>", html) == ["20.4", "0.6123", "71.0 ± 1.1"]
    assert {"0.1000", "138.2", "\u2013"} <= set(parsed.text)


def test_ties_are_all_best_and_missing_values_never():
    html = table(["x"], [[1.0], [2.0], [2.0], [math.nan], [None]], best={"x": "highest"})
    assert re.findall(r"<td.*?>(.*?)</td>", html) == ["1.000", *["<strong>2.000</strong>"] * 2, "nan", "\u2013"]


def test_a_table_refuses_crooked_rows_and_unknown_columns():
    with pytest.raises(ValueError, match="1 cells under 2 headers"):
        table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match="best names 'c'"):
        table(["a"], [[1]], best={"c": "highest"})


def test_a_trajectory_says_which_steps_failed():
    html = trajectory([("[WALK] <kitchen> (1)", True), ("[OPEN] <fridge> (2)", False)], title="Cool the mug")
    parsed = outline(html)
    assert [item["class"] for item in parsed.named("li")] == ["ok", "failed"]
    assert {"[WALK] <kitchen> (1)", " (ok)", " (failed)", "2 steps, 1 failed"} <= set(parsed.text)


def test_texts_stand_beside_each_other_under_their_names():
    parsed = outline(texts({"before": "", "after": "1. Walk"}, title="plan 3"))
    assert parsed.text == ["plan 3", "before", "(nothing)", "after", "1. Walk"]
    assert len(parsed.named("pre")) == 2


def test_facts_and_folded_blocks():
    facts = outline(key_values({"rate": 8e-4, "resumed": False, "adapter": None, "epochs": 3}))
    assert facts.text == ["rate", "0.0008", "resumed", "no", "adapter", "\u2013", "epochs", "3"]
    folded = outline(details("more", paragraph("text"), opened=True))
    assert folded.named("details") == [{"open": ""}]


# --- pages -----------------------------------------------------------------------------------------------------------


def blocks(text: str) -> list[str]:
    walk = [text, text], [Thing(text, 0), Thing("", 1)], [Stop(text, 0), Stop(text, 1, ok=False), Stop(text, None)]
    return [
        paragraph(text),
        details(text, paragraph(text)),
        key_values({text: text}),
        table([text], [[text]], caption=text),
        trajectory([(text, True), (text, False)], title=text),
        line_chart({text: [(0, 1.0), (1, 2.0)]}, title=text, x_label=text, y_label=text),
        scatter_chart(
            [Point(text, 1, 2), Point("b", 2, 3, series=text)], title=text, x_label=text, y_label=text, base=text
        ),
        bar_chart({text: {text: 1.0}}, title=text, x_label=text, baselines={text: 0.5}),
        heat_map([[1.0]], [text], [text], title=text, value_label=text),
        texts({text: text}, title=text),
        walk_map(*walk, title=text, doors=[(0, 1)], start=0),
        walk_map(*walk, plan=Plan([(0, 0, 1, 1), (1, 0, 3, 2)], [(0.5, 0.5), (2, 1)]), title=text, start=0),
    ]


def test_a_page_is_one_file_that_fetches_nothing_and_runs_nothing():
    both = [*blocks("plain"), *blocks("simple")]
    html = page("Report", [Section("one", both), Section("two", []), Section("three", [])], lead="in short")
    parsed = outline(html)
    assert not re.search(r"https?:|//|url\(|@import|javascript", html)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in parsed.tags}
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in parsed.named("meta"))
    identifiers = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    assert {link["href"] for link in parsed.named("a")} <= {f"#{name}" for name in identifiers}
    assert parsed.named("html") == [{"lang": "en"}]


def test_a_single_section_needs_no_outline():
    assert outline(page("Report", [Section("one", [])])).named("nav") == []


@pytest.fixture(scope="module")
def plain() -> Outline:
    return outline(page("x", [Section("x", blocks("x"))], lead="x", footer="x"))


@settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.text(max_size=60))
@example(NASTY)
def test_every_text_stays_text(plain, text):
    drawn = blocks(text)
    html = page(text, [Section(text, drawn)], lead=text, footer=text)
    html.encode("utf-8")
    parsed = outline(html)
    assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in plain.tags}
    for one in drawn:
        ET.fromstring(one)


def test_a_page_is_written_as_it_is(tmp_path):
    html = page("Ähre \ud800", [])
    write(tmp_path / "new" / "report.html", html)
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == html
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.html"]


def test_a_chart_stands_alone_with_its_own_style():
    svg = ET.fromstring(standalone(line_chart(LOSSES, title="t", x_label="x", y_label="y")))
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme" in svg.find("{*}style").text
    with pytest.raises(ValueError, match="no <svg>"):
        standalone(paragraph("text"))


# --- colors ----------------------------------------------------------------------------------------------------------


# Linear RGB as seen without the cones for long, middle and short waves (Machado, Oliveira and Fernandes 2009).
VISIONS = {
    "full": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "protanopia": ((0.152, 1.053, -0.205), (0.115, 0.786, 0.099), (-0.004, -0.048, 1.052)),
    "deuteranopia": ((0.367, 0.861, -0.228), (0.280, 0.673, 0.047), (-0.012, 0.043, 0.969)),
    "tritanopia": ((1.256, -0.077, -0.179), (-0.078, 0.931, 0.148), (0.005, 0.691, 0.304)),
}


def linear(color: str) -> list[float]:
    parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def luminance(color: str) -> float:
    red, green, blue = linear(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def seen(color: str, vision: str) -> tuple[float, float, float]:
    """CIE L*a*b* of a color as someone with this vision sees it; equal distances look equally different."""
    red, green, blue = (
        min(max(sum(a * b for a, b in zip(row, linear(color), strict=True)), 0.0), 1.0) for row in VISIONS[vision]
    )
    white = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.9505,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.0888,
    )
    x, y, z = (part ** (1 / 3) if part > 0.008856 else 7.787 * part + 16 / 116 for part in white)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colors_stand_out_from_the_page(scheme):
    color = dict(re.findall(r"--([\w]+):(#[0-9a-f]{6})", block(scheme)))
    against = {name: contrast(value, color["paper"]) for name, value in color.items()}
    assert all(against[name] >= 4.5 for name in ("ink", "soft", "link", "ok", "failed"))
    assert all(against[f"c{n}"] >= 3 for n in range(SERIES))
    shades = [luminance(color[f"h{n}"]) for n in range(11)]
    assert shades == sorted(shades, reverse=scheme == "light")


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_series_are_told_apart_by_every_kind_of_color_vision(scheme, vision):
    colors = [seen(found, vision) for found in re.findall(r"--c\d:(#[0-9a-f]{6})", block(scheme))]
    assert len(colors) == SERIES
    # A distance of 2 can just be seen side by side; small marks far apart need ten times that.
    assert min(math.dist(a, b) for a, b in itertools.combinations(colors, 2)) > 20


def test_each_early_series_has_a_look_of_its_own():
    looks = {(look(n)["color"], look(n)["marker"]) for n in range(36)}
    assert len(looks) == 36
