"""The charts of a report: lines, points, bars, heat maps."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from e2wm_jax.report.figure import (
    COLOR,
    LINE,
    SHADES,
    WIDTH,
    Place,
    arrow,
    axes_of,
    boxes_along,
    drawn,
    empty,
    figure_of,
    finish,
    key,
    look,
    name,
    place_names,
    shorten,
    width_of,
)
from e2wm_jax.report.numbers import finite, fixed, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

_NAMES = 165.0  # the width of what a row or a column is called
Spread = float | tuple[float, float]
Better = Literal["higher", "lower"]
Scores = Mapping[str, float | None]
Errors = Mapping[str, Mapping[str, Spread | None]]


@dataclass(frozen=True)
class Point:
    """One labelled point of a scatter chart; errors are half-widths, or (below, above) where the two differ.

    Points of one ``series`` share color and shape and are joined in the order given; without one a point stands alone.
    """

    label: str
    x: float
    y: float
    x_error: Spread | None = None
    y_error: Spread | None = None
    series: str | None = None


def indices(names: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    """The number of each series: its place in ``order``, or after it."""
    return {name: index for index, name in enumerate(dict.fromkeys([*order, *names]))}


def extent(value: float, spread: Spread | None) -> tuple[float, float]:
    """The two ends of an error bar; a half-width that is not finite counts as none."""
    below, above = spread if isinstance(spread, tuple) else (spread, spread)
    low, high = finite(value - abs(finite(below) or 0.0)), finite(value + abs(finite(above) or 0.0))
    return (value if low is None else low, value if high is None else high)


def _name_axes(axes: "Axes", x_label: str, y_label: str = "", note: str = "", *, whole_x: bool = False) -> None:
    """Round ticks, at whole numbers where x counts something; the label of y above, so that it reads as it stands."""
    from matplotlib.ticker import MaxNLocator

    for axis, whole in ((axes.xaxis, whole_x), (axes.yaxis, False)):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole))
        axis.set_major_formatter(lambda value, _: number(value, 6))
    axes.set_xlabel(shorten(x_label, WIDTH - 60), loc="right")
    axes.set_title(shorten(y_label, WIDTH - 40 - 8 * len(note)), loc="left")
    axes.set_title(note, loc="right", color=COLOR["ink"])


# --- lines -----------------------------------------------------------------------------------------------------------


@drawn
def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    smooth: bool = False,
    order: Sequence[str] = (),
) -> str:
    """Lines over a common x axis, such as losses over steps.

    With ``smooth`` the running mean over a tenth of a series' points is drawn over a light line of the values
    themselves; a series of fewer than 30 points stays as it is. A value that is not finite leaves a gap.
    """
    kept = {name: _drawable(points) for name, points in series.items()}
    if not any(np.isfinite(points[:, 1]).any() for points in kept.values()):
        return empty(title)
    index, axes, widest = indices(series, order), axes_of(290), 1
    lines: list[Any] = []
    for label, points in kept.items():
        style = look(index[label], len(lines))
        if smooth and (window := _window(len(points))) > 1:
            name(axes.plot(*points.T, color=style["color"], lw=0.8, alpha=0.35)[0], "raw")
            widest, points = max(widest, window), _running_mean(points, window)
            kept[label] = points
        lines += axes.plot(*points.T, markevery=_marked(points[:, 1]), **style)
        name(lines[-1], "line")
    whole = all(isinstance(x, int) for points in series.values() for x, _ in points)
    note = f"bold: mean of up to {widest} points" if widest > 1 else ""
    _name_axes(axes, x_label, y_label, note, whole_x=whole)
    axes.grid(axis="y")
    key(axes, dict(zip(series, lines, strict=True)))
    return finish(axes, title, _describe_lines(kept, x_label, y_label))


def _drawable(points: Iterable[tuple[float, float]]) -> np.ndarray:
    """Rows of x and y; y is NaN where it leaves a gap."""
    pairs = [(finite(x), finite(y)) for x, y in points]
    return np.array([(x, math.nan if y is None else y) for x, y in pairs if x is not None]).reshape(-1, 2)


def _window(count: int) -> int:
    """An odd number of points, at most a tenth of all."""
    tenth = count // 10
    return max(tenth - (tenth + 1) % 2, 1)


def _running_mean(points: np.ndarray, window: int) -> np.ndarray:
    """Means around each point; the window shrinks at both ends, so the curve begins and ends where the data do."""
    means = points.copy()
    for n, value in enumerate(points[:, 1]):
        half = min(window // 2, n, len(points) - 1 - n)
        if not math.isnan(value):
            means[n, 1] = np.nanmean(points[n - half : n + half + 1, 1])
    return means


def _marked(values: np.ndarray) -> list[int]:
    """Where a line has markers: everywhere if it is short, else at its end and where gaps leave a point alone."""
    known = np.pad(~np.isnan(values), 1)
    found = np.flatnonzero(known[1:-1])
    alone = ~(known[:-2] | known[2:])
    return [int(n) for n in found if len(found) <= 12 or alone[n] or n == found[-1]]


def _describe_lines(series: Mapping[str, np.ndarray], x_label: str, y_label: str) -> str:
    parts = [f"Lines of {y_label} over {x_label}."]
    for label, points in series.items():
        values = points[~np.isnan(points[:, 1])]
        ends = [f"{number(y)} at {number(x)}" for x, y in (*values[:1], *values[-1:])]
        parts.append(f"{label}: from {ends[0]} to {ends[1]}." if ends else f"{label}: nothing to draw.")
    return " ".join(parts)


# --- points ----------------------------------------------------------------------------------------------------------


@drawn
def scatter_chart(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    better: tuple[Better | None, Better | None] = (None, None),
    base: str | None = None,
    order: Sequence[str] = (),
) -> str:
    """Labelled points with error bars, such as skill gained against ability retained.

    ``better`` says for x and for y which values are preferred; an arrow shows it. From the point labelled ``base`` an
    arrow leads to each other point that stands alone and to the first of each series. Points that coincide have one
    label, with the names of all.
    """
    kept = [point for point in points if finite(point.x) is not None and finite(point.y) is not None]
    if not kept:
        return empty(title)
    index = indices((point.series or point.label for point in kept), order)
    axes = axes_of(330)
    axes.margins(0.1)
    markers, bars = {}, []
    for point in kept:
        style = look(index[point.series or point.label]) | {"ls": ""}
        xs, ys = extent(point.x, point.x_error), extent(point.y, point.y_error)
        found = [((x, point.y) for x in xs)] if point.x_error is not None else []
        found += [((point.x, y) for y in ys)] if point.y_error is not None else []
        for bar in map(list, found):
            name(axes.plot(*zip(*bar, strict=True), color=style["color"], lw=1.2, alpha=0.6)[0], "error")
            bars.append(bar)
        markers[point.series] = axes.plot(point.x, point.y, **style)[0]
        name(markers[point.series], "marker", point.label)
    _name_axes(axes, x_label, y_label, _direction(better))
    axes.grid(axis="y")
    key(axes, {series: marker for series, marker in markers.items() if series is not None})
    _name_points(axes, kept, bars, index, base)
    said = [f"{point.label}: {x_label} {number(point.x)}, {y_label} {number(point.y)}." for point in kept]
    return finish(axes, title, " ".join([f"Points of {y_label} against {x_label}.", *said]))


def _name_points(
    axes: "Axes", points: Sequence[Point], bars: Sequence[Sequence[Place]], index: Mapping[str, int], base: str | None
) -> None:
    """Arrows and joining lines between points, and each point's name where there is room."""
    figure_of(axes).draw_without_rendering()  # lays out: from here on the places of points are known
    places = [(float(x), float(y)) for x, y in axes.transData.transform([(point.x, point.y) for point in points])]
    taken = [box for bar in bars for box in boxes_along(*axes.transData.transform(bar).tolist())]
    taken += [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    for a, b in _links(points, places, base):
        taken += boxes_along(places[a], places[b])
        ends = [(points[n].x, points[n].y) for n in (a, b)]
        if series := points[b].series if points[a].series == points[b].series else None:
            color = look(index[series])["color"]
            name(axes.plot(*zip(*ends, strict=True), color=color, lw=1, alpha=0.6, zorder=1)[0], "link")
        else:
            arrow(axes, ends[0], ends[1], "->", (9, 9), color=COLOR["soft"], alpha=0.7, lw=0.8)
    together: dict[Place, list[str]] = {}
    for point, place in zip(points, places, strict=True):
        near = next((other for other in together if math.dist(place, other) < 2), place)
        together.setdefault(near, []).append(point.label)
    names = [(", ".join(group), place) for place, group in together.items()]
    place_names(axes, names, taken, (*axes.bbox.min, WIDTH, axes.bbox.y1))


def _direction(better: tuple[Better | None, Better | None]) -> str:
    arrows = {
        ("higher", None): "→", ("lower", None): "←", (None, "higher"): "↑", (None, "lower"): "↓",
        ("higher", "higher"): "↗", ("higher", "lower"): "↘", ("lower", "higher"): "↖", ("lower", "lower"): "↙",
    }  # fmt: skip
    return f"better {arrows[better]}" if better in arrows else ""


def _links(points: Sequence[Point], places: Sequence[Place], base: str | None) -> list[tuple[int, int]]:
    """Pairs of points, by number: of each series in order, and from the base to what is not near it."""
    links = []
    origin = next((n for n, point in enumerate(points) if point.label == base), None)
    last: dict[str, int] = {}
    for n, point in enumerate(points):
        if point.series and point.series in last:
            links.append((last[point.series], n))
        elif origin is not None and math.dist(places[origin], places[n]) > 24:
            links.append((origin, n))
        if point.series:
            last[point.series] = n
    return links


# --- bars ------------------------------------------------------------------------------------------------------------


@drawn
def bar_chart(
    values: Mapping[str, Scores],
    *,
    title: str,
    x_label: str,
    baselines: Scores | None = None,
    errors: Errors | None = None,
    order: Sequence[str] = (),
) -> str:
    """Lying bars of ``values[task][model]``, with the value written beside each and an error bar where one is given.

    ``baselines[task]`` draws a tick across the bars of that task. A value that is not finite is written as a dash.
    Values that are all of type int are counts: they and the ticks below are written without decimals.
    """
    if not any(values.values()):
        return empty(title)
    index = indices((model for scores in values.values() for model in scores), order)
    numbers = [value for scores in values.values() for value in scores.values()]
    whole = all(isinstance(value, int) for value in numbers)
    largest = max((abs(value) for value in map(finite, numbers) if value is not None), default=0.0)
    names = [_wrap(task) for task in values]
    rows = [max(len(scores), 1.15 * len(lines)) for scores, lines in zip(values.values(), names, strict=True)]
    axes, at = axes_of(17 * (sum(rows) + 0.6 * len(rows)) + 60), 0.0
    handles: dict[str, Any] = {}
    ticks: dict[float, str] = {}
    for (task, scores), lines, tall in zip(values.items(), names, rows, strict=True):
        ticks |= {at + 1.15 * n: line for n, line in enumerate(lines)}
        for n, (model, value) in enumerate(scores.items()):
            text = f"{value:,}".replace("-", "\u2212") if whole else _written(value, largest)
            error = (errors or {}).get(task, {}).get(model)
            handles[model] = _bar(axes, at + n, value, error, text, look(index[model]) | {"ls": ""})
        if (known := finite((baselines or {}).get(task))) is not None:
            ends = [at - 0.7, at + len(scores) - 0.3]
            handles["majority"] = axes.plot([known] * 2, ends, color=COLOR["ink"], ls=(0, (3, 2)))[0]
            name(handles["majority"], "tick")
        at += tall + 0.6
    _name_axes(axes, x_label, whole_x=whole)
    axes.set_yticks(list(ticks), ticks.values())
    axes.tick_params(axis="y", pad=18)
    axes.set_ylim(at - 0.9, -0.9)
    axes.grid(axis="x")
    axes.spines.bottom.set_visible(False)
    axes.axvline(0, color=COLOR["soft"], lw=0.8)
    key(axes, {model: handles[model] for model in [*index, "majority"] if model in handles})
    return finish(axes, title, _describe_bars(values, baselines or {}, x_label))


def _written(value: float | None, largest: float) -> str:
    return "\u2013" if value is None or finite(value) is None else fixed(value, largest, 3)


def _bar(
    axes: "Axes", y: float, value: float | None, spread: Spread | None, text: str, style: dict[str, Any]
) -> tuple[Any, ...]:
    """A bar with its marker before it, its error and its value behind it; returned is what stands in the legend."""
    known = finite(value)
    length = 0.0 if known is None else known
    low, high = extent(length, spread)
    bar = axes.barh(y, length, 0.8, color=style["color"], alpha=0.85)
    name(bar[0], "nothing" if known is None else "bar")
    if known is not None and spread is not None:
        name(axes.plot([low, high], [y, y], color=COLOR["ink"], lw=1)[0], "whisker")
    end = (max(length, 0.0 if spread is None else high, 0.0), y)
    said = axes.annotate(text, end, (5, -4.5), textcoords="offset points", color=COLOR["ink"])
    name(said, "name")
    marker = axes.plot(-0.02, y, transform=axes.get_yaxis_transform(), **style)[0]
    name(marker, "marker")
    return bar[0], marker


def _wrap(task: str, most: int = 3) -> list[str]:
    """The name of a task on few short lines, broken at spaces and after underscores, slashes and hyphens."""
    lines = [""]
    for part in re.findall(r"\s+|[^\s_/-]*[_/-]|[^\s_/-]+", task):
        if len((lines[-1] + part).strip()) > 19 and lines[-1]:
            lines.append("")
        lines[-1] = (lines[-1] + part).lstrip()
    if len(lines) > most:
        lines = [*lines[: most - 1], "".join(lines[most - 1 :])]
    return [shorten(text, _NAMES) for text in lines]


def _describe_bars(values: Mapping[str, Scores], baselines: Scores, x_label: str) -> str:
    parts = [f"Bars of {x_label}."]
    for task, scores in values.items():
        said = [f"{model} {'nothing' if finite(v) is None else number(v or 0.0)}" for model, v in scores.items()]
        if (known := finite(baselines.get(task))) is not None:
            said.append(f"baseline {number(known)}")
        parts.append(f"{task}: {', '.join(said)}.")
    return " ".join(parts)


# --- heat ------------------------------------------------------------------------------------------------------------


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
