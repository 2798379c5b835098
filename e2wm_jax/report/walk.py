"""A walk through a home: its rooms, in each the things that are touched, and the way from thing to thing.

Rooms of scenes with coordinates stand where they are, seen from above. Others stand in two columns, neighbors by a
door beside each other where that can be; the things of both columns face the corridor between them, and all ways run
there: none crosses a name. Every step stands, with its number, at the thing it is about.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from e2wm_jax.report.figure import (
    COLOR,
    GLYPH,
    LINE,
    SERIES,
    WIDTH,
    Box,
    Place,
    arrow,
    boxes_along,
    drawn,
    empty,
    finish,
    key,
    name,
    place_names,
    sheet,
    shorten,
    width_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAILED = "\u2717"
Way = tuple[Place, Place, int]  # from, to, of which person
_GAP, _CORRIDOR, _ROUND = 16.0, 44.0, 4.5
_COLUMN = WIDTH / 2 - _CORRIDOR - 20  # of text
_TALLEST = 1.6  # of a floor plan, times its width


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


@dataclass(frozen=True)
class Plan:
    """Where rooms and things are, in the world's units: x to the right, y upwards on the page."""

    rooms: Sequence[Box]  # (least x, least y, greatest x, greatest y) of each room
    things: Sequence[Place]  # of each thing


@drawn
def walk_map(
    rooms: Sequence[str],
    things: Sequence[Thing],
    stops: Sequence[Stop],
    *,
    title: str,
    doors: Sequence[tuple[int, int]] = (),
    plan: Plan | None = None,
    start: int | None = None,
) -> str:
    """Rooms as boxes with the things in them and the way of ``stops`` between these, from the thing ``start`` on.

    With a ``plan`` they are to scale. Without one ``doors`` join rooms (by index); a door is drawn where its rooms have
    come to stand beside each other.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    if not rooms:
        return empty(title)
    axes, boxes, at = _to_scale(plan) if plan else _columns(rooms, things, stops, doors)
    actors = sorted({stop.actor for stop in stops})
    key(axes, {_person(n): Line2D([], [], color=_color(n)) for n in actors} if len(actors) > 1 else {})
    for left, low, right, high in boxes:
        box = Rectangle((left, low), right - left, high - low, fc=COLOR["tint"], ec=COLOR["faint"], lw=1, zorder=0)
        name(axes.add_patch(box), "room")
    ways = list(_ways(stops, at, start))
    for a, b, actor in ways:
        curve = f"arc3,rad={0.0 if plan else _bend(a, b):.3f}"
        arrow(axes, a, b, "-|>", (0, _ROUND + 1), color=_color(actor), alpha=0.75, lw=1.4, connectionstyle=curve)
    for n, (x, y) in enumerate(at):
        face, edge = (COLOR["paper"], 1.5) if n == start else (COLOR["ink"], 0.0)
        dot = axes.plot(x, y, "o", ms=2 * _ROUND, mfc=face, mec=COLOR["ink"], mew=edge)[0]
        name(dot, "start" if n == start else "stop")
    if plan:
        _name_places(axes, rooms, boxes, [_name(n, thing, stops) for n, thing in enumerate(things)], at, ways)
    return finish(axes, title, _describe(rooms, things, stops, () if plan else doors))


def _ways(stops: Sequence[Stop], at: Sequence[Place], start: int | None) -> Iterator[Way]:
    """The way of each person from thing to thing; steps that failed lead nowhere."""
    last = {} if start is None else {0: start}
    for stop in stops:
        if stop.ok and stop.thing is not None:
            before = last.get(stop.actor, stop.thing)
            if at[before] != at[stop.thing]:
                yield at[before], at[stop.thing], stop.actor
            last[stop.actor] = stop.thing


def _bend(start: Place, end: Place) -> float:
    """Of a way between two columns of things: inwards, so that none crosses what stands at another thing."""
    inward, downward = (1 if start[0] < WIDTH / 2 else -1), (-1 if end[1] > start[1] else 1)
    return inward * downward * min(0.4, 60 / math.dist(start, end))


def _color(actor: int) -> str:
    return COLOR[f"c{actor % SERIES}"]


def _person(actor: int) -> str:
    return f"person {actor + 1}"


# --- rooms in two columns --------------------------------------------------------------------------------------------


def _columns(
    rooms: Sequence[str], things: Sequence[Thing], stops: Sequence[Stop], doors: Sequence[tuple[int, int]]
) -> tuple["Axes", list[Box], list[Place]]:
    """A sheet with all texts and doors, the boxes of the rooms, and where the things are; y is downwards."""
    boxes: dict[int, Box] = {}
    at: dict[int, Place] = {}
    texts: list[tuple[float, float, str, str, str]] = []  # x, y, what is said, from which side, of which class
    cells, top = _arrange(len(rooms), doors), 2.0
    for row in range(0, len(cells), 2):
        bottom = top
        for column, room in enumerate(cells[row : row + 2]):
            dot = WIDTH / 2 + (_CORRIDOR if column else -_CORRIDOR)
            x, side = (dot + 13, "left") if column else (dot - 13, "right")
            texts.append((x, top + 18, shorten(rooms[room], _COLUMN), side, "room-name"))
            y = top + 26
            inside = [n for n, thing in enumerate(things) if thing.room == room]
            for n in sorted(inside, key=lambda n: bool(things[n].name)):
                at[n] = (dot, y + 12 if things[n].name else top + 13)
                lines = [(shorten(things[n].name, _COLUMN), "name")] if things[n].name else []
                for line, class_ in [*lines, *_steps_at(n, stops)]:
                    y += LINE
                    texts.append((x, y - 2, line, side, class_))
                y += 6
            bottom = max(bottom, y + 4)
        for column, room in enumerate(cells[row : row + 2]):
            left = column * (WIDTH + _GAP) / 2
            boxes[room] = (left, top, left + (WIDTH - _GAP) / 2, bottom)
        top = bottom + _GAP
    axes = sheet(top - _GAP + 2)
    for x, y, line, side, class_ in texts:
        color = COLOR[{"failed": "failed", "step": "soft"}.get(class_, "ink")]
        name(axes.text(x, y, line, ha=side, color=color, weight=700 if class_ == "room-name" else 400), class_)
    for xs, ys in (_door(boxes[a], boxes[b]) for a, b in doors):
        name(axes.plot(xs, ys, color=COLOR["soft"], alpha=0.5, lw=3)[0], "door")
    return axes, [boxes[n] for n in range(len(rooms))], [at[n] for n in range(len(things))]


def _arrange(count: int, doors: Sequence[tuple[int, int]]) -> list[int]:
    """The order of the rooms in two columns: swapped until no swap brings rooms with a door closer together."""

    def cost(order: list[int]) -> float:
        cell = {room: divmod(n, 2) for n, room in enumerate(order)}
        return sum(math.dist(cell[a], cell[b]) ** 2 for a, b in doors)

    order, before = list(range(count)), None
    while order != before:
        before = order
        pairs = itertools.combinations(range(count), 2)
        swaps = ([{a: b, b: a}.get(room, room) for room in before] for a, b in pairs)
        order = min([before, *swaps], key=lambda one: round(cost(one), 6))
    return order


def _steps_at(thing: int, stops: Sequence[Stop]) -> list[tuple[str, str]]:
    """The steps at a thing as lines of (text, class), each as long as a column is wide; what failed stands alone."""
    lines: list[tuple[str, str]] = []
    for number, stop in enumerate(stops, start=1):
        if stop.thing != thing:
            continue
        text = shorten(f"{number} {stop.text}", _COLUMN - (0 if stop.ok else 20)) + ("" if stop.ok else f" {FAILED}")
        joined = f"{lines[-1][0]}, {text}" if lines else ""
        if stop.ok and lines and lines[-1][1] == "step" and width_of(joined) <= _COLUMN:
            lines[-1] = (joined, "step")
        else:
            lines.append((text, "step" if stop.ok else "failed"))
    return lines


def _door(one: Box, other: Box) -> tuple[list[float], list[float]]:
    """An opening between two boxes that stand beside or above each other; nothing between others."""
    a, b = sorted((one, other))
    if a[1] == b[1]:
        return [a[2], b[0]], [a[1] + 13] * 2
    (left, _, right, y), (_, below, _, _) = sorted((a, b), key=lambda box: box[1])
    if a[0] == b[0] and abs(below - y - _GAP) < 1:
        return [left + 24 if left == 0 else right - 24] * 2, [y, below]
    return [], []


# --- rooms where they are --------------------------------------------------------------------------------------------


def _to_scale(plan: Plan) -> tuple["Axes", Sequence[Box], list[Place]]:
    """Axes in the world's units, the same for x and y; what lies outside of the rooms stands at the edge."""
    (left, low), (right, high) = np.min(plan.rooms, axis=0)[:2], np.max(plan.rooms, axis=0)[2:]
    unit = min((WIDTH - 10) / max(right - left, 1e-6), _TALLEST * WIDTH / max(high - low, 1e-6))
    height, edge = max(unit * (high - low), 3 * LINE) + 10, 5 / unit
    axes = sheet(height)
    axes.set(xlim=(left - edge, left - edge + WIDTH / unit), ylim=(high + edge - height / unit, high + edge))
    return axes, plan.rooms, [(min(max(x, left), right), min(max(y, low), high)) for x, y in plan.things]


def _name_places(
    axes: "Axes",
    rooms: Sequence[str],
    boxes: Sequence[Box],
    names: Sequence[str],
    at: Sequence[Place],
    ways: Sequence[Way],
) -> None:
    """The rooms' names in their corners, the things' where they cover nothing."""
    place = axes.transData.transform
    taken = [box for a, b, _ in ways for box in boxes_along(*place([a, b]).tolist())]
    taken += [(x - 6, y - 6, x + 6, y + 6) for x, y in place(at).tolist()] if at else []
    for room, (left, _, right, high) in zip(rooms, boxes, strict=True):
        (x, y), (end, _) = place([(left, high), (right, high)]).tolist()
        text = shorten(room, max(end - x - 8, 3 * GLYPH))  # the name of a room without an extent stands beside it
        x, y = min(x + 6, WIDTH - width_of(text)), max(y - LINE + 4, 4)
        taken.append((x, y - 4, x + width_of(text), y + LINE - 5))
        label = axes.annotate(text, (x, y), xycoords="figure pixels", color=COLOR["ink"], weight=700)
        name(label, "room-name")
    found = [(text, (x, y)) for text, (x, y) in zip(names, place(at).tolist() if at else [], strict=True)]
    place_names(axes, found, taken, (0, 0, WIDTH, axes.bbox.y1))


def _name(number: int, thing: Thing, stops: Sequence[Stop]) -> str:
    """A thing and its steps, of the room itself only the steps; where there is no room for verbs, their numbers."""
    here = [(str(n), stop) for n, stop in enumerate(stops, start=1) if stop.thing == number]
    marks = ["" if stop.ok else f" {FAILED}" for _, stop in here]
    full = ", ".join(f"{n} {stop.text}{mark}" for (n, stop), mark in zip(here, marks, strict=True))
    short = ", ".join(f"{n}{mark}" for (n, _), mark in zip(here, marks, strict=True))
    name = f"{thing.name} {full}".strip()
    return name if width_of(name) <= WIDTH * 0.6 else f"{thing.name} {short}".strip()


def _describe(
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
