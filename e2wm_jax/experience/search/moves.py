"""The planner's moves: E2WM's class-level actions, bound to nodes of the current state and completed.

"Walk to the cup" means the cup in this room, and standing up first; "grab the cup" means a cup within reach, and
opening the cupboard it is in first. A move is therefore a short list of script lines, executed as one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from e2wm_jax.worlds.household.actions import Action, Thing
from e2wm_jax.worlds.household.homes.scenes import Node, Scene
from e2wm_jax.worlds.household.rules import VERBS, Test
from e2wm_jax.worlds.household.world import World

State = TypeVar("State")
Macro = tuple[Action, ...]

# The verbs of E2WM's plans. It leaves out those that change nothing, and Find.
SINGLE = (
    "Grab",
    "PutObjBack",
    "Drop",
    "PutOn",
    "Sit",
    "Lie",
    "TurnTo",
    "Open",
    "Close",
    "SwitchOn",
    "SwitchOff",
    "PlugIn",
    "PlugOut",
    "Rinse",
    "Wipe",
)
DOUBLE = ("PutBack", "PutIn", "Pour")

# Necessary conditions of the executor that are cheap to see beforehand; a move without them would fail anyway.
_RULES = {name: VERBS[name.upper()] for name in (*SINGLE, *DOUBLE)}
NEEDS_STATE = {name: check.argument[0] for name, rule in _RULES.items() for check in rule.asks(Test.STATE)}
NEEDS_HOLDING = frozenset(name for name, rule in _RULES.items() if rule.asks(Test.HELD, Test.GRABBED))
NEEDS_HANDS_FULL = frozenset(name for name, rule in _RULES.items() if rule.asks(Test.HANDS_FULL_OF_SOMETHING))


@dataclass(frozen=True)
class Moves(Generic[State]):
    """The legal moves of one task: over the rooms of the scene and the classes of ``items``."""

    world: World[State]
    scene: Scene
    classes: tuple[str, ...]  # other than rooms
    rooms: tuple[Node, ...]  # the first of each class

    @staticmethod
    def of(world: World[State], scene: Scene, items: Iterable[str]) -> "Moves[State]":
        rooms = {node.class_name: node for node in reversed([*scene.nodes.values()]) if node.is_room}
        classes = sorted({item for item in items if item in scene.by_class} - rooms.keys() - {"character"})
        return Moves(world, scene, tuple(classes), tuple(rooms[name] for name in sorted(rooms)))

    def first(self, state: State) -> list[Macro]:
        """The moves at the root of a search: to a room, in a fixed order."""
        sitting = "SITTING" in self.world.node_states(state, self.scene.character.id)
        return [(*((Action("StandUp"),) if sitting else ()), _action("Walk", room)) for room in self.rooms]

    def legal(self, state: State) -> list[Macro]:
        """The moves that make sense in ``state``, in a fixed order; executing one may still fail."""
        return [*self._walks(state), *self._manipulations(state)]

    def apply(self, state: State, macro: Macro) -> State | None:
        """The state after all lines of the move, or None where one of them fails."""
        current: State | None = state
        for action in macro:
            if current is None:
                return None
            current = self.world.advance(current, action)
        return current

    def _walks(self, state: State) -> Iterator[Macro]:
        character = self.scene.character.id
        posture = self.world.node_states(state, character)
        if "LYING" in posture:  # vh23 would let the character walk: it looks at the posture in the initial graph
            yield (Action("StandUp"),)
            return
        before: Macro = (Action("StandUp"),) if "SITTING" in posture else ()
        if before:
            yield before
        yield from self.first(state)
        here = self._class_of_place(state, character)
        for name in self.classes:
            node = next((node for node in self.scene.by_class[name] if here in self._places(state, node.id)), None)
            if node is not None:
                containers = self._closed_containers(state, node.id)
                yield (*before, _action("Walk", containers[0] if containers else node))

    def _manipulations(self, state: State) -> Iterator[Macro]:
        character = self.scene.character.id
        close = set(self.world.targets(state, character, "CLOSE"))
        held = {node for hand in ("HOLDS_RH", "HOLDS_LH") for node in self.world.targets(state, character, hand)}
        near = [
            node
            for node in (next((n for n in self.scene.by_class[name] if n.id in close), None) for name in self.classes)
            if node is not None
        ]
        for node in near:
            opening = self._opening(state, node)
            states = self.world.node_states(state, node.id)
            for verb in SINGLE:
                if (
                    suits(verb, 0, node)
                    and NEEDS_STATE.get(verb) in (None, *states)
                    and (verb not in NEEDS_HOLDING or node.id in held)
                    and (verb not in NEEDS_HANDS_FULL or held)
                ):
                    yield (*opening, _action(verb, node))
        for node in near:
            if node.id in held:
                for other in near:
                    for verb in DOUBLE:
                        if other is not node and suits(verb, 0, node) and suits(verb, 1, other):
                            yield (
                                *self._opening(state, node),
                                *self._opening(state, other),
                                _action(verb, node, other),
                            )

    def _places(self, state: State, node: int) -> list[str]:
        return [self.scene.nodes[place].class_name for place in self.world.targets(state, node, "INSIDE")]

    def _class_of_place(self, state: State, node: int) -> str | None:
        return next(iter(self._places(state, node)), None)

    def _closed_containers(self, state: State, node: int) -> list[Node]:
        containers = (self.scene.nodes[place] for place in self.world.targets(state, node, "INSIDE"))
        return [
            place for place in containers if not place.is_room and "CLOSED" in self.world.node_states(state, place.id)
        ]

    def _opening(self, state: State, node: Node) -> Macro:
        return tuple(_action("Open", container) for container in self._closed_containers(state, node.id))


def suits(verb: str, position: int, node: Node) -> bool:
    """Whether the rules admit the node as first (0) or second (1) thing of the verb, whatever the state."""
    needs = VERBS[verb.upper()].needs[position]
    return not needs or not needs.isdisjoint(node.properties) or node.class_name in needs


def _action(verb: str, *nodes: Node) -> Action:
    return Action(verb, tuple(Thing(node.class_name, node.id) for node in nodes))
