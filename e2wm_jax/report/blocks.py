"""Blocks of text for a report: paragraphs, tables, facts, trajectories."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from e2wm_jax.report.drawing import element, escape, fixed, number

Cell = str | int | float | None
_NUMBER = re.compile(r"([-+\u2212]?[\d,]*\.?\d+(?:e[-+]?\d+)?)\s*%?(?:\s*(?:±|\+/-)\s*[\d.]+\s*%?)?")


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return element("p", escape(text))


def heading(text: str) -> str:
    """A heading inside of a section, over blocks that belong together."""
    return element("h3", escape(text))


def preformatted(text: str) -> str:
    """Text as it stands, in a typewriter face; lines too long for the page are wrapped."""
    return element("pre", escape(text))


def details(summary: str, html: str, *, opened: bool = False) -> str:
    """Blocks (``html``, trusted) that fold away under a line of text."""
    shown = {"open": ""} if opened else {}
    return element("details", element("summary", escape(summary)) + html, **shown)


def key_values(values: Mapping[str, object]) -> str:
    """Facts as name and value pairs, such as the configuration of a run."""
    pairs = (element("dt", escape(key)) + element("dd", _fact(value)) for key, value in values.items())
    return element("dl", "".join(element("div", pair) for pair in pairs))


def _fact(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(key)} {_fact(one)}" for key, one in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(number(value, 6) if isinstance(value, float) else "\u2013" if value is None else value)


def trajectory(steps: Sequence[tuple[str, bool]], *, title: str = "") -> str:
    """Numbered steps, each with a mark that says whether it succeeded."""
    items = []
    for text, ok in steps:
        word = "ok" if ok else "failed"
        mark = element("span", "✓" if ok else "✗", class_="mark", aria_hidden="true")
        said = element("span", f" ({word})", class_="said")
        items.append(element("li", element("code", escape(text)) + mark + said, class_=word))
    failed = sum(not ok for _, ok in steps)
    count = f"{len(steps)} step{'s' * (len(steps) != 1)}, {f'{failed} failed' if failed else 'all ok'}"
    said = element("small", count if steps else "no steps")
    head = element("figcaption", escape(f"{title} " if title else "") + said)
    return element("figure", head + element("ol", "".join(items)), class_="trajectory")


def texts(parts: Mapping[str, str], *, title: str = "") -> str:
    """Texts to be read against each other, such as what a model wrote before and after: beside each other on a desk,
    one below the other on a phone; each under its name.
    """
    head = element("figcaption", escape(title)) if title else ""
    cells = (
        element("div", element("h3", escape(name)) + element("pre", escape(text) if text.strip() else "(nothing)"))
        for name, text in parts.items()
    )
    return element("figure", head + element("div", "".join(cells), class_="beside"), class_="texts")


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
    drawn = [_column(cells, best.get(name), digits) for name, cells in zip(headers, columns, strict=True)]
    sides = [_side(cells) for cells in columns]
    # Each word in a span of its own: a header may break between words and at no hyphen.
    names = [" ".join(element("span", escape(word)) for word in name.split()) for name in headers]
    head = (element("th", name, scope="col", class_=side) for name, side in zip(names, sides, strict=True))
    body = []
    for n in range(len(rows)):
        cells = (element("td", column[n], class_=side) for column, side in zip(drawn, sides, strict=True))
        body.append(element("tr", "".join(cells)))
    whole = element("thead", element("tr", "".join(head))) + element("tbody", "".join(body))
    # The caption stands outside of what scrolls sideways, so that a phone shows all of it.
    title = element("figcaption", escape(caption)) if caption else ""
    frame: dict[str, Any] = {"class_": "wide", "tabindex": 0, "role": "region", "aria_label": caption or "table"}
    return element("figure", title + element("div", element("table", whole), **frame), class_="table")


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


def _column(cells: Sequence[Cell], best: str | None, digits: int) -> list[str]:
    values = [_value(cell) for cell in cells]
    known = [value for value in values if value is not None]
    top = {"highest": max, "lowest": min}[best](known) if best and known else None
    largest = max((abs(cell) for cell in cells if isinstance(cell, float) and math.isfinite(cell)), default=0.0)
    shown = [_written(cell, largest, digits) for cell in cells]
    return [
        element("strong", text) if top is not None and value == top else text
        for value, text in zip(values, shown, strict=True)
    ]


def _written(cell: Cell, largest: float, digits: int) -> str:
    if cell is None:
        return "\u2013"
    if isinstance(cell, str | bool) or not math.isfinite(cell):
        return escape({True: "yes", False: "no"}.get(cell, cell) if isinstance(cell, bool) else cell)
    if isinstance(cell, int):
        return f"{cell:,}".replace("-", "\u2212")
    return fixed(cell, largest, digits)
