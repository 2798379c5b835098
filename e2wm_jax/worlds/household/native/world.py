"""The array engine as a `World`: one environment on a CPU core, all dialects."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from e2wm_jax.worlds.household.actions import Action, Thing
from e2wm_jax.worlds.household.arrays import (
    CLOSE,
    EDGE_SLOTS,
    HOLDING,
    INSIDE,
    ON,
    RELATIONS,
    Tables,
    dialect_rules,
    tables_of,
)
from e2wm_jax.worlds.household.changes import Edge, NodeState, Step
from e2wm_jax.worlds.household.facts import split_fact
from e2wm_jax.worlds.household.homes.scenes import STATES, Scene
from e2wm_jax.worlds.household.native import edges as native_edges
from e2wm_jax.worlds.household.native import legal as native_legal
from e2wm_jax.worlds.household.native import order as native_order
from e2wm_jax.worlds.household.native import places as native_places
from e2wm_jax.worlds.household.native import step as native_step
from e2wm_jax.worlds.household.native import tables as native_tables
from e2wm_jax.worlds.household.rules import RULES, TWO_THINGS, VERB_INDEX, Check, Effect, Otherwise, Test

_MOST_MADE = 8  # edges that a line can add to the list of a state: what two hands hold, and one thing's place
_CRASHES_WITHOUT_NODE = (Effect.WALK, Effect.FIND_OR_WALK)  # as executed; other verbs say "cannot be found"


@dataclass(frozen=True)
class Base:
    """What the states of one scene share."""

    scene: Scene
    tables: Tables
    native: native_tables.NativeTables
    number: dict[int, int]  # node id -> number
    ids: np.ndarray  # [N] objects: Python's integers, of any size
    constant: frozenset[Edge]  # of the relations that no action changes


@dataclass(frozen=True)
class ArrayState:
    """One state: never written to once made."""

    base: Base
    vector: np.ndarray  # [size] uint32, see `tables.Layout`


class ArrayWorld:
    """The household world of `rules`."""

    def __init__(self, dialect: str = "vh23") -> None:
        """
        Raises:
            InputError: for an unknown dialect.
        """
        self._rules = dialect_rules(dialect)
        self.dialect = dialect

    def initial(self, scene: Scene) -> ArrayState:
        """The state in which nothing has happened yet.

        Raises:
            InputError: for a scene that the array engine cannot express.
        """
        base = _base(scene, self.dialect)
        return ArrayState(base, base.tables.start)

    def step(self, state: ArrayState, action: Action) -> tuple[ArrayState, Step]:
        """Execute one script line."""
        new, messages, exception = self._execute(state, action)
        if new is None:
            return state, Step(str(action), ok=False, messages=messages, exception=exception)
        return new, Step(str(action), True, messages, exception, *_changes(state, new))

    def advance(self, state: ArrayState, action: Action) -> ArrayState | None:
        """The next state, or None where the line fails or has no effect other than a message."""
        nodes = [state.base.number.get(thing.id) for thing in action.things]
        if None in nodes:
            return None
        x, y = (*nodes, 0, 0)[:2]
        vector = _copy(state)
        done = native_step.advance(state.base.native, vector, VERB_INDEX[action.verb.upper()], x, y)
        return ArrayState(state.base, vector) if done else None

    def _execute(self, state: ArrayState, action: Action) -> tuple[ArrayState | None, tuple[str, ...], str | None]:
        """(next state or None, messages, exception), as the executor of the dialect gives them."""
        verb, tables = VERB_INDEX[action.verb.upper()], state.base.tables
        nodes = [state.base.number.get(thing.id) for thing in action.things]
        never = self._rules.of_verb[verb][:1] and self._rules.of_verb[verb][0].test is Test.NEVER
        if None in nodes and not (never and action.verb.startswith("LookAt")):
            if RULES[verb].effect in _CRASHES_WITHOUT_NODE:
                return None, (), "AttributeError"
            return None, (f"{action.things[nodes.index(None)]} cannot be found",), None
        x, y = (*(node or 0 for node in nodes), 0, 0)[:2]
        vector = _copy(state)
        succeeds, place, note = native_step.step(state.base.native, vector, verb, x, y)
        messages: list[str] = []
        exception = None
        if note >= 100:  # a far FIND, whose walk failed
            check = self._rules.of_verb[VERB_INDEX["WALK"]][note - 100]
            if check.otherwise is Otherwise.CRASH:
                return None, (), self._message(state, check, x, x, action)
            messages += filter(None, [self._message(state, check, x, x, action)])
            if not succeeds:
                messages.append(f"{_name(state, tables.character)} is not close to {_name(state, x)}")
        elif note >= 0:
            messages.append(self._message(state, self._rules.of_verb[verb][note], x, y, action))
        if place >= 0:
            check = self._rules.of_verb[verb][place]
            message = self._message(state, check, x, y, action)
            if check.otherwise is Otherwise.CRASH or message == "KeyError":
                exception = message
            elif message:
                messages.append(message)
        if not succeeds:
            return None, tuple(messages), exception
        return (state if place >= 0 else ArrayState(state.base, vector)), tuple(messages), None

    def _message(self, state: ArrayState, check: Check, x: int, y: int, action: Action) -> str:
        tables, vector = state.base.tables, state.vector
        if check.test is Test.OPEN_DOORS:
            return _doors_message(state, x)
        if "{Y}" in check.message and len(action.things) == 1:  # PutObjBack
            y = (int(vector[tables.layout.memory + x]) - 1) >> 2
        names = {"C": tables.character, "X": x, "Y": y}
        words = {key: _name(state, node) for key, node in names.items()}
        words |= {f"{key}NAME": str(thing) for key, thing in zip("XY", action.things, strict=False)}
        if check.test is Test.SAME_ROOM:
            for key, node in (("CROOM", tables.character), ("XROOM", x)):
                words[key] = _name(state, native_places.room(state.base.native, vector, node))
        return check.message.format(**words)

    def legal_actions(self, state: ArrayState, verbs: Iterable[str], nodes: Iterable[int]) -> list[Action]:
        """Every line of these verbs over these nodes that works now."""
        tables, scene = state.base.tables, state.base.scene
        things = [Thing(scene.nodes[node].class_name, node) for node in nodes]
        numbers = [state.base.number[thing.id] for thing in things]
        masks = np.empty((len(RULES), tables.words), np.uint32), np.empty((3, 2, tables.words), np.uint32)
        native_legal.legal(state.base.native, state.vector, *masks)
        one, two = (np.unpackbits(mask.view(np.uint8), axis=-1, bitorder="little") for mask in masks)
        hands = [int(held) - 1 for held in state.vector[tables.layout.hands : tables.layout.memory]]
        found = []
        for verb in verbs:
            index = VERB_INDEX[verb.upper()]
            rule = RULES[index]
            if rule.arity == 0:
                found += [Action(rule.name)] * int(one[index, tables.character])
            elif rule.arity == 1:
                found += [Action(rule.name, (things[place],)) for place in np.flatnonzero(one[index, numbers])]
            else:
                of_hands = two[TWO_THINGS.index(index)]
                for first in (place for place, number in enumerate(numbers) if number in hands):
                    seconds = np.flatnonzero(of_hands[hands.index(numbers[first])][numbers])
                    found += [Action(rule.name, (things[first], things[n])) for n in seconds if n != first]
        return found

    def node_states(self, state: ArrayState, node: int) -> frozenset[str]:
        """The names of the states a node has now."""
        tables, number = state.base.tables, state.base.number[node]
        bits = state.vector[tables.layout.states + number // 32 : tables.layout.hands : tables.words]
        return frozenset(name for name, word in zip(STATES, bits.tolist(), strict=True) if word >> (number % 32) & 1)

    def targets(self, state: ArrayState, node: int, relation: str) -> tuple[int, ...]:
        """The nodes that edges of this relation lead to from ``node``, in the order the executor sees them."""
        tables, ids, number = state.base.tables, state.base.ids, state.base.number[node]
        if relation in HOLDING:
            held = int(state.vector[tables.layout.hands + HOLDING.index(relation)])
            return (int(ids[held - 1]),) if held and number == tables.character else ()
        if relation not in RELATIONS:
            return tuple(b for a, r, b in state.base.constant if (a, r) == (node, relation))
        index = RELATIONS.index(relation)
        row, out = np.empty(tables.words, np.uint32), np.empty(tables.nodes, np.int64)
        native_edges.targets(state.base.native, state.vector, index, number, row)
        if index not in (ON, INSIDE, CLOSE):
            return tuple(ids[_members(row)].tolist())
        count = native_order.in_set_order(state.base.native, state.vector, index, number, row, out)
        return tuple(ids[out[:count]].tolist())

    def sources(self, state: ArrayState, node: int, relation: str) -> frozenset[int]:
        """The nodes from which edges of this relation lead to ``node``."""
        tables = state.base.tables
        if relation not in RELATIONS:
            return frozenset(a for a, r, b in self.edges(state) if (r, b) == (relation, node))
        row = np.empty(tables.words, np.uint32)
        native_edges.sources(state.base.native, state.vector, RELATIONS.index(relation), state.base.number[node], row)
        return frozenset(state.base.ids[_members(row)].tolist())

    def edges(self, state: ArrayState) -> set[Edge]:
        """All edges of the current graph."""
        tables, vector, ids = state.base.tables, state.vector, state.base.ids
        rows = np.empty((len(RELATIONS), tables.nodes, tables.words), np.uint32)
        for relation, of_relation in enumerate(rows):
            for number, row in enumerate(of_relation):
                native_edges.targets(state.base.native, vector, relation, number, row)
        found = set(state.base.constant)
        relations, sources, targets = np.nonzero(np.unpackbits(rows.view(np.uint8), axis=-1, bitorder="little"))
        names = map(RELATIONS.__getitem__, relations.tolist())
        found.update(zip(ids[sources].tolist(), names, ids[targets].tolist(), strict=True))
        for hand, name in enumerate(HOLDING, start=tables.layout.hands):
            if vector[hand]:
                found.add((ids[tables.character], name, ids[vector[hand] - 1]))
        return found

    def states(self, state: ArrayState) -> set[NodeState]:
        """All states of all nodes."""
        rows, ids = _state_rows(state), state.base.ids
        return {(node, name) for row, name in zip(rows, STATES, strict=True) for node in ids[_members(row)]}

    def gained_test(self, scene: Scene, facts: tuple[str, ...]) -> Callable[[ArrayState], frozenset[str]]:
        """A function that tells which of ``facts`` hold in a state by a change since the beginning: a node that gained
        the state, an edge that is not in the scene."""
        tests = {fact: _compile(scene, *split_fact(fact)) for fact in facts}
        return lambda state: frozenset(fact for fact, test in tests.items() if test(self, state))


def _copy(state: ArrayState) -> np.ndarray:
    """The state's vector to be changed, with room for more edges than a line can make."""
    vector, layout = state.vector, state.base.tables.layout
    if layout.edges + int(vector[layout.count]) + _MOST_MADE > len(vector):
        return np.concatenate([vector, np.zeros(EDGE_SLOTS, np.uint32)])  # edges are the last part
    return vector.copy()


@lru_cache(maxsize=8)
def _base(scene: Scene, dialect: str) -> Base:
    tables = tables_of(scene, dialect)
    constant = frozenset(edge for edge in scene.edges if edge[1] not in RELATIONS and edge[1] not in HOLDING)
    number = {node: index for index, node in enumerate(scene.nodes)}
    return Base(scene, tables, native_tables.native_tables(tables), number, np.array([*number], object), constant)


def _compile(
    scene: Scene, first: str, second: str, third: str | None = None
) -> Callable[[ArrayWorld, ArrayState], bool]:
    sources = scene.by_class.get(first, ())
    if third is None:
        fresh = [node.id for node in sources if second not in node.states]
        return lambda world, state: any(second in world.node_states(state, node) for node in fresh)
    before = set(scene.edges)
    targets = {node.id for node in scene.by_class.get(third, ())}
    pairs = [(node.id, targets) for node in sources]
    if second == "CLOSE":
        pairs += [(node, {source.id for source in sources}) for node in targets]

    def test(world: ArrayWorld, state: ArrayState) -> bool:
        return any(
            target in wanted and (source, second, target) not in before
            for source, wanted in pairs
            for target in world.targets(state, source, second)
        )

    return test


def _members(words: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little"))


def _name(state: ArrayState, number: int) -> str:
    node = state.base.scene.nodes[state.base.ids[number]]
    return f"<{node.class_name}> ({node.id})"


def _state_rows(state: ArrayState) -> np.ndarray:
    layout, words = state.base.tables.layout, state.base.tables.words
    return state.vector[layout.states : layout.hands].reshape(-1, words)


def _changes(
    old: ArrayState, new: ArrayState
) -> tuple[tuple[Edge, ...], tuple[Edge, ...], tuple[NodeState, ...], tuple[NodeState, ...]]:
    """Edges gained and lost, states gained and lost, sorted."""
    tables, layout, ids = old.base.tables, old.base.tables.layout, old.base.ids
    gained, lost = np.empty((2, 16 * tables.nodes), np.uint32)
    more, less = native_step.changes(old.base.native, old.vector, new.vector, gained, lost)
    edges = [_edges(ids, gained[:more]), _edges(ids, lost[:less])]
    c = ids[tables.character]
    for hand, name in enumerate(HOLDING, start=layout.hands):
        before, after = int(old.vector[hand]), int(new.vector[hand])
        if before != after:
            edges[0] += [(c, name, ids[after - 1])] if after else []
            edges[1] += [(c, name, ids[before - 1])] if before else []
    return tuple(sorted(edges[0])), tuple(sorted(edges[1])), _gained_states(old, new), _gained_states(new, old)


def _edges(ids: np.ndarray, entries: np.ndarray) -> list[Edge]:
    """Edges as ids from entries of a state's list."""
    columns = (ids[entries >> 12 & 0xFFF].tolist(), (entries >> 24).tolist(), ids[entries & 0xFFF].tolist())
    return [(source, RELATIONS[relation], target) for source, relation, target in zip(*columns, strict=True)]


def _gained_states(old: ArrayState, new: ArrayState) -> tuple[NodeState, ...]:
    layout, words = old.base.tables.layout, old.base.tables.words
    fresh = new.vector[layout.states : layout.hands] & ~old.vector[layout.states : layout.hands]
    found = []
    for place in np.flatnonzero(fresh):
        state, word = divmod(int(place), words)
        found += [(old.base.ids[32 * word + b], STATES[state]) for b in range(32) if fresh[place] >> b & 1]
    return tuple(sorted(found))


def _doors_message(state: ArrayState, x: int) -> str:
    """Why the doors do not let the character pass; "KeyError" is an exception's name."""
    tables, vector = state.base.tables, state.vector
    reason = native_places.doors_open(state.base.native, vector, x)
    here, there = (
        native_places.room(state.base.native, vector, tables.character),
        native_places.room(state.base.native, vector, x),
    )
    if reason == 3:
        return "KeyError"
    if reason == 1:
        return f"No path between between {_name(state, here)} and {_name(state, there)}"
    way = tables.ways[tables.room_number[here], tables.room_number[there]]
    doors = [int(tables.doors[door]) for door in way if door >= 0]
    closed = [door for door in doors if "CLOSED" in ArrayWorld.node_states(_ANY, state, state.base.ids[door])]
    names = ", ".join(_name(state, door) for door in closed)
    return f"Door(s) {names} between {_name(state, here)} and {_name(state, there)} is (are) closed"


_ANY = ArrayWorld()
