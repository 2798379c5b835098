"""Multiple-choice sets: which task is this plan, where was the object, how many items are there.

Gold answers are spread evenly over the positions (their counts differ by at most one), so that neither a constant
position nor, where the choices are always the same, a constant answer scores above chance. Counting follows its
material: large numbers may be too rare for that.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from e2wm_jax.tasks.example import Choice
from e2wm_jax.tasks.household.counting import CountStory
from e2wm_jax.tasks.household.plan import TaskPlan, targets
from e2wm_jax.tasks.household.tracking import ROOMS, Story, StorySource, askable, story_text

Item = TypeVar("Item")
NUMBERS = ("0", "1", "2", "3", "4")
CHOICES = 4  # of questions whose choices differ
_PLAN = "Given a task plan: {plan}\nQuestion: what is the name of this task?\nAnswer:"


def gold_positions(count: int, choices: int, rng: random.Random) -> list[int]:
    """`count` positions below `choices` in random order, each as often as the others (give or take one)."""
    order = rng.sample(range(choices), choices)
    positions = [order[index % choices] for index in range(count)]
    rng.shuffle(positions)
    return positions


def at_even_positions(asked: Sequence[tuple[str, str, Sequence[str]]], rng: random.Random) -> list[Choice]:
    """(prompt, answer, the other choices) as questions whose answers stand at each position equally often."""
    if not asked:
        return []
    positions = gold_positions(len(asked), len(asked[0][2]) + 1, rng)
    return [
        Choice(prompt, answer, (*others[:position], answer, *others[position:]))
        for (prompt, answer, others), position in zip(asked, positions, strict=True)
    ]


def varied(pool: Sequence[Item], count: int, rng: random.Random, kind: Callable[[Item], object]) -> list[Item]:
    """`count` items in random order, the first of each kind before the second of any."""
    rounds: Counter[object] = Counter()
    ranked = []
    for item in rng.sample(list(pool), len(pool)):
        rounds[kind(item)] += 1
        ranked.append((rounds[kind(item)], item))
    chosen = [item for _, item in sorted(ranked, key=lambda pair: pair[0])[:count]]
    rng.shuffle(chosen)
    return chosen


def act_recog(
    plans: Sequence[TaskPlan], every_plan: Sequence[TaskPlan], *, size: int, rng: random.Random
) -> list[Choice]:
    """Two-shot activity recognition with four task names in the official form.

    A name is no distractor if some plan of that task reads exactly like the target's: it would be right too.

    Args:
        plans: the plans to ask about and to show as examples.
        every_plan: all plans of all splits; their tasks are the names to choose from.
        size: the most questions wanted.
        rng: decides order, examples and distractors.
    """
    tasks_of: dict[str, set[str]] = {}
    for plan in every_plan:
        tasks_of.setdefault(plan.text, set()).add(plan.task)
    names = sorted({plan.task for plan in every_plan})
    asked = []
    for *solved, target in targets(plans, key="task", shot_count=2, size=size, rng=rng):
        others = [name for name in names if name not in tasks_of[target.text]]
        if len(others) >= CHOICES - 1:
            blocks = [_PLAN.format(plan=plan.text) + f" {plan.task}" for plan in solved]
            prompt = "\n".join([*blocks, _PLAN.format(plan=target.text)])
            asked.append((prompt, target.task, rng.sample(others, CHOICES - 1)))
    return at_even_positions(asked, rng)


def obj_move(rng: random.Random, *, size: int, seen: set[Story], experienced: Iterable[Story] = ()) -> list[Choice]:
    """Two-shot object location: the room before or after another on the object's way, among all six rooms.

    The rooms keep the official order; each is the answer equally often.

    Args:
        rng: source of the stories that are made up.
        size: number of questions.
        seen: stories that must not be used, from other sets; extended by those used here.
        experienced: stories to use before any is made up.
    """
    source = StorySource(rng, seen, list(experienced))
    examples = []
    for index, position in enumerate(gold_positions(size, len(ROOMS), rng)):
        solved = [_place_question(source, rng, relation) for relation in rng.sample(("before", "after"), 2)]
        prompt, answer = _place_question(source, rng, ("before", "after")[index % 2], ROOMS[position])
        examples.append(Choice("\n\n".join([*(f"{q} {a}" for q, a in solved), prompt]), answer, ROOMS))
    return examples


def _place_question(
    source: StorySource, rng: random.Random, relation: str, answer: str | None = None
) -> tuple[str, str]:
    """A block up to "Answer:" and the room; with `answer`, the first story that allows a question with that answer."""

    def options(story: Story) -> list[tuple[str, str, str]]:
        steps = [(thing, *step) for thing, path in askable(story) for step in pairwise(path)]
        found = [(thing, *((b, a) if relation == "before" else (a, b))) for thing, a, b in steps]
        return [option for option in found if answer in (None, option[2])]

    story = source.take(lambda story: bool(options(story)))
    thing, asked, gold = rng.choice(options(story))
    return f"{story_text(story, rng)}\nQuestion: Where was the {thing} {relation} the {asked}?\nAnswer:", gold


def count(questions: Sequence[CountStory], *, size: int, rng: random.Random) -> list[Choice]:
    """Five-shot counting with the choices 0 to 4, in the official form.

    Examples are told from other episodes than the target and show as many different numbers as there are, each by one
    of the shorter half of its stories: a prompt as long as the official ones, which always show the same five.
    """
    pool = [story for story in questions if str(story.number) in NUMBERS]
    short = _shorter_half(pool)
    examples = []
    targets = pool[:size]
    rng.shuffle(targets)
    for target in targets:
        others = [story for story in short if story.source != target.source]
        if len(others) >= len(NUMBERS):
            solved = varied(others, len(NUMBERS), rng, lambda story: story.number)
            blocks = [f"Q: {story.question}\nA: {story.number}" for story in solved]
            prompt = "\n\n".join([*blocks, f"Q: {target.question}\nA:"])
            examples.append(Choice(prompt, str(target.number), NUMBERS))
    return examples


def _shorter_half(stories: Sequence[CountStory]) -> list[CountStory]:
    """Of each number the shorter half of the stories."""
    by_number: dict[int, list[CountStory]] = {}
    for story in sorted(stories, key=lambda story: len(story.question)):
        by_number.setdefault(story.number, []).append(story)
    return [story for group in by_number.values() for story in group[: (len(group) + 1) // 2]]
