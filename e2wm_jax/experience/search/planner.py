"""Monte Carlo tree search for a plan that reaches a goal: E2WM's search, over any `World`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from e2wm_jax.experience.search.moves import Macro, Moves
from e2wm_jax.worlds.household.actions import Action
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.world import World

State = TypeVar("State")
Reward = Literal["official", "paper"]

DISCOUNT = 0.99
C_BASE, C_INIT = 1000, 10
_EPSILON = 1e-9  # sums of the same rewards in another order are equal


def official_reward(achieved: int, revoked: int, complete: bool) -> float:
    """The reward of a move in E2WM's code: facts achieved for the first time, facts undone, whether all hold."""
    return 2.0 * achieved - 1.5 * revoked - 0.1 + (5.0 if complete else 0.0)


def paper_reward(achieved: int, revoked: int, complete: bool) -> float:
    """The reward that E2WM's paper states: +2 for each fact achieved for the first time, -0.1 for each move."""
    del revoked, complete
    return 2.0 * achieved - 0.1


REWARDS: dict[Reward, Callable[[int, int, bool], float]] = {"official": official_reward, "paper": paper_reward}


@dataclass(frozen=True)
class Plan:
    """The best sequence of moves that the search has met."""

    moves: tuple[Macro, ...]  # each an action with what it needs first: StandUp, Open
    total_reward: float  # undiscounted
    simulations: int  # carried out; fewer than asked for where nothing better can exist
    nodes: int
    proved: bool  # no plan has a higher total reward

    @property
    def actions(self) -> tuple[Action, ...]:
        """The script lines of all moves."""
        return tuple(action for macro in self.moves for action in macro)


class SplitMix:
    """Steele, Lea and Flood's splitmix64, which compiled code can follow number by number (`native.mcts`)."""

    _MASK = (1 << 64) - 1

    def __init__(self, seed: int) -> None:
        self.state = seed & self._MASK

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit`` - 1."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & self._MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & self._MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & self._MASK
        z ^= z >> 31
        return ((z >> 32) * limit) >> 32

    def shuffle(self, items: list[Any]) -> None:
        """A random order, in place."""
        for index in range(len(items) - 1, 0, -1):
            other = self.below(index + 1)
            items[index], items[other] = items[other], items[index]


class _Situation(NamedTuple, Generic[State]):
    """A state of the world on the way to a goal."""

    state: State
    holding: frozenset[str]  # facts of the goal that hold now
    pending: frozenset[str]  # those that have never held; with none left the episode ends
    total: float  # rewards so far


class _Node(Generic[State]):
    """A situation in the tree, reached from ``parent`` by ``macro`` for ``reward``. ``value`` sums the returns of its
    visits, each with the node's own reward in it. ``situation`` is deleted once no move is left to try: it is large."""

    __slots__ = ("children", "depth", "macro", "parent", "reward", "situation", "untried", "value", "visits")

    def __init__(self, situation: _Situation[State], parent: "_Node[State] | None", macro: Macro, reward: float):
        self.situation = situation
        self.parent = parent
        self.macro = macro
        self.reward = reward
        self.depth: int = parent.depth + 1 if parent else 0
        self.untried: list[Macro] = []
        self.children: list[_Node[State]] = []
        self.visits = 0
        self.value = 0.0

    def path(self) -> list[Macro]:
        """The moves from the root to here."""
        return [*self.parent.path(), self.macro] if self.parent else []


class _Search(Generic[State]):
    """One tree and the best sequence of moves met so far."""

    def __init__(self, world: World[State], scene: Scene, goal: Goal, max_depth: int, reward: Reward, seed: int):
        self.moves = Moves.of(world, scene, goal.items)
        self.facts = frozenset(goal.facts)
        self.test = world.gained_test(scene, tuple(sorted(self.facts)))
        self.reward = REWARDS[reward]
        self.max_depth = max_depth
        self.rng = SplitMix(seed)
        self.best: list[Macro] = []
        self.best_total = 0.0
        self.open = [0] * max_depth  # nodes with moves left to try, by depth
        self.nodes = 0
        state = world.initial(scene)
        holding = self.test(state)
        self.wanted = len(self.facts - holding)
        self.start = _Situation(state, holding, self.facts - holding, 0.0)
        self.root = self._add(self.start, None, (), 0.0)

    def simulate(self) -> None:
        """Descend to a node with a move left to try, try it, play on at random, and record what that was worth."""
        node = self.root
        while True:
            child = self._expand(node)
            if child is not None:
                value = self._rollout(child)
                if not child.untried:
                    del child.situation
                return self._backup(child, value)
            if not node.children:  # the goal, the depth limit or a dead end: worth what it was
                return self._backup(node, 0.0)
            node = self._select(node)

    def proved(self) -> bool:
        """Whether nothing better can exist: every fact brought about once, none undone, and every shorter sequence
        of moves is in the tree; or the tree is complete."""
        length = len(self.best)
        perfect = self.reward(self.wanted, 0, True) + (length - 1) * self.reward(0, 0, False)
        return not any(self.open[: length - 1] if self.best_total > perfect - _EPSILON else self.open)

    def shorten(self) -> None:
        """Leave out stretches of the best sequence, the longest first, as long as that earns more."""
        shorter: list[Macro] | None = self.best
        while shorter is not None:
            self.best, length = shorter, len(shorter)
            stretches = [(i, i + size) for size in range(length, 0, -1) for i in range(length - size + 1)]
            candidates = (self.best[:i] + self.best[j:] for i, j in stretches)
            shorter = next((candidate for candidate in candidates if self._is_better(candidate)), None)

    def _is_better(self, sequence: list[Macro]) -> bool:
        """Whether the moves are legal one after the other and earn more than the best; if so that is the new mark."""
        situation = self.start
        for depth, macro in enumerate(sequence):
            legal = self.moves.legal(situation.state) if depth else self.moves.first(situation.state)
            after = self._move(situation, macro) if macro in legal else None
            if after is None:
                return False
            situation = after
        if situation.total < self.best_total + _EPSILON:
            return False
        self.best_total = situation.total
        return True

    def _add(
        self, situation: _Situation[State], parent: _Node[State] | None, macro: Macro, reward: float
    ) -> _Node[State]:
        node = _Node(situation, parent, macro, reward)
        self.nodes += 1
        if situation.pending and node.depth < self.max_depth:
            node.untried = self.moves.legal(situation.state) if parent else self.moves.first(situation.state)
            self.rng.shuffle(node.untried)
            self.open[node.depth] += bool(node.untried)
        if parent:
            parent.children.append(node)
        return node

    def _expand(self, node: _Node[State]) -> _Node[State] | None:
        """The child of the first untried move that works, if there is one."""
        while node.untried:
            before, macro = node.situation, node.untried.pop()
            after = self._move(before, macro)
            if not node.untried:
                self.open[node.depth] -= 1
                del node.situation
            if after is not None:
                return self._add(after, node, macro, after.total - before.total)
        return None

    def _move(self, before: _Situation[State], macro: Macro) -> _Situation[State] | None:
        state = self.moves.apply(before.state, macro)
        if state is None:
            return None
        holding = self.test(state)
        achieved = before.pending & (holding - before.holding)
        revoked = before.holding - holding
        reward = self.reward(len(achieved), len(revoked), len(holding) == len(self.facts))
        return _Situation(state, holding, before.pending - achieved, before.total + reward)

    def _rollout(self, node: _Node[State]) -> float:
        """Random moves to the depth limit; their rewards weighted by g, g^2, g^4, g^8, ... as E2WM does."""
        situation, value, weight = node.situation, 0.0, DISCOUNT
        played: list[Macro] = []
        self._consider(situation.total, node, played)
        while situation.pending and node.depth + len(played) < self.max_depth:
            options = self.moves.legal(situation.state)
            after = None
            while options and after is None:
                position = self.rng.below(len(options))
                options[position], options[-1] = options[-1], options[position]
                macro = options.pop()
                after = self._move(situation, macro)
            if after is None:
                break
            value += weight * (after.total - situation.total)
            weight *= weight
            situation = after
            played.append(macro)
            self._consider(situation.total, node, played)
        return value

    def _consider(self, total: float, node: _Node[State], played: list[Macro]) -> None:
        """Keep this sequence of moves if it earned more than the best one, or as much with fewer moves."""
        gain = total - self.best_total
        if gain > _EPSILON or (gain > -_EPSILON and node.depth + len(played) < len(self.best)):
            self.best_total, self.best = total, [*node.path(), *played]

    def _select(self, node: _Node[State]) -> _Node[State]:
        exploration = (math.log((1 + node.visits + C_BASE) / C_BASE + C_INIT)) * math.sqrt(node.visits)
        scores = [exploration / (1 + child.visits) + child.value / child.visits for child in node.children]
        best = max(scores)
        ties = [child for child, score in zip(node.children, scores, strict=True) if score == best]
        return ties[self.rng.below(len(ties))]

    def _backup(self, leaf: _Node[State], value: float) -> None:
        node: _Node[State] | None = leaf
        while node:
            value = node.reward + (value if node is leaf else DISCOUNT * value)
            node.visits += 1
            node.value += value
            node = node.parent


def search(
    world: World[State],
    scene: Scene,
    goal: Goal,
    *,
    simulations: int = 20_000,
    max_depth: int = 25,
    reward: Reward = "official",
    seed: int = 0,
    shorten: bool = False,
) -> Plan:
    """Search for the sequence of at most ``max_depth`` moves with the highest total reward.

    The result is the best prefix of anything simulated, not the most visited path (E2WM). The search ends early only
    where it is proved that the remaining simulations could not change the result. ``shorten`` (not E2WM's) then leaves
    out moves that were not needed, which matters after few simulations. Equal arguments, equal plans.
    """
    tree = _Search(world, scene, goal, max_depth, reward, seed)
    done = 0
    while done < simulations and not tree.proved():
        tree.simulate()
        done += 1
    if shorten:
        tree.shorten()
    return Plan(
        moves=tuple(tree.best),
        total_reward=round(tree.best_total, 9),
        simulations=done,
        nodes=tree.nodes,
        proved=tree.proved(),
    )
