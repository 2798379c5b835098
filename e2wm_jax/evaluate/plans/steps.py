"""A plan in words carried out in a world: which objects its names mean, which of its steps work, what they achieve.

A sentence names a class ("Walk to light."), and a house may have several of it. A plan is read in its favor: of the
objects that its names can mean, those are taken with which most of its steps can be executed, then most of the goal is
reached. Among equals, objects that the plan has dealt with before come first, then those that the example's episode is
about, then those in the character's room, then small ids. The search keeps `READINGS` readings of a plan at a time and
tries `OBJECTS` objects of a class, so it is a lower bound for plans about many alike things; it draws nothing by lot.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from e2wm_jax.evaluate.plans.text import Meaning, meanings
from e2wm_jax.tasks.household.sentences import succeeded
from e2wm_jax.worlds.household.actions import Action, Thing
from e2wm_jax.worlds.household.facts import without_closeness
from e2wm_jax.worlds.household.homes.scenes import Node, Scene
from e2wm_jax.worlds.household.world import World

READINGS = 16
OBJECTS = 6
NO_ACTION, NO_OBJECT, NOT_EXECUTABLE = "not an action", "no such object", "not executable"


class SentenceResult(NamedTuple):
    """What became of one sentence."""

    sentence: str
    action: str | None  # the script line that was tried: "[Walk] <light> (245)"
    trouble: str | None  # NO_ACTION, NO_OBJECT or NOT_EXECUTABLE; None where it was executed
    message: str = ""  # what the world says about it

    @property
    def parsed(self) -> bool:
        return self.trouble != NO_ACTION


class PlanResult(NamedTuple):
    """What became of a plan."""

    steps: tuple[SentenceResult, ...]
    goal: frozenset[str]  # the facts to bring about; empty where not known
    reached: frozenset[str]  # those that hold at the end and have come about since the beginning

    @property
    def executed(self) -> int:
        return sum(step.trouble is None for step in self.steps)


class _Reading(NamedTuple):
    """A plan understood up to some sentence. ``cost`` grows with objects that are less likely meant."""

    state: Any
    executed: int = 0
    cost: int = 0
    used: tuple[int, ...] = ()
    steps: tuple[SentenceResult, ...] = ()


def carry_out(
    world: World[Any], scene: Scene, plan: Sequence[str], *, goal: Sequence[str] = (), things: Sequence[int] = ()
) -> PlanResult:
    """Execute the sentences of a plan one after the other; one that fails changes nothing, and the plan goes on.

    Args:
        world: whose rules hold.
        scene: where the plan begins.
        plan: sentences without full stops (`plan_text.sentences`).
        goal: facts between classes to bring about; closeness does not count where anything else is asked for, as in
            `tasks.household.plan.select`.
        things: node ids that the example is about, preferred as the meaning of names.
    """
    wanted = without_closeness(goal) if goal else frozenset()
    gained = world.gained_test(scene, tuple(sorted(wanted)))
    names = {name.lower(): nodes for name, nodes in scene.by_class.items()}
    readings = [_Reading(world.initial(scene))]
    for sentence in plan:
        known = meanings(sentence)
        after = [new for reading in readings for new in _next(world, scene, names, reading, sentence, known, things)]
        readings = sorted(after, key=lambda reading: (-reading.executed, reading.cost))[:READINGS]
    best = max(readings, key=lambda reading: (reading.executed, len(gained(reading.state)), -reading.cost))
    return PlanResult(best.steps, wanted, gained(best.state))


def _next(
    world: World[Any],
    scene: Scene,
    names: dict[str, tuple[Node, ...]],
    reading: _Reading,
    sentence: str,
    known: Sequence[Meaning],
    things: Sequence[int],
) -> list[_Reading]:
    """What a reading becomes with the next sentence: one for each choice of objects with which it can be executed, or
    one in which it fails."""
    placed = [meaning for meaning in known if all(name in names for name in meaning.names)]
    if not placed:
        trouble = NO_OBJECT if known else NO_ACTION
        missing = [name for meaning in known[:1] for name in meaning.names if name not in names]
        return [_failed(reading, SentenceResult(sentence, None, trouble, ", ".join(missing)))]
    executable, first = [], None
    for meaning in placed:
        ordered = [_by_likelihood(world, scene, reading, names[name], things) for name in meaning.names]
        for chosen in product(*(list(enumerate(nodes)) for nodes in ordered)):
            action = Action(meaning.verb, tuple(Thing(node.class_name, node.id) for _, node in chosen))
            state, step = world.step(reading.state, action)
            if succeeded(step):
                executable.append(
                    _Reading(
                        state,
                        reading.executed + 1,
                        reading.cost + sum(rank for rank, _ in chosen),
                        tuple(dict.fromkeys((*reading.used, *(node.id for _, node in chosen)))),
                        (*reading.steps, SentenceResult(sentence, str(action), None)),
                    )
                )
            elif first is None:
                said = step.exception or "; ".join(step.messages)
                first = SentenceResult(sentence, str(action), NOT_EXECUTABLE, said)
        if executable:
            break
    if executable:
        return executable
    assert first is not None  # each class has an object
    return [_failed(reading, first)]


def _failed(reading: _Reading, result: SentenceResult) -> _Reading:
    return reading._replace(steps=(*reading.steps, result))


def _by_likelihood(
    world: World[Any], scene: Scene, reading: _Reading, nodes: Sequence[Node], things: Sequence[int]
) -> list[Node]:
    """The objects that a name can mean, the likeliest first, at most `OBJECTS`."""
    if len(nodes) == 1:
        return list(nodes)
    here = set(world.targets(reading.state, scene.character.id, "INSIDE"))

    def unlikely(node: Node) -> tuple[bool, bool, bool, int]:
        elsewhere = here.isdisjoint(world.targets(reading.state, node.id, "INSIDE"))
        return node.id not in reading.used, node.id not in things, elsewhere, node.id

    return sorted(nodes, key=unlikely)[:OBJECTS]
