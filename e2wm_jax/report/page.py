"""The page around the blocks, and its writing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2wm_jax import __version__
from e2wm_jax.report.blocks import block, template
from e2wm_jax.storage.files import write_text


@dataclass(frozen=True)
class Section:
    """One section of a page: a heading over blocks of HTML."""

    title: str
    blocks: Sequence[str]


def page(title: str, sections: Sequence[Section], *, lead: str = "", footer: str = "") -> str:
    """The whole HTML file: title, ``lead`` under it, links to the sections where there are several, the sections.

    A section without blocks is left out. The footer begins with this program's version.
    """
    shown = [section for section in sections if any(section.blocks)]
    footer = ", ".join(filter(None, [f"e2wm_jax {__version__}", footer]))
    return template().render(title=title, sections=shown, lead=lead, footer=footer)


def standalone(chart: str) -> str:
    """A chart as an SVG file of its own, for a README or a document: without its caption, in both color schemes."""
    _, svg, drawing = chart.partition("<svg ")
    if not svg:
        raise ValueError("no <svg> in the block; give what line_chart, scatter_chart, bar_chart or heat_map returned")
    style = f"</desc><style>{block('chart_style')}</style>"
    drawing = drawing.removesuffix("</figure>").rstrip().replace("</desc>", style, 1)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {drawing}\n'


def write(path: Path, html: str) -> None:
    """Write a page (or a standalone chart) to ``path``, atomically."""
    write_text(path, html)
