"""The household as a `World`: one person, script lines as actions, the array engine below.

Scenarios are scenes (`homes.scenes.load`), and ``procedural`` for the made-up home of the seed; those of a RobotHow
program have that program's goal for their aim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from e2wm_jax.worlds.household import goals
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.facts import edge_fact, state_fact
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.homes.scenes import Node, Scene
from e2wm_jax.worlds.household.native.world import ArrayState, ArrayWorld
from e2wm_jax.worlds.household.rules import RULES
from e2wm_jax.worlds.world import Aim, Outcome

_HANDS = ("HOLDS_RH", "HOLDS_LH")
_POSTURES = ("SITTING", "LYING")


@dataclass(frozen=True)
class HomeState:
    """A state as a value: the scene by its name, and what has become of it since."""

    scene: str
    vector: bytes  # uint32, as `arrays.Layout` has them, up to the last edge that was made


class Household:
    """VirtualHome's household in one of its dialects."""

    name = "household"
    version = 1

    def __init__(self, dialect: str = "vh23") -> None:
        """
        Raises:
            InputError: for an unknown dialect.
        """
        self._engine = ArrayWorld(dialect)

    def initial(self, scenario: str, seed: int = 0) -> HomeState:
        """The scene as it is; "procedural" is that of the seed."""
        name = f"{scenes.PROCEDURAL}{seed}" if scenario == scenes.PROCEDURAL[:-1] else scenario
        return _kept(name, self._engine.initial(_scene(name)))

    def step(self, state: HomeState, action: str) -> tuple[HomeState, Outcome]:
        """Carry out one script line, such as ``[Walk] <kitchen> (11)``."""
        new, done = self._engine.step(self._opened(state), parse_action(action))
        said = "; ".join((*done.messages, *([done.exception] if done.exception else ())))
        return (_kept(state.scene, new) if done.ok else state), Outcome(done.ok, said, change=done)

    def options(self, state: HomeState) -> tuple[str, ...]:
        """Every script line that works now: in the order of the rules, then of the nodes of the scene."""
        verbs = [rule.name for rule in RULES]
        return tuple(map(str, self._engine.legal_actions(self._opened(state), verbs, _scene(state.scene).nodes)))

    def facts(self, state: HomeState) -> frozenset[str]:
        """All states of nodes and edges between them, by class."""
        opened, nodes = self._opened(state), _scene(state.scene).nodes
        states = {state_fact(nodes[node].class_name, name) for node, name in self._engine.states(opened)}
        edges = {edge_fact(nodes[a].class_name, r, nodes[b].class_name) for a, r, b in self._engine.edges(opened)}
        return frozenset(states | edges)

    def observe(self, state: HomeState) -> str:
        """Where the person is and what it holds; what is in the room, but for what closed things hold."""
        scene, opened = _scene(state.scene), self._opened(state)
        person = scene.character.id
        room = next((n for n in self._engine.targets(opened, person, "INSIDE") if scene.nodes[n].is_room), None)
        held = [n for hand in _HANDS for n in self._engine.targets(opened, person, hand)]
        postures = [name.lower() for name in _POSTURES if name in self._engine.node_states(opened, person)]
        where = f"You are {' and '.join([*postures, f'in the {scene.nodes[room].class_name}' if room else 'nowhere'])}."
        told = [where, f"You hold {_listed(scene.nodes[n] for n in held)}."]
        told += [self._described(opened, scene, node) for node in self._in_sight(opened, scene, room)]
        return "\n".join(told)

    def aim(self, scenario: str) -> Aim | None:
        """The goal of the RobotHow program that the scene is of or was made ready for: the share of its facts."""
        goal = _goal(scenario)
        if goal is None:
            return None
        holds = self._engine.gained_test(_scene(scenario), goal.facts)
        return Aim(goal.task, lambda state: len(holds(self._opened(state))) / len(goal.facts))

    def expert(self, state: HomeState) -> str | None:
        """None: plans are found by a search (`experience.search`)."""
        del state
        return None

    def _opened(self, state: HomeState) -> ArrayState:
        start = self._engine.initial(_scene(state.scene))
        # Writable, as all others: for what is read-only numba would compile everything again.
        return ArrayState(start.base, np.frombuffer(state.vector, np.uint32).copy())

    def _in_sight(self, opened: ArrayState, scene: Scene, room: int | None) -> Iterator[Node]:
        """The nodes of the room that no closed thing holds, in the order of the scene."""
        inside = self._engine.sources(opened, room, "INSIDE") if room else frozenset()
        for node in scene.nodes.values():
            if node.id in inside and node.id != scene.character.id:
                around = self._engine.targets(opened, node.id, "INSIDE")
                if not any("CLOSED" in self._engine.node_states(opened, other) for other in around):
                    yield node

    def _described(self, opened: ArrayState, scene: Scene, node: Node) -> str:
        states = sorted(self._engine.node_states(opened, node.id))
        lies = [
            f"{relation.lower()} {_listed([scene.nodes[other]])}"
            for relation in ("INSIDE", "ON")
            for other in sorted(self._engine.targets(opened, node.id, relation))
            if not scene.nodes[other].is_room
        ]
        return ", ".join([_listed([node]), *(name.lower() for name in states), *lies])


def _listed(nodes: Iterator[Node] | list[Node]) -> str:
    return ", ".join(f"{node.class_name} ({node.id})" for node in nodes) or "nothing"


def _kept(name: str, opened: ArrayState) -> HomeState:
    layout = opened.base.tables.layout
    used = layout.edges + int(opened.vector[layout.count])
    return HomeState(name, opened.vector[:used].tobytes())


@lru_cache(maxsize=64)
def _scene(name: str) -> Scene:
    return scenes.load(name)


def _goal(scenario: str) -> Goal | None:
    if scenes.PREPARED in scenario:
        return goals.transferred_goal(scenario)
    if scenario.startswith(scenes.ROBOTHOW):
        return goals.robothow_goal(scenario.removeprefix(scenes.ROBOTHOW))
    return None
