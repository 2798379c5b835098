"""Housework: which of four items belongs to an activity, and which of four does not."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from e2wm_jax.tasks.example import Choice
from e2wm_jax.tasks.household.knowledge import Activity, is_item, unrelated
from e2wm_jax.tasks.household.plan import TaskPlan
from e2wm_jax.tasks.household.qa import CHOICES, gold_positions, varied
from e2wm_jax.tasks.household.sentences import words

_SHOTS = 10


@dataclass(frozen=True)
class _Question:
    task: str
    answer: str  # class names
    wrong: tuple[str, ...]


def housework_qa(
    plans: Sequence[TaskPlan], known: Mapping[str, Activity], *, size: int, rng: random.Random
) -> list[Choice]:
    """Ten-shot: an item that the activity may need, in the official form; each (task, item) once.

    The official set asks once about each of its 261 activities. Here each is asked about once before any is a second
    time, until there are `size` questions or all items have been asked for.

    Args:
        plans: plans whose items are the answers.
        known: all activities, for items that no episode of the task is about.
        size: the most questions wanted.
        rng: decides order, examples and distractors.
    """
    questions = []
    for task, items in _items(plans).items():
        others = [item for item in unrelated(task, known) if item not in items]
        if len(others) >= CHOICES - 1:
            questions += [_Question(task, item, tuple(rng.sample(others, CHOICES - 1))) for item in items]
    text = "Question: To {task}, a possibly related item could be\nAnswer:"
    return _choices(questions, text, size=size, rng=rng)


def neg_housework_qa(
    plans: Sequence[TaskPlan], known: Mapping[str, Activity], *, size: int, rng: random.Random
) -> list[Choice]:
    """Ten-shot: the one item that no episode of the activity is about, beside three that belong to it.

    Each (task, answer) once; arguments and order as in `housework_qa`. The choices are listed in the question.
    """
    questions = []
    for task, items in _items(plans).items():
        others = [item for item in unrelated(task, known) if item not in items]
        if len(items) >= CHOICES - 1:
            questions += [_Question(task, item, tuple(rng.sample(items, CHOICES - 1))) for item in others]
    text = "Question: To {task}, a unrelated item could be\n{choices}\nAnswer:"
    return _choices(questions, text, size=size, rng=rng)


def _items(plans: Sequence[TaskPlan]) -> dict[str, list[str]]:
    """Task -> the items its plans are about, sorted."""
    items: dict[str, set[str]] = {}
    for plan in plans:
        items.setdefault(plan.task, set()).update(filter(is_item, plan.items))
    return {task: sorted(items[task]) for task in sorted(items)}


def _choices(questions: Sequence[_Question], text: str, *, size: int, rng: random.Random) -> list[Choice]:
    """Every task once before any a second time; ten examples of other tasks in front of each question."""
    tasks = Counter(question.task for question in questions)
    askable = [question for question in questions if len(questions) - tasks[question.task] >= _SHOTS]
    targets = varied(askable, size, rng, lambda question: question.task)
    examples = []
    for target, position in zip(targets, gold_positions(len(targets), CHOICES, rng), strict=True):
        others = [question for question in questions if question.task != target.task]
        blocks = [
            f"{_prompt(shown, _in_order(shown, rng.randrange(CHOICES)), text)} {words(shown.answer)}"
            for shown in varied(others, _SHOTS, rng, lambda question: question.task)
        ]
        order = _in_order(target, position)
        prompt = "\n\n".join([*blocks, _prompt(target, order, text)])
        examples.append(Choice(prompt, words(target.answer), tuple(order)))
    return examples


def _in_order(question: _Question, position: int) -> list[str]:
    choices = [words(item) for item in question.wrong]
    return [*choices[:position], words(question.answer), *choices[position:]]


def _prompt(question: _Question, order: Sequence[str], text: str) -> str:
    lines = [f"{letter}: {choice}" for letter, choice in zip("ABCD", order, strict=True)]
    return text.format(task=question.task, choices="\n".join(lines))
