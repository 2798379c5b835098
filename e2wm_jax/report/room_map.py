"""A walk through a home: its rooms as boxes, in each the things that are touched, and the way from thing to thing.

Rooms without coordinates stand in two columns, neighbors by a door beside each other where that can be. The things of
both columns face the corridor between them, and all ways run there: none crosses a name. Every step stands, with its
number, at the thing it is about.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from e2wm_jax.report.drawing import (
    GLYPH,
    LINE,
    WIDTH,
    color,
    element,
    empty,
    escape,
    figure,
    legend,
    line,
    shorten,
)

Place = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
FAILED = "\u2717"
_GAP, _CORRIDOR, _HEAD, _ROUND = 16.0, 44.0, 25.0, 4.5


@dataclass(frozen=True)
class Thing:
    """Something that steps are about; without a name, the room itself."""

    name: str
    room: int  # index into the rooms


@dataclass(frozen=True)
class Stop:
    """One step of the walk: what is done, at which thing (by index), and whether it worked; who failed goes nowhere.

    A step of which nobody knows where it took place has no thing; it is counted and not drawn.
    """

    text: str
    thing: int | None
    ok: bool = True
    actor: int = 0


def room_map(
    rooms: Sequence[str],
    things: Sequence[Thing],
    stops: Sequence[Stop],
    *,
    title: str,
    doors: Sequence[tuple[int, int]] = (),
    start: int | None = None,
) -> str:
    """Rooms as boxes with the things in them and the way of ``stops`` between these, from the thing ``start`` on.

    ``doors`` join rooms (by index); one is drawn where its rooms have come to stand beside each other.
    """
    if not rooms:
        return empty(title)
    cells = _arrange(len(rooms), doors)
    said = {n: _steps_at(n, stops) for n in range(len(things))}
    boxes: dict[int, Box] = {}
    at: dict[int, Place] = {}
    parts = []
    top = 2.0
    for row in range(math.ceil(len(rooms) / 2)):
        inside = {room: [n for n, t in enumerate(things) if t.room == room] for room in cells[2 * row : 2 * row + 2]}
        height = max(sum(_height(things[n], said[n]) for n in found) for found in inside.values()) + _HEAD + 6
        for column, (room, found) in enumerate(inside.items()):
            boxes[room] = _box(column, top, height)
            texts, places = _furnish(rooms[room], [(n, things[n], said[n]) for n in found], column, top)
            parts.append(texts)
            at |= places
        top += height + _GAP
    frames = [
        element("rect", x=left, y=upper, width=right - left, height=lower - upper, rx=4, class_="room")
        for left, upper, right, lower in boxes.values()
    ]
    gates = [_door(boxes[a], boxes[b]) for a, b in doors]
    ways = _ways(stops, at, {} if start is None else {0: start})
    dots = [_dot(x, y, "start" if n == start else "stop") for n, (x, y) in at.items()]
    body = [*frames, *gates, *ways, *dots, *parts]
    return with_persons(title, describe(rooms, things, stops, doors), top - _GAP + 2, "".join(body), stops)


def with_persons(title: str, description: str, height: float, body: str, stops: Sequence[Stop]) -> str:
    """The finished map; where several persons walk, under a key that says whose way has which color."""
    actors = sorted({stop.actor for stop in stops})
    if len(actors) < 2:
        return figure(title, description, height, body)
    keys = [(line(-15.0, 0.0, 15.0, 0.0, f"line {color(actor)}"), _person(actor)) for actor in actors]
    head, used = legend(keys, 13.0)
    moved = element("g", body, transform=f"translate(0 {used + 6:.1f})")
    return figure(title, description, height + used + 6, head + moved)


def _person(actor: int) -> str:
    return f"person {actor + 1}"


def _arrange(count: int, doors: Sequence[tuple[int, int]]) -> list[int]:
    """The order of the rooms in two columns: swapped until no swap brings rooms with a door closer together."""

    def cost(order: list[int]) -> float:
        cell = {room: divmod(n, 2) for n, room in enumerate(order)}
        return sum(math.dist(cell[a], cell[b]) ** 2 for a, b in doors)

    order, best = list(range(count)), cost(list(range(count)))
    while True:
        swaps = []
        for a, b in itertools.combinations(range(count), 2):
            other = order.copy()
            other[a], other[b] = other[b], other[a]
            swaps.append((cost(other), other))
        lowest = min(swaps, default=(best, order))
        if lowest[0] >= best - 1e-9:
            return order
        best, order = lowest


def _box(column: int, top: float, height: float) -> Box:
    left = column * (WIDTH + _GAP) / 2
    return (left, top, left + (WIDTH - _GAP) / 2, top + height)


def _steps_at(thing: int, stops: Sequence[Stop]) -> list[list[tuple[str, bool]]]:
    """The steps at a thing as lines of (text, whether it worked), each line as long as the column is wide."""
    room = int((WIDTH / 2 - _CORRIDOR - 20) / GLYPH)
    lines: list[list[tuple[str, bool]]] = []
    for number, stop in enumerate(stops, start=1):
        if stop.thing != thing:
            continue
        text = shorten(f"{number} {stop.text}{'' if stop.ok else ' ' + FAILED}", room * GLYPH)
        if lines and sum(len(one) + 2 for one, _ in lines[-1]) + len(text) <= room:
            lines[-1].append((text, stop.ok))
        else:
            lines.append([(text, stop.ok)])
    return lines


def _height(thing: Thing, said: list[list[tuple[str, bool]]]) -> float:
    return LINE * (len(said) + bool(thing.name)) + (7 if thing.name else 0)


def _furnish(
    room: str, found: list[tuple[int, Thing, list[list[tuple[str, bool]]]]], column: int, top: float
) -> tuple[str, dict[int, Place]]:
    """The texts in a room, and where the dots of its things are; the room itself comes first."""
    dot = WIDTH / 2 + _CORRIDOR * (1 if column else -1)
    text_x, anchor = (dot + 13, "start") if column else (dot - 13, "end")
    fits = WIDTH / 2 - _CORRIDOR - 18
    parts, at, y = [_text(text_x, top + 17, shorten(room, fits), anchor, "room-name")], {}, top + _HEAD
    for number, thing, said in sorted(found, key=lambda one: bool(one[1].name)):
        if thing.name:
            y += 6
            parts.append(_text(text_x, y + 12, shorten(thing.name, fits), anchor, "name"))
        at[number] = (dot, y + 8 if thing.name else top + 13)
        y += LINE if thing.name else 0
        for row in said:
            parts.append(_steps(text_x, y + 11, row, anchor))
            y += LINE
        y += 1 if thing.name else 0
    return "".join(parts), at


def _text(x: float, y: float, text: str, anchor: str, class_: str) -> str:
    return element("text", escape(text), x=x, y=y, text_anchor=anchor, class_=class_)


def _steps(x: float, y: float, row: list[tuple[str, bool]], anchor: str) -> str:
    spans = [escape(text) if ok else element("tspan", escape(text), class_="failed") for text, ok in row]
    return element("text", ", ".join(spans), x=x, y=y, text_anchor=anchor, class_="label")


def _door(one: Box, other: Box) -> str:
    """An opening between two boxes that stand beside or above each other; nothing between others."""
    if one[1] == other[1]:
        y, left = one[1] + 13, min(one[2], other[2])
        return line(left, y, left + _GAP, y, "door")
    upper, lower = sorted((one, other), key=lambda box: box[1])
    if upper[0] == lower[0] and abs(lower[1] - upper[3] - _GAP) < 1:
        x = upper[0] + 24 if upper[0] == 0 else upper[2] - 24
        return line(x, upper[3], x, lower[1], "door")
    return ""


def _dot(x: float, y: float, class_: str) -> str:
    return element("circle", cx=x, cy=y, r=_ROUND, class_=class_)


def _ways(stops: Sequence[Stop], at: dict[int, Place], last: dict[int, int]) -> list[str]:
    """The way of each person from thing to thing, on from the ``last``; steps that failed lead nowhere."""
    ways: list[str] = []
    for stop in stops:
        if stop.ok and stop.thing is not None:
            if (before := last.get(stop.actor, stop.thing)) != stop.thing:
                ways += _way(at[before], at[stop.thing], color(stop.actor))
            last[stop.actor] = stop.thing
    return ways


def _way(start: Place, end: Place, color_: str) -> list[str]:
    """A curve through the corridor, with a point at its end."""
    (x1, y1), (x2, y2) = start, end
    inward = 1 if x1 < WIDTH / 2 else -1
    if x1 == x2:
        reach = x1 + inward * min(18 + 0.22 * abs(y2 - y1), _CORRIDOR + 12)
        c1, c2 = (reach, y1), (reach, y2)
    else:
        c1, c2 = (WIDTH / 2, y1), (WIDTH / 2, y2)
    side = 1 if c2[0] > x2 else -1
    tip = x2 + side * (_ROUND + 1.5)
    curve = f"M{x1:.1f},{y1:.1f}C{c1[0]:.1f},{c1[1]:.1f} {c2[0]:.1f},{c2[1]:.1f} {tip + side * 3:.1f},{y2:.1f}"
    head = f"M{tip:.1f},{y2:.1f}l{side * 7},-3.2v6.4z"
    return [element("path", d=curve, class_=f"way {color_}"), element("path", d=head, class_=f"way-head {color_}")]


def describe(
    rooms: Sequence[str], things: Sequence[Thing], stops: Sequence[Stop], doors: Sequence[tuple[int, int]] = ()
) -> str:
    """The map in words."""
    parts = [f"Map of {len(rooms)} rooms: {', '.join(rooms)}."]
    if doors:
        parts.append(f"Doors: {', '.join(f'{rooms[a]} to {rooms[b]}' for a, b in doors)}.")
    several = len({stop.actor for stop in stops}) > 1
    for number, stop in enumerate(stops, start=1):
        where = "" if stop.thing is None else f" at {_where(things[stop.thing], rooms)}"
        who = f" by {_person(stop.actor)}" if several else ""
        parts.append(f"{number} {stop.text}{where}{who}{'' if stop.ok else ', failed'}.")
    return " ".join(parts)


def _where(thing: Thing, rooms: Sequence[str]) -> str:
    return f"{thing.name} in the {rooms[thing.room]}" if thing.name else rooms[thing.room]
