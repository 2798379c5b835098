"""Charts with two axes: lines, such as losses over steps, and labelled points, such as skill against forgetting."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from e2wm_jax.report.figure import (
    COLOR,
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
)
from e2wm_jax.report.numbers import finite, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Spread = float | tuple[float, float]
Better = Literal["higher", "lower"]


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


def name_axes(axes: "Axes", x_label: str, y_label: str = "", note: str = "", *, whole_x: bool = False) -> None:
    """Round ticks, at whole numbers where x counts something; the label of y above, so that it reads as it stands."""
    from matplotlib.ticker import MaxNLocator

    for axis, whole in ((axes.xaxis, whole_x), (axes.yaxis, False)):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole))
        axis.set_major_formatter(lambda value, _: number(value, 6))
    figure_of(axes).supxlabel(shorten(x_label, WIDTH), x=1, ha="right")
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
    name_axes(axes, x_label, y_label, note, whole_x=whole)
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
    name_axes(axes, x_label, y_label, _direction(better))
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
