"""A heat map: one cell per row and column, such as the Fisher information by layer and module."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from e2wm_jax.report.figure import (
    COLOR,
    LINE,
    SHADES,
    WIDTH,
    axes_of,
    drawn,
    empty,
    finish,
    key,
    name,
    shorten,
    width_of,
)
from e2wm_jax.report.numbers import finite, number

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable

_NAMES = 165.0  # the width of what a row or a column is called


@drawn
def heat_map(
    values: Sequence[Sequence[float]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    title: str,
    value_label: str = "value",
) -> str:
    """Cells of ``values[row][column]`` in shades from the least to the greatest, by their logarithm.

    A value that has no shade is marked: with a dot where it is zero or less, with a cross where it is not finite.

    Raises:
        ValueError: if the labels do not count the rows and columns of ``values``.
    """
    from matplotlib.patches import Rectangle

    if [len(row) for row in values] != [len(column_labels)] * len(row_labels):
        found = sorted({len(row) for row in values})
        raise ValueError(
            f"values has {len(values)} rows of {found} columns, the labels name {len(row_labels)} rows of "
            f"{len(column_labels)}; give one label per row and per column"
        )
    if not any(len(row) for row in values):
        return empty(title)
    cells = [[finite(value) for value in row] for row in values]
    rows, columns = ([shorten(text[::-1], _NAMES)[::-1] for text in names] for names in (row_labels, column_labels))
    longest = max(map(width_of, columns))
    upright = longest + 12 > (WIDTH - 100) / len(columns)
    axes = axes_of(17 * len(rows) + 80 + (longest if upright else LINE))
    shades = _shades([value for row in cells for value in row if value is not None and value > 0])
    marks: dict[str, Any] = {}
    for (n, row), (m, column) in itertools.product(enumerate(row_labels), enumerate(column_labels)):
        value = cells[n][m]
        said = f"{row}, {column}: {'not finite' if value is None else number(value, 3)}"
        if value is not None and value > 0:
            cell = Rectangle((m + 0.03, n + 0.03), 0.94, 0.94, color=shades.to_rgba(np.array(value)), lw=0)
            name(axes.add_patch(cell), "cell", said)
        else:
            kind, marker, size = ("not finite", "x", 6) if value is None else ("zero or less", "o", 3)
            color = COLOR["soft"]
            marks[kind] = axes.plot(m + 0.5, n + 0.5, ls="", marker=marker, ms=size, color=color, mec=color)[0]
            name(marks[kind], "mark", said)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    for axis, names, most in ((axes.xaxis, columns, 20 if upright else 99), (axes.yaxis, rows, 40)):
        few = slice(None, None, math.ceil(len(names) / most))
        axis.set_ticks(np.arange(len(names))[few] + 0.5, names[few])
    axes.tick_params("x", rotation=90 if upright else 0)
    low, high = shades.get_clim()
    scale = axes.figure.colorbar(shades, ax=axes, location="bottom", aspect=40, pad=0.02)
    scale.set_label(shorten(value_label, WIDTH), loc="left")
    ends = [low, math.sqrt(low) * math.sqrt(high), high]
    scale.set_ticks(ends, labels=[number(end, 2) for end in ends])
    scale.minorticks_off()
    scale.outline.set_visible(False)
    key(axes, marks)
    return finish(axes, title, _describe_cells(cells, row_labels, column_labels, value_label))


def _shades(values: Sequence[float]) -> "ScalarMappable":
    """The scale of a heat map."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    low, high = min(values, default=1.0), max(values, default=1.0)
    colors = ListedColormap([COLOR[f"h{n}"] for n in range(SHADES)])
    return ScalarMappable(LogNorm(low / 1.001, high * 1.001), colors)


def _describe_cells(
    cells: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str], label: str
) -> str:
    places = itertools.product(enumerate(rows), enumerate(columns))
    at = {value: f"{row}, {column}" for (n, row), (m, column) in places if (value := cells[n][m] or 0.0) > 0}
    size = f"Heat map of {label}, {len(rows)} rows by {len(columns)} columns."
    if not at:
        return f"{size} No value has a shade."
    return f"{size} From {' to '.join(f'{number(end)} at {at[end]}' for end in (min(at), max(at)))}."
