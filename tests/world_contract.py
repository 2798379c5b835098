"""What every world owes: the checks that `test_worlds.py` runs on each of them."""

import pickle
import random
from typing import Any

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.worlds.world import Outcome, World

STEPS = 12


def walk(world: World[Any], scenario: str, seed: int) -> list[tuple[Any, str, Outcome]]:
    """A walk at random: (state, action, outcome) of every step, and of the state before."""
    rng, state, found = random.Random(seed), world.initial(scenario, seed), []
    for _ in range(STEPS):
        action = rng.choice(world.options(state))
        after, outcome = world.step(state, action)
        found.append((state, action, outcome))
        state = after
        if outcome.end:
            break
    return found


def said_of(world: World[Any], state: Any) -> tuple[str, tuple[str, ...], frozenset[str]]:
    return world.observe(state), world.options(state), world.facts(state)


def check_the_same_seed_gives_the_same_bytes(world: World[Any], scenario: str) -> None:
    first, again = (pickle.dumps(walk(world, scenario, 3)) for _ in range(2))
    assert first == again


def check_states_are_values(world: World[Any], scenario: str) -> None:
    """A step leaves the state alone that it was given; equal states are equal and go on alike, pickled or not."""
    for state, action, _ in walk(world, scenario, 4):
        before, copy = said_of(world, state), pickle.loads(pickle.dumps(state))
        assert copy == state
        (after, outcome), (other, another) = world.step(state, action), world.step(copy, action)
        assert said_of(world, state) == before
        assert after == other
        assert pickle.dumps(outcome) == pickle.dumps(another)
        assert said_of(world, after) == said_of(world, other)


def check_every_option_can_be_done(world: World[Any], scenario: str, most: int = 200) -> None:
    rng = random.Random(5)
    for state, _, _ in walk(world, scenario, 5)[::4]:
        options = world.options(state)
        assert len(set(options)) == len(options)
        for action in rng.sample(options, min(most, len(options))):
            _, outcome = world.step(state, action)
            assert outcome.ok, f"{action}: {outcome.said}"


def check_what_fails_says_why_and_changes_nothing(world: World[Any], scenario: str, action: str) -> None:
    state = world.initial(scenario)
    assert action not in world.options(state)
    after, outcome = world.step(state, action)
    assert not outcome.ok
    assert outcome.said
    assert after == state


def check_other_text_is_refused(world: World[Any], scenario: str) -> None:
    with pytest.raises(InputError, match="do something"):
        world.step(world.initial(scenario), "do something")


def check_the_aim_is_a_share(world: World[Any], scenario: str) -> None:
    aim = world.aim(scenario)
    if aim is not None:
        assert aim.task
        assert all(0 <= aim.reached(state) <= 1 for state, _, _ in walk(world, scenario, 6))


def check_the_expert_says_what_can_be_done(world: World[Any], scenario: str) -> None:
    state = world.initial(scenario)
    said = world.expert(state)
    assert said is None or said in world.options(state)
