"""Plan generation with distraction: items that the task does not need, among its items and its conditions."""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from e2wm_jax.tasks.household.knowledge import Activity, unrelated
from e2wm_jax.tasks.household.plan import TaskPlan, question
from e2wm_jax.tasks.household.sentences import ROOMS, condition_sentences
from e2wm_jax.worlds.household.facts import split_fact

_ADDED = (1, 1, 2, 2, 3)  # items to a question, drawn uniformly; an example gets one
Facts = tuple[str, ...]


def item_facts(plans: Iterable[TaskPlan]) -> dict[str, list[Facts]]:
    """Item -> the different things that conditions say about it alone: its states, and the room where it is."""
    found: dict[str, set[Facts]] = {}
    for plan in plans:
        for item in plan.items:
            facts = dict.fromkeys(fact for fact in plan.conditions if _is_about(fact, item))
            if any(len(split_fact(fact)) > 2 for fact in facts):
                found.setdefault(item, set()).add(tuple(facts))
    return {item: sorted(found[item]) for item in sorted(found)}


def _is_about(fact: str, item: str) -> bool:
    parts = split_fact(fact)
    return parts[0] == item and (len(parts) == 2 or (parts[1] == "INSIDE" and parts[2] in ROOMS))


def distraction(
    plans: Iterable[TaskPlan], known: Mapping[str, Activity], rng: random.Random
) -> Callable[[list[TaskPlan]], list[TaskPlan]]:
    """What `plan.plan_gen` calls `reword`: adds one to three items to the last question and one to each other.

    Added are items that no episode of the task is about, with their states and the room where they are somewhere else
    (`plans`). Items and conditions of a question are shuffled.
    """
    facts = item_facts(plans)
    strangers = {task: [item for item in unrelated(task, known) if item in facts] for task in known}

    def confuse(plan: TaskPlan, number: int) -> TaskPlan:
        added = rng.sample(strangers[plan.task], min(number, len(strangers[plan.task])))
        items = [*plan.items, *added]
        sentences = condition_sentences(plan.conditions)
        sentences += [text for item in added for text in condition_sentences(rng.choice(facts[item]))]
        rng.shuffle(items)
        rng.shuffle(sentences)
        return replace(plan, question=question(plan.task, items, sentences))

    def reword(block: list[TaskPlan]) -> list[TaskPlan]:
        *solved, target = block
        return [*(confuse(plan, 1) for plan in solved), confuse(target, rng.choice(_ADDED))]

    return reword
