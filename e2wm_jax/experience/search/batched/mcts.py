"""E2WM's search on an accelerator: one tree per goal, many goals side by side.

`planner` is the same search, readable; `native.mcts` is the same on a CPU core. What differs here: random numbers,
and sums in float32, so that decisions are alike but not the same.

All goals advance in ticks, and in each tick every goal executes one line, which is most of the work. Goals need not be
at the same point of a simulation: one may be in its tree while another is playing at random. No state is kept in the
tree: a descent executes its moves again, in ticks that would otherwise only choose, so a node takes some hundred bytes.

Letters as in `tree`; also G goals.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.experience.search.batched.moves import LAST, bound, holding, line_of, options, packed_move
from e2wm_jax.experience.search.batched.tree import (
    TENTHS,
    Attempt,
    Best,
    Path,
    Place,
    Problem,
    Search,
    Tree,
    count,
    is_over,
    is_proved,
)
from e2wm_jax.experience.search.planner import C_BASE, C_INIT, DISCOUNT
from e2wm_jax.worlds.household.batched.edges import at, one, packed
from e2wm_jax.worlds.household.batched.step import Action as Line
from e2wm_jax.worlds.household.batched.step import step
from e2wm_jax.worlds.household.batched.tables import Array, State

_EACH = Problem(0, 0, None, None)  # type: ignore[arg-type]


def advance(problems: Problem, searches: Search, ticks: Array) -> Search:
    """So many ticks of all goals [G], or as many as it takes to end all searches."""

    def goes_on(carry: tuple[Search, Array]) -> Array:
        return jnp.any(carry[0].active) & (carry[1] < ticks)

    def together(carry: tuple[Search, Array]) -> tuple[Search, Array]:
        return jax.vmap(tick, (_EACH, 0))(problems, carry[0]), carry[1] + 1

    return jax.lax.while_loop(goes_on, together, (searches, jnp.int32(0)))[0]


# A tick of one goal


def tick(problem: Problem, search: Search) -> Search:
    """Choose a move where none is under way, execute a line, and draw the consequences."""
    tables, task = problem.tables, problem.task
    attempt, rest, stuck = _choose(search)
    move = bound(tables, task, search.place.state, search.place.around, attempt.choice)
    place, *line = line_of(move, attempt.line)
    after, outcome = step(tables, attempt.state, Line(*line))
    # A state with more edges than slots is not exact: a move that leads there counts as one that fails
    works = outcome.succeeds & (outcome.check < 0) & (after.count <= after.edges.shape[0]) & ~stuck
    arrives = works & (place == LAST) & search.active
    line_left = works & (place < LAST)
    attempt = Attempt(jnp.where(line_left, place + 1, 0), attempt.choice, after)

    there, gain = _arrival(problem, search.place, after)
    tree, node, there = _grown(search, rest, attempt.choice, arrives, there)
    path = _extended(search, arrives, there.depth, node, gain, packed_move(move))
    best = _better(search.best, path, there, arrives)
    here = _select(arrives, there, search.place._replace(rest=rest))

    over = arrives & is_over(here, search.best)
    ends = search.active & (over | stuck | (here.node < 0) & ~jnp.any(here.rest != 0) & ~line_left)
    tree = tree._replace(worth=_backed_up(tree.worth, path, ends))
    simulations = search.simulations + ends
    pending = task.every & ~search.holding
    proved = is_proved(tree.open, best, count(pending), problem.rewards)
    root = here._replace(
        state=tables.start,
        node=jnp.int32(0),
        depth=jnp.int32(0),
        holding=search.holding,
        pending=pending,
        total=jnp.int32(0),
    )
    fresh = path._replace(earned=jnp.float32(0), leaf=jnp.int32(0), worth=jnp.float32(0), weight=jnp.float32(DISCOUNT))
    return Search(
        tree=tree,
        place=_select(ends, root, here),
        attempt=attempt,
        path=_select(ends, fresh, path),
        best=best,
        simulations=simulations,
        ticks=search.ticks + 1,
        key=search.key,
        active=search.active & ~(ends & (proved | (simulations >= problem.simulations))),
        proved=proved,
        holding=search.holding,
    )


def _choose(search: Search) -> tuple[Attempt, Array, Array]:
    """(The move under way, or one to be: one not yet tried, or the most promising of those in the tree; the moves left
    to try after it; whether there is none)."""
    place, tree, attempt = search.place, search.tree, search.attempt
    begins, in_tree = attempt.line == 0, place.node >= 0
    rest = jnp.where(in_tree, at(tree.untried, place.node), place.rest)
    promising = _most_promising(tree, place.node)
    tries = begins & jnp.any(rest != 0)
    key = jax.random.fold_in(jax.random.wrap_key_data(search.key, impl="threefry2x32"), search.ticks)
    drawn = _random_member(key, jnp.where(tries, rest, promising))
    choice = jnp.where(begins, drawn, attempt.choice)
    state = _select(begins, place.state, attempt.state)
    left = jnp.where(tries & search.active, rest & ~one(choice, len(rest)), rest)
    stuck = begins & in_tree & ~tries & ~jnp.any(promising != 0)
    return Attempt(attempt.line, choice, state), left, stuck


def _most_promising(tree: Tree, node: Array) -> Array:
    """[M / 32] the moves to the children of highest score (UCT as in `planner`), equal ones all of them."""
    child = at(tree.child, node).astype(jnp.int32)
    visits, total = at(tree.worth, child).T  # [M]
    own = at(tree.worth, node)[0]
    exploration = jnp.log((1 + own + C_BASE) / C_BASE + C_INIT) * jnp.sqrt(own)
    score = jnp.where(child > 0, exploration / (1 + visits) + total / jnp.maximum(visits, 1), -jnp.inf)
    return packed((child > 0) & (score == jnp.max(score)))


def _random_member(key: Array, words: Array) -> Array:
    """One of the members of a set, all equally likely."""
    counts = jax.lax.population_count(words).astype(jnp.int32)
    ends = jnp.cumsum(counts)
    chosen = (jax.random.bits(key, dtype=jnp.uint32) % jnp.maximum(ends[-1], 1).astype(jnp.uint32)).astype(jnp.int32)
    word = jnp.sum(ends <= chosen)
    before = at(ends - counts, word)
    flags = at(words, word) >> jnp.arange(32, dtype=jnp.uint32) & 1
    return 32 * word + jnp.sum(jnp.cumsum(flags.astype(jnp.int32)) <= chosen - before)


def _arrival(problem: Problem, before: Place, state: State) -> tuple[Place, Array]:
    """The place that a move leads to, as if beyond the tree, and its reward in tenths."""
    tables, task = problem.tables, problem.task
    now = holding(tables, task, state)
    achieved = before.pending & now & ~before.holding
    counts = count(achieved), count(before.holding & ~now), jnp.all(now == task.every).astype(jnp.int32), jnp.int32(1)
    gain = jnp.sum(problem.rewards * jnp.stack(counts))
    moves, around = options(tables, task, state)
    there = Place(
        state=state,
        node=jnp.int32(-1),
        depth=before.depth + 1,
        holding=now,
        pending=before.pending & ~achieved,
        total=before.total + gain,
        around=around,
        rest=moves,
    )
    return there, gain


def _grown(search: Search, rest: Array, choice: Array, arrives: Array, there: Place) -> tuple[Tree, Array, Place]:
    """The tree with what was tried and, where a move was new to it, another node; that node or the known one; and
    the place, in the tree if the node was known."""
    tree, place = search.tree, search.place
    nodes, max_depth = tree.worth.shape[0], tree.open.shape[0]
    in_tree = place.node >= 0
    known = tree.child.at[place.node, choice].get(mode="clip", wrap_negative_indices=False).astype(jnp.int32)
    makes = arrives & in_tree & (known == 0)
    moves = jnp.where(is_over(there, search.best), jnp.uint32(0), there.rest)

    had_some = jnp.any(at(tree.untried, place.node) != 0)
    closes = in_tree & had_some & ~jnp.any(rest != 0)
    depths = jnp.arange(max_depth)
    opened = (depths == there.depth) & makes & jnp.any(moves != 0)
    rows = jnp.stack([jnp.where(in_tree, place.node, nodes), jnp.where(makes, tree.size, nodes)])
    parent = jnp.where(makes, place.node, nodes)
    grown = Tree(
        child=tree.child.at[parent, choice].set(tree.size.astype(tree.child.dtype), mode="drop"),
        worth=tree.worth,
        untried=tree.untried.at[rows].set(jnp.stack([rest, moves]), mode="drop"),
        open=tree.open - ((depths == place.depth) & closes) + opened,
        size=tree.size + makes,
    )
    follows = in_tree & (known > 0)
    return grown, jnp.where(follows, known, tree.size), there._replace(node=jnp.where(follows, known, -1))


def _extended(search: Search, arrives: Array, depth: Array, node: Array, gain: Array, move: Array) -> Path:
    """The path with a move that was carried out, and the node that it leads to where it set out from the tree."""
    path, in_tree = search.path, search.place.node >= 0
    enters, plays = arrives & in_tree, arrives & ~in_tree
    depths, reward = jnp.arange(len(path.nodes)), gain / TENTHS
    is_leaf = enters & (depths == depth)
    return Path(
        nodes=jnp.where(is_leaf, node, path.nodes),
        before=jnp.where(is_leaf, path.earned, path.before),
        earned=jnp.where(enters, path.earned + at(_discounts(path), depth) * reward, path.earned),
        leaf=jnp.where(enters, depth, path.leaf),
        worth=jnp.where(plays, path.worth + path.weight * reward, jnp.where(enters, 0, path.worth)),
        weight=jnp.where(plays, path.weight**2, jnp.where(enters, DISCOUNT, path.weight)),
        moves=jnp.where(arrives & (depths[1:, None] == depth), move, path.moves),
    )


def _discounts(path: Path) -> Array:
    """[D + 1] powers of the discount."""
    return jnp.asarray(DISCOUNT ** np.arange(len(path.nodes)), jnp.float32)


def _better(best: Best, path: Path, there: Place, arrives: Array) -> Best:
    """The path's moves if they earn more than the best ones, or as much and are fewer."""
    shorter = (there.total == best.total) & (there.depth < best.length)
    return _select(arrives & ((there.total > best.total) | shorter), Best(path.moves, there.depth, there.total), best)


def _backed_up(worth: Array, path: Path, ends: Array) -> Array:
    """[T, 2] with a visit and its return for every node as far as the leaf: the discounted rewards from the node on."""
    discounts, nodes = _discounts(path), worth.shape[0]
    returns = (path.earned + at(discounts, path.leaf) * path.worth - path.before) / discounts
    rows = jnp.where(ends & (jnp.arange(len(path.nodes)) <= path.leaf), path.nodes, nodes)
    return worth.at[rows].add(jnp.stack([jnp.ones_like(returns), returns], -1), mode="drop")


def _select(flag: Array, one: NamedTuple, other: NamedTuple) -> Any:
    return jax.tree.map(partial(jnp.where, flag), one, other)
