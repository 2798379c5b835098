"""Lines over a common x axis: losses over steps."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from e2wm_jax.report.drawing import (
    DASHES,
    Frame,
    color,
    element,
    empty,
    figure,
    finite,
    frame,
    indices,
    line,
    marker,
    number,
)

Place = tuple[float, float]
Value = tuple[float, float | None]


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    smooth: bool = False,
    order: Sequence[str] = (),
) -> str:
    """Lines over a common x axis, such as losses over steps.

    With ``smooth`` the running mean over a tenth of a series' points is drawn over a light line of the values
    themselves; a series of fewer than 30 points stays as it is. A value that is not finite (or, with ``log_y``, not
    positive) leaves a gap.
    """
    index = indices(series, order)
    kept = {name: _drawable(points, log_y) for name, points in series.items()}
    shown = [(x, y) for points in kept.values() for x, y in points if y is not None]
    if not shown:
        return empty(title)
    windows = {name: _window(points) if smooth else 1 for name, points in kept.items()}
    widest = max(windows.values())
    plot = frame(
        [x for x, _ in shown],
        [y for _, y in shown],
        (x_label, y_label),
        [(_line_key(index[name], DASHES[n % len(DASHES)]), name) for n, name in enumerate(kept)],
        note=f"bold: mean of up to {widest} points" if widest > 1 else "",
        log_y=log_y,
        whole_x=all(isinstance(x, int) for points in series.values() for x, _ in points),
    )
    body = [plot.body]
    body += [_path(plot, kept[name], f"raw {color(index[name])}") for name in kept if windows[name] > 1]
    kept = {name: _running_mean(points, windows[name]) for name, points in kept.items()}
    for n, (name, points) in enumerate(kept.items()):
        body.append(_path(plot, points, f"line {color(index[name])}", DASHES[n % len(DASHES)]))
        ends = [(x, y) for x, y in points if y is not None]
        body += [marker(index[name], plot.x.place(x), plot.y.place(y)) for x, y in ends[-1 if len(ends) > 12 else 0 :]]
    return figure(title, _describe_lines(kept, x_label, y_label), plot.height, "".join(body))


def _drawable(points: Iterable[tuple[float, float]], log: bool) -> list[Value]:
    pairs = [(finite(x), finite(y)) for x, y in points]
    return [(x, None if y is not None and log and y <= 0 else y) for x, y in pairs if x is not None]


def _window(points: Sequence[Value]) -> int:
    """An odd number of points, at most a tenth of all."""
    tenth = len(points) // 10
    return max(tenth - (tenth + 1) % 2, 1)


def _running_mean(points: Sequence[Value], window: int) -> list[Value]:
    """Means around each point; the window shrinks at both ends, so the curve begins and ends where the data do."""
    means = []
    for index, (x, y) in enumerate(points):
        half = min(window // 2, index, len(points) - 1 - index)
        near = [value for _, value in points[index - half : index + half + 1] if value is not None]
        means.append((x, sum(near) / len(near) if y is not None else None))
    return means


def _thin(places: list[Place], limit: int = 400) -> list[Place]:
    """At most 2 * limit places: the highest and the lowest of each stretch, so that no spike is lost."""
    size = math.ceil(len(places) / limit)
    if size <= 2:
        return places
    stretches = (places[start : start + size] for start in range(0, len(places), size))
    ends = ({min(part, key=lambda place: place[1]), max(part, key=lambda place: place[1])} for part in stretches)
    return [place for pair in ends for place in sorted(pair)]


def _path(plot: Frame, points: Sequence[Value], class_: str, dash: str = "") -> str:
    runs = itertools.groupby(points, key=lambda point: point[1] is not None)
    steps = []
    for drawn, run in runs:
        places = _thin([(plot.x.place(x), plot.y.place(y)) for x, y in run if y is not None])
        # A run of one point is drawn as a dot: a line of length zero with round ends.
        places = places * 2 if len(places) == 1 else places
        steps += ["M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)] if drawn else []
    more = {"stroke_dasharray": dash} if dash else {}
    return element("path", d="".join(steps), class_=class_, **more) if steps else ""


def _line_key(index: int, dash: str) -> str:
    return line(-15.0, 0.0, 15.0, 0.0, f"line {color(index)}", dash) + marker(index, 0.0, 0.0)


def _describe_lines(series: Mapping[str, Sequence[Value]], x_label: str, y_label: str) -> str:
    parts = [f"Lines of {y_label} over {x_label}."]
    for name, points in series.items():
        values = [(x, y) for x, y in points if y is not None]
        if values:
            (x0, y0), (x1, y1) = values[0], values[-1]
            parts.append(f"{name}: from {number(y0)} at {number(x0)} to {number(y1)} at {number(x1)}.")
        else:
            parts.append(f"{name}: nothing to draw.")
    return " ".join(parts)
