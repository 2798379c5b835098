"""The graph of a household, as VirtualHome writes it: nodes with states, edges between them, and the rules for both."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from graphlib import CycleError, TopologicalSorter
from operator import itemgetter
from reprlib import repr as shortly
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.worlds.household.changes import Edge

STATES = ("CLOSED", "OPEN", "ON", "OFF", "SITTING", "DIRTY", "CLEAN", "LYING", "PLUGGED_IN", "PLUGGED_OUT")
RELATIONS = ("ON", "INSIDE", "BETWEEN", "CLOSE", "FACING", "HOLDS_RH", "HOLDS_LH", "SITTING")
# fmt: off
PROPERTIES = (
    "SURFACES", "GRABBABLE", "SITTABLE", "LIEABLE", "HANGABLE", "DRINKABLE", "EATABLE", "RECIPIENT", "CUTTABLE",
    "POURABLE", "CAN_OPEN", "HAS_SWITCH", "READABLE", "LOOKABLE", "CONTAINERS", "CLOTHES", "PERSON", "BODY_PART",
    "COVER_OBJECT", "HAS_PLUG", "HAS_PAPER", "MOVABLE", "CREAM",
)
# fmt: on
CHARACTER = "character"
_EDGE_KEYS = itemgetter("from_id", "relation_type", "to_id")


@dataclass(frozen=True)
class Node:
    """One object, room or character of a scene."""

    id: int  # any integer
    class_name: str
    category: str | None
    properties: frozenset[str]
    states: frozenset[str]

    @property
    def is_room(self) -> bool:
        return self.category == "Rooms"


@dataclass(frozen=True)
class Scene:
    """The initial graph of a world. Nodes and edges keep the order of the file: VirtualHome's choices depend on it."""

    name: str
    nodes: Mapping[int, Node]
    edges: tuple[Edge, ...]

    def __eq__(self, other: object) -> bool:
        """Nodes in another order make another scene, where equal dicts do not look at the order."""
        if not isinstance(other, Scene):
            return NotImplemented
        same_nodes = [*self.nodes.values()] == [*other.nodes.values()]
        return self.name == other.name and same_nodes and self.edges == other.edges

    def __hash__(self) -> int:
        return hash((self.name, len(self.nodes), len(self.edges)))

    @cached_property
    def character(self) -> Node:
        """The one who acts; a scene has exactly one."""
        return self.by_class[CHARACTER][0]

    @cached_property
    def by_class(self) -> dict[str, tuple[Node, ...]]:
        """Class name to its nodes, in the order of the file."""
        groups: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            groups.setdefault(node.class_name, []).append(node)
        return {name: tuple(group) for name, group in groups.items()}


def parse_graph(graph: Any, name: str) -> Scene:
    """Check a VirtualHome graph, a dict with ``nodes`` and ``edges``, and turn it into a `Scene`.

    Equal nodes collapse, equal edges collapse; names of states, properties and relations may be written in any case.

    Raises:
        InputError: naming ``name`` and the first node or edge that breaks a rule.
    """
    if (
        not isinstance(graph, dict)
        or not isinstance(graph.get("nodes"), list)
        or not isinstance(graph.get("edges"), list)
    ):
        raise InputError(f'{name}: not a VirtualHome graph; expected {{"nodes": [...], "edges": [...]}}')
    try:
        edges_as_written = list(map(_EDGE_KEYS, graph["edges"]))
    except (TypeError, KeyError):
        edges_as_written = None
    if edges_as_written is not None and (scene := plain_scene(graph["nodes"], edges_as_written, name)):
        return scene
    nodes: dict[int, Node] = {}
    for position, record in enumerate(graph["nodes"]):
        _add_node(nodes, record, f"{name}: nodes[{position}]")
    edges = dict.fromkeys(
        _parse_edge(record, nodes, f"{name}: edges[{position}]") for position, record in enumerate(graph["edges"])
    )
    return _checked(Scene(name, nodes, tuple(edges)))


def plain_scene(nodes: list[Any], edges: list[Edge], name: str) -> Scene | None:
    """`parse_graph` of a graph in which nothing is to be corrected or refused, as in almost all; None for any other.

    It takes a fifth of the time, but could not say what is wrong where. Edges are (from, relation, to).

    Raises:
        InputError: if the world cannot be run in the scene.
    """
    known = _plain_nodes(nodes)
    if known is None or not _are_plain(edges, known):
        return None
    return _checked(Scene(name, known, tuple(dict.fromkeys(edges))))


def _are_plain(edges: list[Edge], nodes: Mapping[int, Node]) -> bool:
    # zip(*edges) would do this with an iterator for each edge, which the garbage collector then looks through.
    sources, relations, targets = ([edge[place] for edge in edges] for place in range(3))
    try:
        known = nodes.keys() >= {*sources, *targets} and {*relations} <= {*RELATIONS}
    except TypeError:  # a list cannot be in a set
        return False
    return known and {*map(type, sources), *map(type, targets)} <= {int}  # True and 1.0 equal 1, but are no ids


def _plain_nodes(records: list[Any]) -> dict[int, Node] | None:
    try:
        nodes = [
            _shared_node(r["id"], r["class_name"], r.get("category"), tuple(r["properties"]), tuple(r["states"]))
            for r in records
            if type(r["id"]) is int and type(r["class_name"]) is str
        ]
        found = {node.id: node for node in nodes}
        lists = all(type(r[key]) is list for r in records for key in ("properties", "states"))
    except (TypeError, KeyError, AttributeError, ValueError):
        return None
    return found if lists and len(found) == len(records) else None


@lru_cache(maxsize=1 << 14)
def _shared_node(
    number: int, class_name: str, category: str | None, properties: tuple[str, ...], states: tuple[str, ...]
) -> Node:
    """A node, the same object for each of the many scenes that it is in."""
    if not (category is None or type(category) is str) or not is_name(class_name):
        raise ValueError
    return Node(number, class_name, category, _known(properties, PROPERTIES), _known(states, STATES))


@lru_cache(maxsize=1 << 10)
def _known(names: tuple[str, ...], known: tuple[str, ...]) -> frozenset[str]:
    if not set(names) <= set(known):
        raise ValueError
    return frozenset(names)


def patched(scene: Scene, patch: Mapping[str, Any]) -> Scene:
    """The scene with further ``nodes`` and ``edges`` ([from, relation, to]) and other ``states`` ({id: all states}).

    Raises:
        InputError: if something in the patch breaks a rule of graphs.
    """
    if not patch:
        return scene
    nodes = dict(scene.nodes)
    for position, record in enumerate(patch.get("nodes", ())):
        _add_node(nodes, record, f"{scene.name}: patch nodes[{position}]")
    by_text = {str(number): node for number, node in nodes.items()}
    for number, states in patch.get("states", {}).items():
        where = f"{scene.name}: patch states of {shortly(number)}"
        node = by_text.get(str(number))
        if node is None:
            raise InputError(f"{where}: not the id of a node")
        nodes[node.id] = replace(node, states=_names({"states": states}, "states", STATES, where))
    keys = ("from_id", "relation_type", "to_id")
    edges = dict.fromkeys(scene.edges)
    for position, edge in enumerate(patch.get("edges", ())):
        where = f"{scene.name}: patch edges[{position}]"
        if not isinstance(edge, list | tuple) or len(edge) != len(keys):
            raise InputError(f"{where}: expected [from, relation, to], found {shortly(edge)}")
        edges[_parse_edge(dict(zip(keys, edge, strict=True)), nodes, where)] = None
    return _checked(Scene(scene.name, nodes, tuple(edges)))


def _add_node(nodes: dict[int, Node], record: Any, where: str) -> None:
    node = _parse_node(record, where)
    if nodes.setdefault(node.id, node) != node:
        raise InputError(
            f"{where}: id {node.id} is a {node.class_name} here and another {nodes[node.id].class_name} before; "
            "ids must be unique"
        )


def is_name(text: str) -> bool:
    """Whether script lines and facts can name a class so: in one line, without the characters that they are made of."""
    return bool(text.strip()) and text.isprintable() and not {*"<>|"} & {*text}


def _parse_node(record: Any, where: str) -> Node:
    _check_keys(record, ("id", "class_name", "properties", "states"), where)
    if type(record["id"]) is not int:  # a bool is an int for isinstance
        raise InputError(f"{where}: id {shortly(record['id'])} is not an integer")
    for key in ("class_name", "category"):
        if not isinstance(record.get(key), str) and (key == "class_name" or record.get(key) is not None):
            raise InputError(f"{where}: {key} {shortly(record[key])} is not a string")
    if not is_name(record["class_name"]):
        raise InputError(
            f"{where}: class_name {shortly(record['class_name'])} cannot be in a script line; "
            "write printable characters other than < > |"
        )
    return Node(
        record["id"],
        record["class_name"],
        record.get("category"),
        _names(record, "properties", PROPERTIES, where),
        _names(record, "states", STATES, where),
    )


def _parse_edge(record: Any, nodes: Mapping[int, Node], where: str) -> Edge:
    _check_keys(record, ("from_id", "relation_type", "to_id"), where)
    relation = _upper(record["relation_type"])
    if relation not in RELATIONS:
        raise InputError(f"{where}: unknown relation {relation}; known: {', '.join(RELATIONS)}")
    for key in ("from_id", "to_id"):
        if type(record[key]) is not int or record[key] not in nodes:
            raise InputError(f"{where}: {key} {shortly(record[key])} is not the id of a node")
    return record["from_id"], relation, record["to_id"]


def _checked(scene: Scene) -> Scene:
    """The scene, if it is one that the world can be run in."""
    characters = scene.by_class.get(CHARACTER, ())
    if len(characters) != 1:
        found = f"found {', '.join(str(node.id) for node in characters)}" if characters else "found none"
        raise InputError(f'{scene.name}: the world needs exactly one node of class "{CHARACTER}", {found}')
    if cycle := _endless_containers(scene):
        path = " inside ".join(f"{scene.nodes[node].class_name} ({node})" for node in cycle)
        raise InputError(f"{scene.name}: INSIDE edges go round in a circle: {path}; say which room these are in")
    return scene


def _endless_containers(scene: Scene) -> list[int]:
    """A cycle of INSIDE edges that a node without a room of its own leads to, closed (its first node is also the
    last), or nothing.

    The executor looks for such a node's room from container to container, for ever. Cycles of nodes that are also
    directly in a room do no harm, and real scenes have them (two curtains inside each other).
    """
    rooms = {node.id for node in scene.nodes.values() if node.is_room}
    inside = [(source, target) for source, relation, target in scene.edges if relation == "INSIDE"]
    housed = {source for source, target in inside if target in rooms}
    waiting = list(dict.fromkeys(source for source, _ in inside if source not in housed))
    if not waiting:
        return []
    containers: dict[int, list[int]] = {}
    for source, target in inside:
        containers.setdefault(source, []).append(target)
    reached: dict[int, list[int]] = {}
    while waiting:
        node = waiting.pop()
        if node not in reached and node not in rooms:
            reached[node] = containers.get(node, [])
            waiting += reached[node]
    try:
        TopologicalSorter(reached).prepare()
    except CycleError as error:
        cycle = error.args[1][:0:-1]  # it comes from container to content, its first node again at the end
        first = cycle.index(min(cycle))
        return [*cycle[first:], *cycle[: first + 1]]
    return []


def _check_keys(record: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with {', '.join(keys)}, found {shortly(record)}")
    if missing := [key for key in keys if key not in record]:
        raise InputError(f"{where}: missing {', '.join(missing)}; needs {', '.join(keys)}")


def _upper(name: Any) -> str:
    return name.upper() if isinstance(name, str) and name.isprintable() else shortly(name)


def _names(record: dict[str, Any], key: str, known: tuple[str, ...], where: str) -> frozenset[str]:
    if not isinstance(record[key], list):
        raise InputError(f"{where}: {key} must be a list, found {shortly(record[key])}")
    names = frozenset(map(_upper, record[key]))
    if unknown := sorted(names.difference(known)):
        raise InputError(f"{where}: unknown {key} {', '.join(unknown[:2])}; known: {', '.join(known)}")
    return names
