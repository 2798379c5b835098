"""Multiple-choice sets: which task is this plan, where was the object, how many items are there.

Gold answers are spread evenly over the positions (their counts differ by at most one), so that neither a constant
position nor, where the choices are always the same, a constant answer scores above chance. Counting follows its
material: large numbers may be too rare for that.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

from e2wm_jax.tasks.counting import CountStory
from e2wm_jax.tasks.example import Choice
from e2wm_jax.tasks.plan import Plan, targets
from e2wm_jax.tasks.tracking import ROOMS, Story, askable, stories

NUMBERS = ("0", "1", "2", "3", "4")
_CHOICES = 4
_PLAN = "Given a task plan: {plan}\nQuestion: what is the name of this task?\nAnswer:"


def gold_positions(count: int, choices: int, rng: random.Random) -> list[int]:
    """`count` positions below `choices` in random order, each as often as the others (give or take one)."""
    order = rng.sample(range(choices), choices)
    positions = [order[index % choices] for index in range(count)]
    rng.shuffle(positions)
    return positions


def act_recog(plans: Sequence[Plan], every_plan: Sequence[Plan], *, size: int, rng: random.Random) -> list[Choice]:
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
        if len(others) >= _CHOICES - 1:
            blocks = [_PLAN.format(plan=plan.text) + f" {plan.task}" for plan in solved]
            prompt = "\n".join([*blocks, _PLAN.format(plan=target.text)])
            asked.append((prompt, target.task, rng.sample(others, _CHOICES - 1)))
    positions = gold_positions(len(asked), _CHOICES, rng)
    return [
        Choice(prompt, answer, (*distractors[:position], answer, *distractors[position:]))
        for (prompt, answer, distractors), position in zip(asked, positions, strict=True)
    ]


def obj_move(rng: random.Random, *, size: int, seen: set[Story]) -> list[Choice]:
    """Two-shot object location: the room before or after another on the object's way, among all six rooms.

    The rooms keep the official order; each is the answer equally often. Stories enter `seen`, which is avoided.
    """
    source = stories(rng, seen)
    examples = []
    for index, position in enumerate(gold_positions(size, len(ROOMS), rng)):
        solved = [_place_question(source, rng, relation) for relation in rng.sample(("before", "after"), 2)]
        prompt, answer = _place_question(source, rng, ("before", "after")[index % 2], ROOMS[position])
        examples.append(Choice("\n\n".join([*(f"{q} {a}" for q, a in solved), prompt]), answer, ROOMS))
    return examples


def _place_question(
    source: Iterator[tuple[Story, str]], rng: random.Random, relation: str, answer: str | None = None
) -> tuple[str, str]:
    """A block up to "Answer:" and the room; with `answer`, the first story that allows a question with that answer."""
    for story, text in source:
        options = []
        for thing, path in askable(story):
            for first, second in pairwise(path):
                asked, gold = (second, first) if relation == "before" else (first, second)
                if answer in (None, gold):
                    options.append((thing, asked, gold))
        if options:
            thing, asked, gold = rng.choice(options)
            return f"{text}\nQuestion: Where was the {thing} {relation} the {asked}?\nAnswer:", gold
    raise AssertionError("unreachable: there is always another story")


def count(questions: Sequence[CountStory], *, size: int, rng: random.Random) -> list[Choice]:
    """Five-shot counting with the choices 0 to 4, in the official form.

    Examples are told from other episodes than the target and show as many different numbers as there are.
    """
    pool = [story for story in questions if str(story.number) in NUMBERS]
    examples = []
    for target in pool[:size]:
        others = [story for story in pool if story.source != target.source]
        if len(others) >= len(NUMBERS):
            solved = _varied(others, len(NUMBERS), rng)
            blocks = [f"Q: {story.question}\nA: {story.number}" for story in solved]
            prompt = "\n\n".join([*blocks, f"Q: {target.question}\nA:"])
            examples.append(Choice(prompt, str(target.number), NUMBERS))
    return examples


def _varied(pool: Sequence[CountStory], count: int, rng: random.Random) -> list[CountStory]:
    """`count` stories in random order, the first of each number before the second of any."""
    rounds: dict[int, int] = {}
    ranked = []
    for story in rng.sample(list(pool), len(pool)):
        rounds[story.number] = rounds.get(story.number, 0) + 1
        ranked.append((rounds[story.number], story))
    chosen = [story for _, story in sorted(ranked, key=lambda pair: pair[0])[:count]]
    rng.shuffle(chosen)
    return chosen
