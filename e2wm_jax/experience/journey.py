"""A trajectory as a walk over its home: which room each thing is in when a step is about it."""

from dataclasses import dataclass, field
from pathlib import Path

from e2wm_jax.errors import InputError
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.report import Plan, Stop, Thing, details, heading, paragraph, trajectory, walk_map
from e2wm_jax.report.figure import Box
from e2wm_jax.storage.files import read_json
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.graph import Scene
from e2wm_jax.worlds.household.homes import scenes

_HANDS = ("HOLDS_RH", "HOLDS_LH")
_MOST_STEPS = 15  # of a map, or its ways are a tangle; the list has all


def journey(found: Trajectory) -> list[str]:
    """Blocks: the trajectory's id, its task and goal, its walk over the rooms of its scene, its steps as a list."""
    blocks = [heading(found.id)]
    if found.task or found.goal:
        goal = f"Goal: {'; '.join(found.goal).replace(' ||', '')}." if found.goal else ""
        reached = f" Reached: {len(found.achieved)} of {len(found.goal)}." if found.goal else ""
        blocks.append(paragraph(f"{found.task or 'no task'}. {goal}{reached}"))
    title = f"{found.task or found.policy} ({found.scene.rpartition('/')[2]})"
    try:
        scene = scenes.load(found.scene)
    except (InputError, OSError) as error:
        blocks.append(paragraph(f"The scene cannot be opened, so its rooms are not drawn: {error}"))
    else:
        blocks.append(walk(found, scene, title=title))
        if len(found.steps) > _MOST_STEPS:
            blocks.append(paragraph(f"The map shows the first {_MOST_STEPS} of {len(found.steps)} steps."))
    steps = trajectory([(step.action, step.ok) for step in found.steps], title=title)
    return [*blocks, details("Every step", steps)]


def walk(found: Trajectory, scene: Scene, *, title: str) -> str:
    """The steps of a trajectory over the rooms of its scene."""
    rooms = [node.id for node in scene.nodes.values() if node.is_room]
    state = _State(scene, {room: n for n, room in enumerate(rooms)})
    start = state.thing(scene.character.id, "start")
    if start is not None:
        state.at[0] = start
    stops = []
    for step in found.steps[:_MOST_STEPS]:
        stops.append(state.stop(step))
        state.change(step)
    names = _numbered([scene.nodes[room].class_name for room in rooms])
    boxes = _bounding_boxes(scene.name)
    known = rooms and all(room in boxes for room in rooms)
    plan = _plan(state, [boxes[room] for room in rooms], boxes) if known else None
    doors = _doors(scene, state.number)
    return walk_map(names, state.things, stops, title=title, doors=doors, plan=plan, start=start)


def _bounding_boxes(scene: str) -> dict[int, Box]:
    """What each node covers of the floor, seen from above, where the scene is a file that says so (as Unity does)."""
    path = Path(scene)
    graph = read_json(path) if path.is_file() else {}
    found = {}
    for node in graph.get("init_graph", graph).get("nodes", ()):
        box = node.get("bounding_box")
        if isinstance(box, dict) and all(len(box.get(key) or ()) == 3 for key in ("center", "size")):
            (x, _, z), (width, _, depth) = box["center"], box["size"]
            found[int(node["id"])] = (x - width / 2, z - depth / 2, x + width / 2, z + depth / 2)
    return found


def _plan(state: "_State", rooms: list[Box], boxes: dict[int, Box]) -> Plan:
    """Things where they were at first; one that was carried to another room stands in the middle of that."""

    def middle(box: Box) -> tuple[float, float]:
        return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2

    at = [
        middle(boxes[node]) if node in boxes and state.first.get(node, room) == room else middle(rooms[room])
        for node, room in state.index
    ]
    return Plan(rooms, at)


@dataclass
class _State:
    """Where everything is, and who stands at which thing, as the steps go on."""

    scene: Scene
    number: dict[int, int]  # room id -> its number
    things: list[Thing] = field(default_factory=list)
    index: dict[tuple[int, int], int] = field(default_factory=dict)  # (id, room number) -> thing
    at: dict[int, int] = field(default_factory=dict)  # actor -> thing

    def __post_init__(self) -> None:
        self.room = {a: self.number[b] for a, relation, b in self.scene.edges if _places(relation, b, self.number)}
        self.first = dict(self.room)
        self.held = {b for _, relation, b in self.scene.edges if relation in _HANDS}

    def thing(self, node: int, name: str) -> int | None:
        """The index of a thing as it stands now; None where nobody knows in which room."""
        room = self.number.get(node, self.room.get(node))
        if room is None:
            return None
        if (node, room) not in self.index:
            self.index[node, room] = len(self.things)
            self.things.append(Thing("" if node in self.number else name, room))
        return self.index[node, room]

    def stop(self, step: Step) -> Stop:
        """Where a step takes place: at its last object, or, with that in hand or without any, where the agent is."""
        verb, objects = _parts(step.action)
        said = [verb, *(name for name, _ in objects)]
        here = self.at.get(step.actor)
        if objects and objects[-1][1] not in self.held and (there := self.thing(objects[-1][1], said[-1])) is not None:
            here, said = there, said[:-1]
        if step.ok and here is not None:
            self.at[step.actor] = here
        return Stop(" ".join(said), here, step.ok, step.actor)

    def change(self, step: Step) -> None:
        """Take over what the step has changed."""
        self.held -= {b for _, relation, b in step.edges_removed if relation in _HANDS}
        self.held |= {b for _, relation, b in step.edges_added if relation in _HANDS}
        self.room |= {a: self.number[b] for a, relation, b in step.edges_added if _places(relation, b, self.number)}


def _places(relation: str, target: int, rooms: dict[int, int]) -> bool:
    return relation == "INSIDE" and target in rooms


def _parts(action: str) -> tuple[str, list[tuple[str, int]]]:
    try:
        found = parse_action(action)
    except InputError:  # of another program's making
        return action, []
    return found.verb, [(one.name, one.id) for one in found.things]


def _doors(scene: Scene, rooms: dict[int, int]) -> list[tuple[int, int]]:
    """Pairs of rooms with a door BETWEEN them."""
    sides: dict[int, set[int]] = {}
    for door, relation, room in scene.edges:
        if relation == "BETWEEN" and room in rooms:
            sides.setdefault(door, set()).add(rooms[room])
    return sorted({(min(pair), max(pair)) for pair in sides.values() if len(pair) == 2})


def _numbered(names: list[str]) -> list[str]:
    """Names told apart: "bedroom", "bedroom 2"."""
    return [name if (n := names[: i + 1].count(name)) == 1 else f"{name} {n}" for i, name in enumerate(names)]
