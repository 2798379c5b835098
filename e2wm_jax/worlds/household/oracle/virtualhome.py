"""The installed VirtualHome executor (2.3.0, MIT) as a `World`: headless, without its Unity client.

Importing the package `virtualhome` would start that client's imports, so its four modules of rules are loaded by
path, under a name of our own, from where `importlib` finds the distribution.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from types import ModuleType
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.worlds.household.actions import Action, Thing
from e2wm_jax.worlds.household.changes import Edge, NodeState, Step
from e2wm_jax.worlds.household.facts import split_fact
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.oracle.overlay import Base, Overlay
from e2wm_jax.worlds.household.rules import VERBS

VERSION = "2.3.0"
_ALIAS = "_e2wm_virtualhome_rules"
_SUFFIX = ' when executing "'


def _rules_folder() -> Path | None:
    spec = importlib.util.find_spec("virtualhome")  # does not execute the package
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location) / "simulation" / "evolving_graph"
        if (folder / "execution.py").is_file():
            return folder
    return None


def is_installed() -> bool:
    """Whether there is a VirtualHome to load."""
    return _rules_folder() is not None


def load_rules() -> ModuleType:
    """VirtualHome's modules `environment`, `scripts` and `execution`, as attributes of one module.

    Loaded once per process: two copies would have two `Action` enums that do not know each other.

    Raises:
        InputError: if virtualhome is not installed.
    """
    if _ALIAS in sys.modules:
        return sys.modules[_ALIAS]
    folder = _rules_folder()
    if folder is None:
        raise InputError(
            f"virtualhome is not installed, so there is no world to act in; "
            f"run: pip install --no-deps virtualhome=={VERSION} (make setup does)"
        )
    package = ModuleType(_ALIAS)
    package.__path__ = [str(folder)]
    sys.modules[_ALIAS] = package
    for name in ("environment", "scripts", "execution"):
        setattr(package, name, importlib.import_module(f"{_ALIAS}.{name}"))
    return package


class VirtualHome:
    """The world of dialect ``vh23``: the rules of virtualhome 2.3.0, its peculiarities included."""

    def __init__(self, dialect: str = "vh23") -> None:
        """
        Raises:
            InputError: if virtualhome is not installed, or another dialect is asked for.
        """
        if dialect != "vh23":
            raise InputError(f"dialect {dialect!r}: the virtualhome engine runs only vh23; leave --dialect out")
        self.dialect = dialect
        self._rules = load_rules()

    def initial(self, scene: Scene) -> Overlay:
        """The state in which nothing has happened yet."""
        return Overlay(_base(scene))

    def step(self, state: Overlay, action: Action) -> tuple[Overlay, Step]:
        """Execute one script line: status, messages, exception and changes are the executor's own."""
        new, messages, exception = self._execute(state, action)
        if new is None:
            return state, Step(str(action), ok=False, messages=messages, exception=exception)
        edges_added, edges_removed = _edge_changes(state, new)
        states_added, states_removed = _state_changes(state, new)
        step = Step(str(action), True, messages, exception, edges_added, edges_removed, states_added, states_removed)
        return new, step

    def advance(self, state: Overlay, action: Action) -> Overlay | None:
        """The next state, or None where the line fails. PutObjBack that cannot put is a failure here although the
        executor lets it pass with a message."""
        new, messages, _ = self._execute(state, action)
        return None if new is state and messages else new

    def _execute(self, state: Overlay, action: Action) -> tuple[Overlay | None, tuple[str, ...], str | None]:
        scripts, execution = self._rules.scripts, self._rules.execution
        things = [scripts.ScriptObject(thing.name, thing.id) for thing in action.things]
        line = scripts.ScriptLine(scripts.Action[action.verb.upper()], things, 0)
        info = execution.ExecutionInfo()
        exception = None
        try:
            new = next(execution.ScriptExecutor.call_action_method((line,), state, info, 0), None)
        except Exception as error:  # the executor's own defects are part of its semantics: the line fails
            new, exception = None, type(error).__name__
        return new, tuple(message.rsplit(_SUFFIX, 1)[0] for message in info.messages), exception

    def legal_actions(self, state: Overlay, verbs: Iterable[str], nodes: Iterable[int]) -> list[Action]:
        """Every line of these verbs over these nodes that the executor accepts now, found by trying."""
        scene = state.base.scene
        things = [scene.nodes[node] for node in nodes]
        candidates = []
        for verb in (VERBS[name.upper()] for name in verbs):
            for chosen in permutations(things, verb.arity):
                if all(
                    not needs or needs & node.properties or node.class_name in needs
                    for needs, node in zip(verb.needs, chosen, strict=True)
                ):
                    candidates.append(Action(verb.name, tuple(Thing(node.class_name, node.id) for node in chosen)))
        return [action for action in candidates if self.advance(state, action) is not None]

    def node_states(self, state: Overlay, node: int) -> frozenset[str]:
        """The names of the states a node has now."""
        found = state.get_node(node)
        return frozenset(member._name_ for member in found.states) if found else frozenset()

    def targets(self, state: Overlay, node: int, relation: str) -> tuple[int, ...]:
        """The nodes that edges of this relation lead to from ``node``, in the order the executor sees them."""
        return state.targets(node, relation)

    def sources(self, state: Overlay, node: int, relation: str) -> frozenset[int]:
        """The nodes from which edges of this relation lead to ``node``."""
        return state.sources(node, relation)

    def edges(self, state: Overlay) -> set[Edge]:
        """All edges of the current graph."""
        return state.edges()

    def states(self, state: Overlay) -> set[NodeState]:
        """All states of all nodes."""
        return {(node.id, member._name_) for node in state.get_nodes() for member in node.states}

    def gained_test(self, scene: Scene, facts: tuple[str, ...]) -> Callable[[Overlay], frozenset[str]]:
        """A function that tells which of ``facts`` hold in a state by a change since the beginning: a node that gained
        the state, an edge that is not in the scene."""
        tests = {fact: self._compile(scene, *split_fact(fact)) for fact in facts}
        return lambda state: frozenset(fact for fact, test in tests.items() if test(state))

    def _compile(self, scene: Scene, first: str, second: str, third: str | None = None) -> Callable[[Overlay], bool]:
        sources = scene.by_class.get(first, ())
        if third is None:
            member = self._rules.environment.State[second]
            fresh = [node.id for node in sources if second not in node.states]
            return lambda state: any(node in state.nodes and member in state.nodes[node].states for node in fresh)
        targets = scene.by_class.get(third, ())
        keys = [((node.id, second), frozenset(target.id for target in targets)) for node in sources]
        if second == "CLOSE":
            keys += [((node.id, second), frozenset(source.id for source in sources)) for node in targets]
        return lambda state: any(key in state.added and not wanted.isdisjoint(state.added[key]) for key, wanted in keys)


@lru_cache(maxsize=8)
def _base(scene: Scene) -> Base:
    """No state ever writes to it, so that episodes in one scene share it."""
    return Base(scene, load_rules().environment)


def _edge_changes(old: Overlay, new: Overlay) -> tuple[tuple[Edge, ...], tuple[Edge, ...]]:
    """Edges gained and lost, sorted. Whatever a step leaves alone is shared, so identity finds what it touched."""
    touched = {key for key, targets in new.added.items() if old.added.get(key) is not targets}
    touched |= {key for key, targets in new.removed.items() if old.removed.get(key) is not targets}
    gained, lost = [], []
    for key in touched:
        before, after = old.target_set(key), new.target_set(key)
        gained += [(*key, target) for target in after - before]
        lost += [(*key, target) for target in before - after]
    return tuple(sorted(gained)), tuple(sorted(lost))


def _state_changes(old: Overlay, new: Overlay) -> tuple[tuple[NodeState, ...], tuple[NodeState, ...]]:
    gained, lost = [], []
    for node in new.nodes.values():
        previous: Any = old.get_node(node.id)
        if previous is not node:
            gained += [(node.id, member._name_) for member in node.states - previous.states]
            lost += [(node.id, member._name_) for member in previous.states - node.states]
    return tuple(sorted(gained)), tuple(sorted(lost))
