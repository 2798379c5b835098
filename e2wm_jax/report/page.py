"""The page around the blocks: its style, its outline and its writing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2wm_jax.report.drawing import element, escape
from e2wm_jax.report.style import CHART_STYLE, STYLE
from e2wm_jax.storage.files import write_text


@dataclass(frozen=True)
class Section:
    """One section of a page: a heading over blocks of HTML."""

    title: str
    blocks: Sequence[str]


def page(title: str, sections: Sequence[Section], *, lead: str = "", footer: str = "") -> str:
    """The whole HTML file: title, ``lead`` under it, links to the sections where there are several, the sections."""
    links = (element("li", element("a", escape(s.title), href=f"#s{n}")) for n, s in enumerate(sections, start=1))
    parts = [element("h1", escape(title)), element("p", escape(lead), class_="lead") if lead else ""]
    parts.append(element("nav", element("ol", "".join(links)), aria_label="Sections") if len(sections) > 2 else "")
    for n, section in enumerate(sections, start=1):
        content = element("h2", escape(section.title), id=f"h{n}") + "\n".join(section.blocks)
        parts.append(element("section", content, id=f"s{n}", aria_labelledby=f"h{n}"))
    body = element("main", "\n".join(part for part in parts if part))
    body += element("footer", escape(footer)) if footer else ""
    return f'<!DOCTYPE html>\n<html lang="en">\n{_head(title)}\n{element("body", body)}\n</html>\n'


def _head(title: str) -> str:
    # The policy makes it certain: a browser that shows the page runs no script and fetches nothing.
    meta = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="color-scheme" content="light dark">'
    )
    return element("head", meta + element("title", escape(title)) + element("style", STYLE))


def standalone(chart: str) -> str:
    """A chart as an SVG file of its own, for a README or a document: without its caption, in both color schemes."""
    found = re.search(r"<svg.*</svg>", chart, re.DOTALL)
    if found is None:
        raise ValueError("no <svg> in the block; give what line_chart, scatter_chart, bar_chart or heat_map returned")
    style = element("style", CHART_STYLE)
    drawing = found[0].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    return drawing.replace("</desc>", "</desc>" + style, 1) + "\n"


def write(path: Path, html: str) -> None:
    """Write a page (or a standalone chart) to ``path``, atomically."""
    write_text(path, html)
