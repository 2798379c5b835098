"""Labelled points with error bars: skill gained against ability retained."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from e2wm_jax.report.drawing import (
    LINE,
    WIDTH,
    Frame,
    Spread,
    color,
    element,
    empty,
    extent,
    figure,
    finite,
    frame,
    indices,
    line,
    marker,
    number,
    shorten,
    width_of,
    words,
)

LONGEST = 0.6  # of a label, times the width of what it stands in
_COINCIDE = 2.0  # apart, one marker hides the other
Better = Literal["higher", "lower"]
Place = tuple[float, float]
Box = tuple[float, float, float, float]


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
    xs = [end for point in kept for end in extent(point.x, point.x_error)]
    ys = [end for point in kept for end in extent(point.y, point.y_error)]
    keys = [(marker(index[name], 0.0, 0.0), name) for name in index if any(point.series == name for point in kept)]
    plot = frame(xs, ys, (x_label, y_label), keys, note=_direction(better), pad=0.1, plot_height=270.0)
    at = [(plot.x.place(point.x), plot.y.place(point.y)) for point in kept]
    lines = _links(kept, at, base)
    body = [plot.body]
    body += [line(*a, *b, f"link {color(index[name])}") if name else _arrow(a, b) for a, b, name in lines]
    taken = [box for a, b, _ in lines for box in boxes_along(a, b)]
    for point, (x, y) in zip(kept, at, strict=True):
        bars, boxes = _error_bars(plot, point, (x, y), color(index[point.series or point.label]))
        body += [*bars, marker(index[point.series or point.label], x, y)]
        taken += [*boxes, (x - 6, y - 6, x + 6, y + 6)]
    bounds = (plot.x.start + 4, plot.y.end, WIDTH, plot.y.start)
    body += labels(*_together([point.label for point in kept], at), taken, bounds)
    said = [f"{point.label}: {x_label} {number(point.x)}, {y_label} {number(point.y)}." for point in kept]
    return figure(title, " ".join([f"Points of {y_label} against {x_label}.", *said]), plot.height, "".join(body))


def _together(names: Sequence[str], at: Sequence[Place]) -> tuple[list[str], list[Place]]:
    """The names, those of points of one place joined, and the places."""
    found: dict[Place, list[str]] = {}
    for name, place in zip(names, at, strict=True):
        near = next((other for other in found if math.dist(place, other) < _COINCIDE), place)
        found.setdefault(near, []).append(name)
    return [", ".join(group) for group in found.values()], list(found)


def _direction(better: tuple[Better | None, Better | None]) -> str:
    arrows = {
        ("higher", None): "→", ("lower", None): "←", (None, "higher"): "↑", (None, "lower"): "↓",
        ("higher", "higher"): "↗", ("higher", "lower"): "↘", ("lower", "higher"): "↖", ("lower", "lower"): "↙",
    }  # fmt: skip
    return f"better {arrows[better]}" if better in arrows else ""


def _links(points: Sequence[Point], at: Sequence[Place], base: str | None) -> list[tuple[Place, Place, str | None]]:
    links: list[tuple[Place, Place, str | None]] = []
    origin = next((place for point, place in zip(points, at, strict=True) if point.label == base), None)
    last: dict[str, Place] = {}
    for point, place in zip(points, at, strict=True):
        if point.series and point.series in last:
            links.append((last[point.series], place, point.series))
        elif origin and point.label != base and math.dist(origin, place) > 24:
            links.append((origin, place, None))
        if point.series:
            last[point.series] = place
    return links


def _arrow(start: Place, end: Place) -> str:
    length = math.dist(start, end)
    dx, dy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    x1, y1, x2, y2 = start[0] + 9 * dx, start[1] + 9 * dy, end[0] - 9 * dx, end[1] - 9 * dy
    wings = [(x2 - 6 * dx - side * 3 * dy, y2 - 6 * dy + side * 3 * dx) for side in (1, -1)]
    head = f"M{wings[0][0]:.1f},{wings[0][1]:.1f}L{x2:.1f},{y2:.1f}L{wings[1][0]:.1f},{wings[1][1]:.1f}"
    return line(x1, y1, x2, y2, "arrow") + element("path", d=head, class_="arrow head")


def boxes_along(start: Place, end: Place) -> Iterator[Box]:
    """Small boxes that cover a line, for `labels` to keep clear of."""
    count = max(int(math.dist(start, end) / 8), 1)
    for step in range(count + 1):
        x = start[0] + (end[0] - start[0]) * step / count
        y = start[1] + (end[1] - start[1]) * step / count
        yield (x - 2, y - 2, x + 2, y + 2)


def _error_bars(plot: Frame, point: Point, at: Place, class_: str) -> tuple[list[str], list[Box]]:
    bars, boxes = [], []
    if point.x_error is not None:
        low, high = map(plot.x.place, extent(point.x, point.x_error))
        bars.append(line(low, at[1], high, at[1], f"error {class_}"))
        boxes.append((low, at[1] - 2, high, at[1] + 2))
    if point.y_error is not None:
        high, low = map(plot.y.place, extent(point.y, point.y_error))
        bars.append(line(at[0], low, at[0], high, f"error {class_}"))
        boxes.append((at[0] - 2, low, at[0] + 2, high))
    return bars, boxes


def _overlap(a: Box, b: Box) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


def labels(names: Sequence[str], at: Sequence[Place], taken: list[Box], bounds: Box) -> list[str]:
    """Each name beside its point, at the first place around it that covers nothing, else where it covers least."""
    parts = []
    for name, (x, y) in zip(names, at, strict=True):
        text = shorten(name, (bounds[2] - bounds[0]) * LONGEST)
        best = min(_candidates(text, x, y, bounds), key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(best)
        # Set from the side of the point, so that letters wider or narrower than the estimate keep their distance.
        anchor = "start" if best[0] > x else "end" if best[2] < x else "middle"
        side = {"start": best[0], "middle": (best[0] + best[2]) / 2, "end": best[2]}[anchor]
        parts.append(words(side, best[3] - 4, text, anchor, "name"))
        near = (min(max(x, best[0]), best[2]), min(max(y, best[1]), best[3]))
        # Straight up or sideways a line would pass for an error bar, and the name needs none.
        slanted = near[0] != x and near[1] != y and math.dist((x, y), near) > 16
        parts += [line(x, y, *near, "leader")] if slanted else []
    return parts


def _candidates(text: str, x: float, y: float, bounds: Box) -> Iterator[Box]:
    width, height = width_of(text), LINE - 1
    for away in (9, 14, 22, 32, 44, 58, 74):
        slant = away * 0.7
        for left, top in (
            (x + away, y - height / 2),
            (x - away - width, y - height / 2),
            (x - width / 2, y - away - height),
            (x - width / 2, y + away),
            (x + slant, y - slant - height),
            (x + slant, y + slant),
            (x - slant - width, y - slant - height),
            (x - slant - width, y + slant),
        ):
            if left >= bounds[0] and left + width <= bounds[2] and top >= bounds[1] and top + height <= bounds[3]:
                yield (left, top, left + width, top + height)
    left, top = min(max(x, bounds[0]), bounds[2] - width), min(max(y, bounds[1]), bounds[3] - height)
    yield (left, top, left + width, top + height)
