"""A walk over a floor plan: rooms and things where they really are, seen from above.

For homes whose scenes know coordinates; `room_map` draws those that do not.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from e2wm_jax.report.drawing import GLYPH, LINE, WIDTH, color, element, empty, line, shorten, width_of, words
from e2wm_jax.report.points import LONGEST, Box, Place, boxes_along, labels
from e2wm_jax.report.room_map import FAILED, Stop, Thing, describe, with_persons

_ROUND, _EDGE = 4.5, 5.0
_TALLEST = 1.6  # of a drawing, times its width
Way = tuple[Place, Place, str]


@dataclass(frozen=True)
class Plan:
    """Where rooms and things are, in the world's units: x to the right, y upwards on the page."""

    rooms: Sequence[Box]  # (least x, least y, greatest x, greatest y) of each room
    things: Sequence[Place]  # of each thing


def floor_plan(
    rooms: Sequence[str],
    things: Sequence[Thing],
    stops: Sequence[Stop],
    plan: Plan,
    *,
    title: str,
    start: int | None = None,
) -> str:
    """The rooms of ``plan`` to scale and the way of ``stops`` between the things in them, each with its steps."""
    if not rooms:
        return empty(title)
    height, place = _scale(plan)
    at = [place(point) for point in plan.things]
    boxes = [(*place((left, high)), *place((right, low))) for left, low, right, high in plan.rooms]
    ways = list(_ways(stops, at, start))
    body = [_room(name, box, height) for name, box in zip(rooms, boxes, strict=True)]
    body += [part for way in ways for part in _arrow(*way)]
    for n, (x, y) in enumerate(at):
        body.append(element("circle", cx=x, cy=y, r=_ROUND, class_="start" if n == start else "stop"))
    taken = [box for a, b, _ in ways for box in boxes_along(a, b)] + [(x - 6, y - 6, x + 6, y + 6) for x, y in at]
    taken += [(x, y, x + GLYPH * len(name) + 6, y + LINE) for name, (x, y, _, _) in zip(rooms, boxes, strict=True)]
    names = [_name(n, thing, stops) for n, thing in enumerate(things)]
    body += labels(names, at, taken, (0.0, 0.0, WIDTH, height))
    return with_persons(title, describe(rooms, things, stops), height, "".join(body), stops)


def _scale(plan: Plan) -> tuple[float, Callable[[Place], Place]]:
    """The height of the drawing, and where a point of the world stands in it."""
    low_x, low_y = (min(box[n] for box in plan.rooms) for n in (0, 1))
    high_x, high_y = (max(box[n] for box in plan.rooms) for n in (2, 3))
    wide, tall = max(high_x - low_x, 1e-9), max(high_y - low_y, 1e-9)
    unit = min((WIDTH - 2 * _EDGE) / wide, (_TALLEST * WIDTH - 2 * _EDGE) / tall)
    height = max(unit * tall, 3 * LINE) + 2 * _EDGE

    def place(point: Place) -> Place:
        x, y = _EDGE + unit * (point[0] - low_x), _EDGE + unit * (high_y - point[1])
        return min(max(x, _EDGE), WIDTH - _EDGE), min(max(y, _EDGE), height - _EDGE)

    return height, place


def _room(name: str, box: Box, height: float) -> str:
    left, top, right, bottom = box
    frame = element("rect", x=left, y=top, width=max(right - left, 1.0), height=max(bottom - top, 1.0), class_="room")
    room = max(right - left - 8, 3 * GLYPH)  # for the name: that of a room without an extent stands beside it
    x, y = min(left + 6, WIDTH - _EDGE - room), min(top + LINE - 3, height - _EDGE)
    return frame + words(x, y, shorten(name, room), class_="room-name")


def _ways(stops: Sequence[Stop], at: Sequence[Place], start: int | None) -> Iterator[Way]:
    last = {} if start is None else {0: start}
    for stop in stops:
        if stop.ok and stop.thing is not None:
            before = last.get(stop.actor, stop.thing)
            if math.dist(at[before], at[stop.thing]) > 3 * _ROUND:
                yield at[before], at[stop.thing], color(stop.actor)
            last[stop.actor] = stop.thing


def _arrow(start: Place, end: Place, color_: str) -> tuple[str, str]:
    length = math.dist(start, end)
    dx, dy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    x, y = end[0] - (_ROUND + 1.5) * dx, end[1] - (_ROUND + 1.5) * dy
    wings = [(x - 7 * dx - side * 3.2 * dy, y - 7 * dy + side * 3.2 * dx) for side in (1, -1)]
    head = "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in (wings[0], (x, y), wings[1])) + "z"
    return line(*start, x - 3 * dx, y - 3 * dy, f"way {color_}"), element("path", d=head, class_=f"way-head {color_}")


def _name(number: int, thing: Thing, stops: Sequence[Stop]) -> str:
    """A thing and its steps, of the room itself only the steps; where there is no room for verbs, their numbers."""
    here = [(str(n), stop) for n, stop in enumerate(stops, start=1) if stop.thing == number]
    marks = ["" if stop.ok else f" {FAILED}" for _, stop in here]
    full = ", ".join(f"{n} {stop.text}{mark}" for (n, stop), mark in zip(here, marks, strict=True))
    short = ", ".join(f"{n}{mark}" for (n, _), mark in zip(here, marks, strict=True))
    names = (f"{thing.name} {steps}".strip() for steps in (full, short))
    return next((name for name in names if width_of(name) <= WIDTH * LONGEST), f"{thing.name} {short}".strip())
