"""A heat map: one cell per row and column, such as the Fisher information by layer and module."""

import math
from collections.abc import Iterable, Sequence

from e2wm_jax.report.drawing import (
    LINE,
    WIDTH,
    Axis,
    element,
    empty,
    escape,
    figure,
    finite,
    fit,
    line,
    number,
    shorten,
    width_of,
    words,
)

SHADES = 11
_CELL, _NAMES = 15.0, 150.0


def heat_map(
    values: Sequence[Sequence[float]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    title: str,
    log: bool = True,
    value_label: str = "value",
) -> str:
    """Cells of ``values[row][column]`` in shades from the least to the greatest, by their logarithm where ``log``.

    A value that has no shade is marked: with a dot where it is zero or less under ``log``, with a cross where it is
    not a finite number.

    Raises:
        ValueError: if the labels do not count the rows and columns of ``values``.
    """
    _check_shape(values, row_labels, column_labels)
    if not any(len(row) for row in values):
        return empty(title)
    cells = [[finite(value) for value in row] for row in values]
    shaded = [value for row in cells for value in row if value is not None and (value > 0 or not log)]
    scale = fit(shaded, 0.0, float(SHADES), log=log, pad=0.0)
    left = min(max(map(width_of, row_labels)), _NAMES) + 8
    step = (WIDTH - left) / len(column_labels)
    head, top = _columns(column_labels, left, step)
    names = (words(left - 8, top + _CELL * n + 11.5, _tail(text), "end") for n, text in enumerate(row_labels))
    body = [head, *_sparse(list(names))]
    for n, (label, row) in enumerate(zip(row_labels, cells, strict=True)):
        for column, value, x in zip(column_labels, row, (left + step * m for m in range(len(row))), strict=True):
            said = f"{label}, {column}: {'not finite' if value is None else number(value, 3)}"
            body.append(element("g", element("title", escape(said)) + _cell(scale, value, x, top + _CELL * n, step)))
    bottom = top + _CELL * len(row_labels)
    marks = _marks(cells, log)
    body.append(_shades(scale, shaded, bottom + 14, value_label, marks))
    height = bottom + 14 + (3 if marks else 2) * LINE
    return figure(title, _describe(cells, row_labels, column_labels, shaded, value_label), height, "".join(body))


def _check_shape(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> None:
    if [len(row) for row in values] != [len(columns)] * len(rows):
        found = sorted({len(row) for row in values})
        raise ValueError(
            f"values has {len(values)} rows of {found} columns, the labels name {len(rows)} rows of {len(columns)}; "
            "give one label per row and per column"
        )


def _sparse(names: list[str], most: int = 40) -> list[str]:
    """Every name, or every second, third, ... where the rows are many."""
    return names[:: math.ceil(len(names) / most)]


def _columns(labels: Sequence[str], left: float, step: float) -> tuple[str, float]:
    """The column names, standing upright where they would not fit side by side; and the height they take."""
    if all(width_of(text) <= step - 4 for text in labels):
        return "".join(words(left + step * (n + 0.5), 13.0, text, "middle") for n, text in enumerate(labels)), 20.0
    names = [_tail(text) for text in labels]
    tall = max(map(width_of, names)) + 8
    parts = []
    for n, text in enumerate(names):
        x = left + step * (n + 0.5) + 4
        turn = f"rotate(-90 {x:.1f} {tall - 4:.1f})"
        parts.append(element("text", escape(text), x=x, y=tall - 4, transform=turn, class_="label"))
    return "".join(parts), tall + 2


def _tail(text: str) -> str:
    """A long name without its beginning: names of weights differ at their ends."""
    return text if width_of(text) <= _NAMES else "…" + shorten(text[::-1], _NAMES)[-2::-1]


def _shade(scale: Axis, value: float) -> int:
    return min(int(scale.place(value)), SHADES - 1)


def _cell(scale: Axis, value: float | None, x: float, y: float, width: float) -> str:
    middle = (x + width / 2, y + _CELL / 2)
    if value is None:
        return _cross(*middle)
    if scale.log and value <= 0:
        return element("circle", cx=middle[0], cy=middle[1], r=1.5, class_="dot")
    gap = 1.0 if width > 6 else 0.0
    class_ = f"h{_shade(scale, value)}"
    return element("rect", x=x, y=y, width=width - gap, height=_CELL - 1, class_=class_)


def _cross(x: float, y: float) -> str:
    return line(x - 3, y - 3, x + 3, y + 3, "cross") + line(x - 3, y + 3, x + 3, y - 3, "cross")


def _marks(cells: Iterable[Iterable[float | None]], log: bool) -> list[tuple[str, str]]:
    found = [value for row in cells for value in row]
    marks = []
    if log and any(value is not None and value <= 0 for value in found):
        marks.append((element("circle", cx=0.0, cy=0.0, r=1.5, class_="dot"), "zero or less"))
    if any(value is None for value in found):
        marks.append((_cross(0.0, 0.0), "not finite"))
    return marks


def _shades(scale: Axis, shaded: Sequence[float], y: float, label: str, marks: list[tuple[str, str]]) -> str:
    """The legend: the shades in a row with the values at their ends, then the marks that occur."""
    parts, size = [words(0.0, y + LINE + 10, shorten(label, 190.0))], 22.0
    x = WIDTH - SHADES * size
    parts += [element("rect", x=x + n * size, y=y, width=size, height=10.0, class_=f"h{n}") for n in range(SHADES)]
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")) if shaded else ():
        value = scale.low + (scale.high - scale.low) * share
        text = number(10**value if scale.log else value, 2)
        parts.append(words(x + size * SHADES * share, y + LINE + 10, text, anchor))
    at = 0.0
    for mark, text in marks:
        parts.append(element("g", mark, transform=f"translate({at + 6:.1f},{y + 2 * LINE + 12:.1f})"))
        parts.append(words(at + 16, y + 2 * LINE + 16, text))
        at += 16 + width_of(text) + 14
    return "".join(parts)


def _describe(
    cells: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    shaded: Sequence[float],
    label: str,
) -> str:
    size = f"Heat map of {label}, {len(rows)} rows by {len(columns)} columns."
    if not shaded:
        return f"{size} No value has a shade."
    least, greatest = min(shaded), max(shaded)
    at = {value: (rows[n], columns[m]) for n, row in enumerate(cells) for m, value in enumerate(row)}
    said = (f"{number(value)} at {', '.join(at[value])}" for value in (least, greatest))
    return f"{size} From {next(said)}, to {next(said)}."
