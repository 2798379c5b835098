"""Activity inference: from what an activity has changed in the world to its name, among four."""

import random
from collections.abc import Iterable, Mapping, Sequence

from e2wm_jax.tasks.example import Choice
from e2wm_jax.tasks.household.knowledge import Activity
from e2wm_jax.tasks.household.plan import TaskPlan
from e2wm_jax.tasks.household.qa import CHOICES, at_even_positions, varied
from e2wm_jax.tasks.household.sentences import ROOMS, words
from e2wm_jax.worlds.household.facts import split_fact

PEOPLE = ("Tom", "Peter", "Mary", "Eric")
_SHOTS = 10
_LONGEST = 10  # sentences
_QUESTION = "Question: Given the above state, a possible activity could be\nAnswer:"
# The order of the sentences. A fact is a pattern where "character" stands for the person and "*" for any class; a
# fact of another form is not told: CLEAN and DIRTY, in which room a thing is, what things are close to each other.
_FORMS = {
    ("*", "ON"): "The {0} is on.",
    ("*", "OFF"): "The {0} is off.",
    ("*", "OPEN"): "The {0} is open.",
    ("*", "CLOSED"): "The {0} is closed.",
    ("*", "PLUGGED_IN"): "The {0} is plugged in.",
    ("*", "PLUGGED_OUT"): "The {0} is unplugged.",
    ("character", "SITTING"): "{person} is sitting.",
    ("character", "LYING"): "{person} is lying.",
    ("character", "CLOSE", "*"): "{person} is close to {all}.",
    ("character", "HOLDS_RH", "*"): "{person} is holding the {1} in the right hand.",
    ("character", "HOLDS_LH", "*"): "{person} is holding the {1} in the left hand.",
    ("character", "FACING", "*"): "{person} is facing the {1}.",
    ("character", "ON", "*"): "{person} is on the {1}.",
    ("character", "INSIDE", "*"): "{person} is inside the {1}.",
    ("*", "ON", "character"): "The {0} is on {person}.",
    ("*", "ON", "*"): "The {0} is on the {1}.",
    ("*", "INSIDE", "*"): "The {0} is inside the {1}.",
}
_ORDER = list(_FORMS)


def _form(fact: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(form, the classes it is about) of a fact that is told, with the person first in a CLOSE."""
    parts = split_fact(fact)
    if len(parts) == 3 and parts[1] == "CLOSE" and parts[2] == "character":
        parts = (parts[2], parts[1], parts[0])
    classes = parts[::2]
    if len(parts) == 3 and (classes[0] == classes[1] or (parts[1] == "INSIDE" and _is_place_of_a_thing(classes))):
        return None
    form = tuple(part if part in ("character", parts[1]) else "*" for part in parts)
    return (form, classes if len(parts) == 3 else classes[:1]) if form in _FORMS else None


def _is_place_of_a_thing(classes: Sequence[str]) -> bool:
    return classes[0] != "character" and classes[1] in ROOMS


def told(change: Iterable[str]) -> frozenset[str]:
    """The facts of a change that its description speaks of."""
    return frozenset(fact for fact in change if _form(fact) is not None)


def state_sentences(change: Iterable[str], person: str) -> list[str]:
    """The told facts as sentences about `person`: things, then what the person does, then where things are now."""
    grouped: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for fact in sorted(change):
        if (found := _form(fact)) is not None:
            form, classes = found
            grouped.setdefault(form, []).append(tuple(map(words, classes)))
    sentences = []
    for form in sorted(grouped, key=_ORDER.index):
        text = _FORMS[form]
        if "{all}" in text:
            sentences.append(text.format(person=person, all=", ".join(classes[1] for classes in grouped[form])))
        else:
            sentences += [text.format(*classes, person=person) for classes in grouped[form]]
    return sentences


def possible(change: frozenset[str], plans: Iterable[TaskPlan], known: Mapping[str, Activity]) -> set[str]:
    """Every activity that the description may be of.

    Those of which some episode has a goal that holds there, as far as goals are told, and those of which some plan
    ends in just this description.
    """
    facts = told(change)
    fulfilled = {name for name, activity in known.items() if any(told(goal) <= facts for goal in activity.goals)}
    return fulfilled | {plan.task for plan in plans if told(plan.change) == facts}


def act_infer(
    plans: Sequence[TaskPlan],
    every_plan: Sequence[TaskPlan],
    known: Mapping[str, Activity],
    *,
    size: int,
    rng: random.Random,
) -> list[Choice]:
    """Ten-shot inference of the activity from its final change, in the official form; each (task, state) once.

    The solved examples are of other activities, each shown once as far as there are ten, and of other states.

    Args:
        plans: the plans to ask about and to show as examples.
        every_plan: all plans of all splits.
        known: all activities; their names are the choices.
        size: the most questions wanted.
        rng: decides order, names of persons, examples and distractors.
    """
    pool = list({(plan.task, told(plan.change)): plan for plan in plans if _is_describable(plan)}.values())
    rng.shuffle(pool)
    asked: list[tuple[str, str, list[str]]] = []
    for target in pool:
        others = sorted(known.keys() - possible(target.change, every_plan, known) - {target.task})
        shown = [plan for plan in pool if plan.task != target.task and told(plan.change) != told(target.change)]
        if len(asked) < size and len(others) >= CHOICES - 1 and len(shown) >= _SHOTS:
            blocks = [f"{_block(plan, rng)}{plan.task}" for plan in varied(shown, _SHOTS, rng, lambda plan: plan.task)]
            prompt = "\n\n".join([*blocks, _block(target, rng)])
            asked.append((prompt, target.task, rng.sample(others, CHOICES - 1)))
    return at_even_positions(asked, rng)


def _is_describable(plan: TaskPlan) -> bool:
    return 1 <= len(state_sentences(plan.change, PEOPLE[0])) <= _LONGEST


def _block(plan: TaskPlan, rng: random.Random) -> str:
    return f"{' '.join(state_sentences(plan.change, rng.choice(PEOPLE)))}\n{_QUESTION}"
