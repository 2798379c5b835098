"""RobotHow's activities in other scenes: what a program needs is put there.

As in VirtualHome's own preparation, objects that the program uses are added where the scene lacks them (where they
are in the program: in the room, on or in the furniture of that class), things are in the states that the program
expects, and the character starts in the room where the program starts. Furniture is never added. A prepared scene
has the name ``<scene>+robothow:<program>`` and follows from it alone.
"""

from dataclasses import dataclass, replace

from e2wm_jax.errors import InputError
from e2wm_jax.worlds.household.changes import Edge
from e2wm_jax.worlds.household.graph import Node, Scene
from e2wm_jax.worlds.household.homes.robothow import ROBOTHOW, Program

PREPARED = f"+{ROBOTHOW}"  # scene + this + program: the name of the prepared scene
_ADDED = "placable_objects"  # the category of what VirtualHome's preparation adds
_FIRST_ADDED = 1000  # their ids begin here


class Untransferable(InputError):
    """The activity cannot take place in the scene: the message says what it lacks."""


@dataclass(frozen=True)
class Preparation:
    """A prepared scene, and who plays what in it: nodes of the program to nodes of the scene, rooms included."""

    scene: Scene
    program: Program
    roles: dict[int, int]
    named: tuple[int, ...]  # the roles that the script names


def prepare(scene: Scene, program: Program) -> Preparation:
    """Make a scene ready for a program.

    Raises:
        Untransferable: if the program needs furniture or a room that the scene does not have.
    """
    init = program.init
    named = sorted({thing.id for action in program.script for thing in action.things} & init.nodes.keys())
    things = [init.nodes[node] for node in named if not init.nodes[node].is_room and node != init.character.id]
    roles = _cast_rooms(scene, init, things, [node for node in named if init.nodes[node].is_room])
    roles[init.character.id] = scene.character.id
    room_of, home = _rooms(scene), _rooms(init)
    added: dict[int, Node] = {}
    free = max(_FIRST_ADDED, max(scene.nodes) + 1)
    for thing in things:
        wanted = roles.get(home.get(thing.id, -1))
        players = [node.id for node in scene.by_class.get(thing.class_name, ()) if node.id not in roles.values()]
        if players:
            roles[thing.id] = next((player for player in players if room_of.get(player) == wanted), players[0])
        elif _is_addable(thing):
            roles[thing.id] = free + len(added)
            added[thing.id] = replace(thing, id=roles[thing.id])
        else:
            raise Untransferable(f"{scene.name}: the program needs a {thing.class_name}, and the scene has none")
    nodes = dict(scene.nodes) | {node.id: node for node in added.values()}
    for role in (*things, init.character):
        nodes[roles[role.id]] = replace(nodes[roles[role.id]], states=role.states)
    kept = (edge for edge in scene.edges if scene.character.id not in (edge[0], edge[2]))
    start = (scene.character.id, "INSIDE", roles[home[init.character.id]])
    edges = (*kept, start, *_edges_of_added(init, roles, added, room_of))
    return Preparation(Scene(scene.name, nodes, edges), program, roles, tuple(named))


def _cast_rooms(scene: Scene, init: Scene, things: list[Node], named: list[int]) -> dict[int, int]:
    """For every room that the program needs the one of the scene that has most of the furniture used there; among
    equals, one of the same name, or the one most like it."""
    home, inside, inside_init = _rooms(init), _classes(scene), _classes(init)
    roles = {}
    for role in sorted({home[node.id] for node in (*things, init.character) if node.id in home}.union(named)):
        name = init.nodes[role].class_name
        furniture = {node.class_name for node in things if home.get(node.id) == role and not _is_addable(node)}
        scores = {
            room: (len(classes & furniture), scene.nodes[room].class_name == name, len(classes & inside_init[role]))
            for room, classes in inside.items()
        }
        best = max(scores, key=lambda room: scores[room], default=None)
        if best is None or scores[best][:2] == (0, False):
            raise Untransferable(f"{scene.name}: the program needs a {name}, and the scene has none")
        roles[role] = best
    return roles


def _edges_of_added(init: Scene, roles: dict[int, int], added: dict[int, Node], room_of: dict[int, int]) -> list[Edge]:
    """The program's edges between what was added and what plays a role, and the room of each added node: that of
    what it is in, on or near, otherwise that of the program."""
    home = _rooms(init)
    edges = [
        edge
        for edge in init.edges
        if (edge[0] in added or edge[2] in added)
        and {edge[0], edge[2]} <= roles.keys()
        and not init.nodes[edge[2]].is_room
    ]
    rooms = {}
    for node in added:
        near = [edge[2] for relation in ("INSIDE", "ON", "CLOSE") for edge in edges if edge[:2] == (node, relation)]
        rooms[node] = next((room_of[roles[role]] for role in near if roles[role] in room_of), roles[home[node]])
    return [
        *((roles[node], "INSIDE", room) for node, room in rooms.items()),
        *((roles[source], relation, roles[target]) for source, relation, target in edges),
    ]


def _is_addable(node: Node) -> bool:
    return node.category == _ADDED or "GRABBABLE" in node.properties


def _rooms(scene: Scene) -> dict[int, int]:
    """Node to the room that it is directly in."""
    return {
        source: target
        for source, relation, target in scene.edges
        if relation == "INSIDE" and scene.nodes[target].is_room
    }


def _classes(scene: Scene) -> dict[int, set[str]]:
    """Room to the classes of what is in it."""
    inside: dict[int, set[str]] = {node.id: set() for node in scene.nodes.values() if node.is_room}
    for node, room in _rooms(scene).items():
        inside[room].add(scene.nodes[node].class_name)
    return inside
