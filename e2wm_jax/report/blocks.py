"""Blocks of text for a report: paragraphs, tables, facts, trajectories. How they look stands in `page.html`."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from e2wm_jax.report.numbers import fixed, number

if TYPE_CHECKING:
    from jinja2 import Template

Cell = str | int | float | None
_NUMBER = re.compile(r"([-+\u2212]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*%?(?:\s*(?:±|\+/-)\s*[\d.]+\s*%?)?")
# Characters that no XML file may hold, and lone surrogates, which no UTF-8 file may hold.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def clean(text: object) -> str:
    """``text`` without characters that a page may not hold."""
    return _FORBIDDEN.sub("\ufffd", str(text))


@functools.cache
def template() -> "Template":
    """The one template: a page, and a macro for each block of it."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    def finalize(value: object) -> str:
        return value if isinstance(value, Markup) else clean(value)

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=finalize)
    return environment.get_template("page.html")


def block(name: str, *values: Any) -> str:
    """What the template's macro of this name makes of the values."""
    return str(getattr(template().module, name)(*values))


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return block("paragraph", text)


def heading(text: str) -> str:
    """A heading inside of a section, over blocks that belong together."""
    return block("heading", text)


def preformatted(text: str) -> str:
    """Text as it stands, in a typewriter face; lines too long for the page are wrapped."""
    return block("preformatted", text)


def details(summary: str, html: str, *, opened: bool = False) -> str:
    """Blocks (``html``, trusted) that fold away under a line of text."""
    return block("details", summary, html, opened)


def key_values(values: Mapping[str, object]) -> str:
    """Facts as name and value pairs, such as the configuration of a run."""
    return block("key_values", [(key, _fact(value)) for key, value in values.items()])


def _fact(value: object) -> str:
    match value:
        case list() | tuple():
            return ", ".join(map(_fact, value)) or "none"
        case Mapping():
            return ", ".join(f"{key} {_fact(one)}" for key, one in value.items()) or "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return number(value, 6)
    return "\u2013" if value is None else str(value)


def trajectory(steps: Sequence[tuple[str, bool]], *, title: str = "") -> str:
    """Numbered steps, each with a mark that says whether it succeeded."""
    return block("trajectory", steps, sum(not ok for _, ok in steps), title)


def texts(parts: Mapping[str, str], *, title: str = "") -> str:
    """Texts to be read against each other, such as what a model wrote before and after: beside each other on a desk,
    one below the other on a phone; each under its name.
    """
    return block("texts", parts, title)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str = "",
    best: Mapping[str, Literal["highest", "lowest"]] | None = None,
    digits: int = 4,
) -> str:
    """A table; columns of numbers are aligned at the right and written to a common number of decimals.

    ``best`` names columns whose best value is set bold. Text that starts as a number with a percent sign or an error
    (``57.9 ± 1.2``) counts as one. The decimals are those that give the greatest value of the column ``digits``
    significant digits.

    Raises:
        ValueError: if a row has another number of cells than there are headers, or ``best`` names no header.
    """
    best = best or {}
    if odd := [row for row in rows if len(row) != len(headers)]:
        raise ValueError(f"a row has {len(odd[0])} cells under {len(headers)} headers: {list(odd[0])!r}")
    if unknown := [name for name in best if name not in headers]:
        raise ValueError(f"best names {unknown[0]!r}, which is no header; the headers are {list(headers)}")
    columns = [[row[n] for row in rows] for n in range(len(headers))]
    sides = [_side(cells) for cells in columns]
    drawn = [_column(cells, best.get(name), digits) for name, cells in zip(headers, columns, strict=True)]
    names = [(name.split(), side) for name, side in zip(headers, sides, strict=True)]
    body = [list(zip((column[n] for column in drawn), sides, strict=True)) for n in range(len(rows))]
    return block("table", names, body, caption)


def _value(cell: Cell) -> float | None:
    if isinstance(cell, str):
        found = _NUMBER.fullmatch(cell.strip())
        cell = float(found[1].replace(",", "").replace("\u2212", "-")) if found else None
    return None if cell is None or isinstance(cell, bool) or not math.isfinite(cell) else float(cell)


def _side(cells: Sequence[Cell]) -> str:
    given = [cell for cell in cells if cell is not None]
    if given and all(not isinstance(cell, str | bool) or _value(cell) is not None for cell in given):
        return "number"
    return "words brief" if all(len(str(cell)) <= 24 for cell in given) else "words"


def _column(cells: Sequence[Cell], best: str | None, digits: int) -> list[tuple[str, bool]]:
    """The cells as text, and whether each is the best."""
    values = [_value(cell) for cell in cells]
    known = [value for value in values if value is not None]
    top = {"highest": max, "lowest": min}[best](known) if best and known else None
    largest = max((abs(cell) for cell in cells if isinstance(cell, float) and math.isfinite(cell)), default=0.0)
    bold = (top is not None and value == top for value in values)
    return list(zip((_written(cell, largest, digits) for cell in cells), bold, strict=True))


def _written(cell: Cell, largest: float, digits: int) -> str:
    if isinstance(cell, str | bool) or cell is None or not math.isfinite(cell):
        return _fact(cell) if not isinstance(cell, float) else str(cell)
    return f"{cell:,}".replace("-", "\u2212") if isinstance(cell, int) else fixed(cell, largest, digits)
