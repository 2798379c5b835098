"""The world of `rules` for accelerators: pure functions of one state, to be batched by `jax.vmap`.

    tables = device_tables(tables_of(scene, "vh23"))
    state, outcome = jax.jit(jax.vmap(step, (None, 0, 0)))(tables, states, actions)

`native.step` is the same on a CPU core and the reference of every test and effect. `tables` says what a state is,
and in what the two differ. Letters: V verbs, the others as there.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.worlds.household.arrays import INSIDE, ON, DialectRules, dialect_rules
from e2wm_jax.worlds.household.batched.checks import (
    Line,
    answers,
    near,
    nodes_that_pass,
    of_thing,
    questions_of,
    reachable,
)
from e2wm_jax.worlds.household.batched.edges import (
    Spot,
    View,
    at,
    has,
    one,
    room_node,
    room_numbers,
    spot_of,
    spread,
    view_of,
)
from e2wm_jax.worlds.household.batched.effects import Change, changed
from e2wm_jax.worlds.household.batched.tables import (
    Array,
    DeviceTables,
    Sizes,
    State,
    device_tables,
    sizes_of,
    stacked_tables,
    state_of,
    vector_of,
)
from e2wm_jax.worlds.household.rules import RULES, TWO_THINGS, VERB_INDEX, Effect, Otherwise, Test

__all__ = [
    "TWO_THINGS",
    "Action",
    "DeviceTables",
    "Legal",
    "Outcome",
    "Sizes",
    "State",
    "device_tables",
    "legal",
    "random_legal",
    "rollout",
    "sizes_of",
    "stacked_tables",
    "state_of",
    "step",
    "vector_of",
]

WALK = VERB_INDEX["WALK"]


class Action(NamedTuple):
    """A line, int32: verb in `RULES`, numbers of its nodes (any for those that it does not take)."""

    verb: Array
    x: Array
    y: Array


class Outcome(NamedTuple):
    """What became of a line; as `native.step.step` says it."""

    succeeds: Array  # [] bool
    check: Array  # [] int32: the check of the dialect's rule that ended the line, -1 for none
    note: Array  # [] int32: a check that left a message, 100 + the check that ended the walk of a far FIND, or -1


class Legal(NamedTuple):
    """The lines that succeed with their effect."""

    one: Array  # [V, W] X of verbs that take one thing; for those that take none, the character
    two: Array  # [3, 2, W] Y of the verbs `TWO_THINGS`, whose X is in the right hand, in the left (if it is another)


class _Program(NamedTuple):
    """The rules of a dialect."""

    questions: tuple[tuple[Test, bool, int], ...]
    asked: np.ndarray  # [V, M] bit of the answer, -1 for no check: `questions_of`
    otherwise: np.ndarray  # [V, M]
    effects: np.ndarray  # [V, 3]


@lru_cache
def _program(dialect: str) -> _Program:
    rules = dialect_rules(dialect)
    return _Program(*questions_of(dialect), rules.checks[..., 3], rules.effects)


# A step


def step(tables: DeviceTables, state: State, action: Action) -> tuple[State, Outcome]:
    """Execute a line. A line that fails gives the state as it was."""
    program = _program(tables.dialect)
    view = view_of(tables, state)
    verb, x, y = (jnp.asarray(part, jnp.int32) for part in action)
    effect, lost, gained = at(jnp.asarray(program.effects), verb)

    noted = at(state.memory, x).astype(jnp.int32) - 1
    back = (effect == Effect.PUT_BACK) & (noted >= 0)
    relation = jnp.where(back, noted & 3, jnp.where(effect == Effect.PUT_IN, INSIDE, ON))
    y = jnp.where(back, noted >> 2, y)
    inside = (relation == INSIDE) & (back | (effect == Effect.PUT_IN))
    here, there = room_numbers(view, jnp.stack([tables.character, x]))
    spots = jax.vmap(partial(spot_of, view))(jnp.stack([x, y]))
    line = Line(Spot(x, spots.rows[0]), near(view, spots), y, inside, here, there)
    found = answers(view, line, program.questions)

    stop, note = _ended(program, found, verb)
    fails = stop >= 0
    outcome = Outcome(fails & (_otherwise(program, verb, stop) == Otherwise.SKIP) | ~fails, stop, note)

    find = (effect == Effect.FIND_OR_WALK) & ~fails
    far = find & ~line.near[0] & of_thing(view, line, Test.WALKABLE, False)
    stopped, _ = _ended(program, found, jnp.int32(WALK))
    stays = far & (stopped >= 0)
    crashes = _otherwise(program, jnp.int32(WALK), stopped) == Otherwise.CRASH
    lost_way = stays & (crashes | (tables.dialect == "vh19"))
    outcome = Outcome(outcome.succeeds & ~lost_way, stop, jnp.where(stays, 100 + stopped, note))

    cases = {Effect.NOTHING: fails | lost_way, Effect.WALK: far & ~stays, Effect.FIND: find}
    done = jnp.select([*cases.values()], [*cases], effect)
    rooms = room_node(view, here), room_node(view, there)
    return changed(view, Change(done, lost, gained, line.x, y, relation, *rooms)), outcome


def _otherwise(program: _Program, verb: Array, place: Array) -> Array:
    return jnp.asarray(program.otherwise).at[verb, place].get(mode="clip", wrap_negative_indices=False)


def _ended(program: _Program, found: Array, verb: Array) -> tuple[Array, Array]:
    """The place of the check that ends a line, and of the last check before it that only leaves a message; or -1."""
    asked, otherwise = at(jnp.asarray(program.asked), verb), at(jnp.asarray(program.otherwise), verb)
    places, last = jnp.arange(asked.shape[0]), asked.shape[0]
    fails = (asked >= 0) & ~has(found, asked)
    stop = jnp.min(jnp.where(fails & (otherwise != Otherwise.NOTE), places, last))
    note = jnp.max(jnp.where(fails & (otherwise == Otherwise.NOTE) & (places < stop), places, -1))
    return jnp.where(stop == last, -1, stop), note


# Legal actions


def legal(tables: DeviceTables, state: State) -> Legal:
    """All lines that succeed with their effect: for each verb the nodes that pass all its checks."""
    view = view_of(tables, state)
    reach = reachable(view)
    (here,) = room_numbers(view, tables.character[None])
    rules = dialect_rules(tables.dialect)
    known: dict[tuple[Test, int, bool], Array] = {}

    def passing(test: Test, argument: int = 0, inside: bool = True) -> Array:
        key = (test, argument, inside and test is Test.ACCESSIBLE)
        if key not in known:
            known[key] = nodes_that_pass(view, reach, here, test, argument, inside)
        return known[key]

    def all_of(verb: int, of: str, inside: bool = True) -> Array:
        """[W] the nodes that pass all checks of X, or of Y; those that only leave a message count for nothing."""
        found = tables.exists
        for check, (test, _, argument, _) in zip(rules.of_verb[verb], rules.checks[verb].tolist(), strict=False):
            if check.of == of and check.otherwise is not Otherwise.NOTE:
                found = found & passing(Test(test), argument, inside)
        return found

    hands = state.hands.astype(jnp.int32) - 1
    usable = (hands >= 0) & (jnp.arange(2) == 0) | (hands >= 0) & (hands[0] != hands[1])
    nothing = jnp.zeros_like(state.close)
    rows = []
    for verb, rule in enumerate(RULES):
        if rule.arity == 2:
            row = nothing
        elif rule.effect is Effect.PUT_BACK:
            row = all_of(verb, "X") & _can_be_put_back(view, hands, all_of(verb, "Y", False), all_of(verb, "Y", True))
        else:
            row = all_of(verb, "X")
            if rule.effect is Effect.FIND_OR_WALK:
                row &= ~_lost_on_the_way(tables, rules, passing)
            if rule.arity == 0:
                row &= one(tables.character, view.words)
        rows.append(row)
    pairs = [
        [jnp.where(usable[hand] & has(all_of(verb, "X"), hands[hand]), all_of(verb, "Y"), nothing) for hand in (0, 1)]
        for verb in TWO_THINGS
    ]
    return Legal(jnp.stack(rows), jnp.stack([jnp.stack(pair) for pair in pairs]))


def _can_be_put_back(view: View, hands: Array, on: Array, inside: Array) -> Array:
    """[W] what the hands hold whose remembered place is one of ``on``, or of ``inside`` if it was there."""
    found = jnp.zeros_like(on)
    for thing in hands:
        note = view.state.memory[thing].astype(jnp.int32) - 1
        fits = jnp.where(note & 3 == INSIDE, has(inside, note >> 2), has(on, note >> 2))
        found |= one(thing, view.words) & spread(fits & (note >= 0))
    return found


def _lost_on_the_way(tables: DeviceTables, rules: DialectRules, passing: Callable[..., Array]) -> Array:
    """[W] the nodes that FIND would have to walk to, which ends the line."""
    free, lost = tables.exists, jnp.zeros_like(tables.exists)
    for check, (test, _, argument, _) in zip(rules.of_verb[WALK], rules.checks[WALK].tolist(), strict=False):
        passed = passing(Test(test), argument)
        if check.otherwise is Otherwise.CRASH or tables.dialect == "vh19":
            lost |= free & ~passed
        free &= passed
    return ~passing(Test.NEAR) & passing(Test.WALKABLE) & lost


# Random play


def random_legal(key: Array, state: State, legal: Legal) -> Action:
    """One of the legal lines of a state, all equally likely; a Walk to node 0, which may fail, where there is none."""
    verbs, words = legal.one.shape
    sets = jnp.concatenate([legal.one, legal.two.reshape(-1, words)])  # [V + 6, W]
    counts = jax.lax.population_count(sets).astype(jnp.int32)
    total = jnp.sum(counts)
    chosen = jax.random.randint(key, (), 0, jnp.maximum(total, 1))
    row, chosen = _nth(jnp.sum(counts, axis=1), chosen)
    word, chosen = _nth(at(counts, row), chosen)
    bit, _ = _nth(at(sets, row)[word] >> jnp.arange(32, dtype=jnp.uint32) & 1, chosen)
    node, pair = 32 * word + bit, row >= verbs
    verb = at(jnp.array([*range(verbs), *(verb for verb in TWO_THINGS for _ in range(2))]), row)
    held = at(state.hands, (row - verbs) & 1).astype(jnp.int32) - 1
    line = Action(verb, jnp.where(pair, held, node), jnp.where(pair, node, 0))
    return jax.tree.map(lambda part: jnp.where(total > 0, part, 0), line)


def _nth(counts: Array, n: Array) -> tuple[Array, Array]:
    """The pile in which item ``n`` lies when piles of so many items follow each other, and its place in it."""
    ends = jnp.cumsum(counts.astype(jnp.int32))
    pile = jnp.sum(ends <= n)
    return pile, n - jnp.where(pile > 0, at(ends, pile - 1), 0)


def rollout(tables: DeviceTables, state: State, key: Array, length: int) -> tuple[State, Action]:
    """Random legal lines from a state.

    Returns:
        (the last state, the lines [length])
    """

    def play(state: State, key: Array) -> tuple[State, Action]:
        action = random_legal(key, state, legal(tables, state))
        return step(tables, state, action)[0], action

    return jax.lax.scan(play, state, jax.random.split(key, length))
