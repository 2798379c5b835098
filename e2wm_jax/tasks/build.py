"""All task files from collected episodes: select, split, put into words, check, count."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.simulate.actions import parse_action
from e2wm_jax.simulate.trajectory import Trajectory
from e2wm_jax.tasks import activity, counting, leakage, plan, qa, tracking
from e2wm_jax.tasks.counting import CountQuestion, CountStory
from e2wm_jax.tasks.example import Choice, Example
from e2wm_jax.tasks.plan import Plan
from e2wm_jax.tasks.split import split

_COLLECT_PLANS = "e2wm collect --policy mcts --goals robothow --out DIR"
_COLLECT_STORIES = "e2wm collect --policy random --out DIR"
# How the statistics sum up long answers: plans by steps, paths by rooms, counts by number; all else as it is.
_KINDS: dict[str, Callable[[str], str]] = {
    "train/train_plan_gen.json": lambda gold: f"{gold.count('.')} steps",
    "eval/gen/plan_gen.json": lambda gold: f"{gold.count('.')} steps",
    "train/train_count.json": lambda gold: " ".join(gold.split()[2:4]),
    "train/train_obj_move.json": lambda gold: f"{gold.count(',') + 1} rooms",
    "eval/gen/obj_move_path.json": lambda gold: f"{gold.count(',') + 1} rooms",
}


@dataclass(frozen=True)
class Sizes:
    """The most examples of each file; the defaults are the official files' sizes."""

    train_plan_gen: int = 1659
    train_act_recog: int = 1659
    train_count: int = 1000
    train_obj_move: int = 1000
    eval_plan_gen: int = 175
    eval_obj_move_path: int = 200
    eval_act_recog: int = 549
    eval_obj_move: int = 200
    eval_count: int = 194


@dataclass(frozen=True)
class TaskSets:
    """Finished sets and how they came about."""

    files: dict[str, list[Example]]  # "train/train_plan_gen.json" -> examples; empty sets are left out
    episodes: dict[str, int]  # what became of the episodes: "used for plans", "goal not achieved", ...
    notes: tuple[str, ...]  # what is missing, and how to get it
    seed: int


@dataclass(frozen=True)
class _Material:
    """One side of the split."""

    plans: list[Plan]
    stories: list[CountStory]


def build(
    trajectories: Iterable[Trajectory],
    *,
    seed: int,
    sizes: Sizes | None = None,
    eval_share: float = 0.2,
    achieved_share: float = 1.0,
) -> TaskSets:
    """Make every set that the episodes have material for. Same arguments, same sets.

    Whole groups of episodes that share a goal, a question or a plan text go to train or to eval, and so do whole
    random episodes; names of activities occur on both sides. The result has been checked by `leakage.check`.

    Args:
        trajectories: planned episodes (plans, activities) and random ones (counting).
        seed: of every choice made here.
        sizes: the most examples of each file; the official sizes where not given.
        eval_share: the share of the material that is held out.
        achieved_share: the share of its goal that a planned episode must have achieved to be used.

    Raises:
        InputError: if an argument is out of range, an episode is malformed, or no episode can be used.
    """
    for name, share in (("eval_share", eval_share), ("achieved_share", achieved_share)):
        if not 0 <= share <= 1:
            raise InputError(f"{name}={share}: must lie between 0 and 1")
    episodes = list(trajectories)
    for trajectory in episodes:
        _check_lines(trajectory)
    plans, outcome = plan.select(episodes, achieved_share=achieved_share)
    asked = [
        counting.questions(trajectory, random.Random(f"{seed}/parts/{trajectory.id}"))
        for trajectory in episodes
        if trajectory.policy == "random"
    ]
    questions = [question for group in asked for question in group]
    found = _outcomes(outcome, asked)
    if not plans and not questions:
        raise InputError(
            f"no episode can be used ({_listing(found)}); collect some with `{_COLLECT_PLANS}` or `{_COLLECT_STORIES}`"
        )
    sizes = sizes or Sizes()
    train, held_out = _split(plans, questions, sizes, seed, eval_share)
    files = _make(train, held_out, plans, sizes, seed)
    leakage.check(files, plans)
    notes = tuple(_notes(files, sizes))
    return TaskSets({name: examples for name, examples in files.items() if examples}, found, notes, seed)


def _check_lines(trajectory: Trajectory) -> None:
    """Every line can be read and every node has a class, so that later steps need not ask."""
    for step in trajectory.steps:
        things = parse_action(step.action, where=f"episode {trajectory.id}").things
        nodes = {thing.id for thing in things} | {node for edge in step.edges_added for node in (edge[0], edge[2])}
        if missing := nodes - trajectory.classes.keys():
            raise InputError(f"episode {trajectory.id}: no class for node {min(missing)} of {step.action!r}")


def _outcomes(planned: Counter[str], asked: Sequence[Sequence[CountQuestion]]) -> dict[str, int]:
    """How many episodes served for what, or why not."""
    told = sum(bool(questions) for questions in asked)
    found = {"used for plans": planned["used"], "used for stories": told}
    found |= {reason: number for reason, number in sorted(planned.items()) if reason not in ("used", "not planned")}
    found["random without a question to ask"] = len(asked) - told
    found["of another policy"] = planned["not planned"] - len(asked)
    return {reason: number for reason, number in found.items() if number}


def _split(
    plans: Sequence[Plan], questions: Sequence[CountQuestion], sizes: Sizes, seed: int, eval_share: float
) -> tuple[_Material, _Material]:
    plan_rng, story_rng = (random.Random(f"{seed}/split/{what}") for what in ("plans", "stories"))
    train_plans, eval_plans = split(plans, _plan_keys, eval_share=eval_share, rng=plan_rng)
    train_questions, eval_questions = split(questions, _story_keys, eval_share=eval_share, rng=story_rng)
    # The official training set tells three further stories for every target.
    train = _told(train_questions, size=4 * sizes.train_count, rng=random.Random(f"{seed}/told/train"))
    held_out = _told(eval_questions, size=sizes.eval_count, rng=random.Random(f"{seed}/told/eval"), most=4)
    return _Material(train_plans, train), _Material(eval_plans, held_out)


def _plan_keys(plan: Plan) -> tuple[tuple[str, object], ...]:
    return ("goal", plan.goal), ("plan", plan.text), ("question", plan.question)


def _story_keys(question: CountQuestion) -> tuple[tuple[str, object], ...]:
    return ("episode", question.source), ("story", question.script)


def _told(questions: Sequence[CountQuestion], *, size: int, rng: random.Random, most: int = 8) -> list[CountStory]:
    drawn = counting.draw(questions, size=size, rng=rng, most=most)
    return [counting.put_into_words(question, rng) for question in drawn]


def _make(
    train: _Material, held_out: _Material, plans: Sequence[Plan], sizes: Sizes, seed: int
) -> dict[str, list[Example]]:
    """Every file, empty ones included; each has a random stream of its own, so that one's size leaves others alone."""
    told: set[tracking.Story] = set()
    makers: dict[str, Callable[[random.Random], Sequence[Example]]] = {
        "train/train_plan_gen.json": lambda r: plan.plan_gen(train.plans, size=sizes.train_plan_gen, rng=r),
        "train/train_act_recog.json": lambda r: activity.act_recog(train.plans, size=sizes.train_act_recog, rng=r),
        "train/train_count.json": lambda r: counting.count(train.stories, size=sizes.train_count, rng=r),
        "train/train_obj_move.json": lambda r: tracking.obj_move_path(r, size=sizes.train_obj_move, seen=told),
        "eval/gen/plan_gen.json": lambda r: plan.plan_gen(held_out.plans, size=sizes.eval_plan_gen, rng=r),
        "eval/gen/obj_move_path.json": lambda r: tracking.obj_move_path(r, size=sizes.eval_obj_move_path, seen=told),
        "eval/qa/act_recog.json": lambda r: qa.act_recog(held_out.plans, plans, size=sizes.eval_act_recog, rng=r),
        "eval/qa/obj_move.json": lambda r: qa.obj_move(r, size=sizes.eval_obj_move, seen=told),
        "eval/qa/count.json": lambda r: qa.count(held_out.stories, size=sizes.eval_count, rng=r),
    }
    return {name: list(make(random.Random(f"{seed}/{name}"))) for name, make in makers.items()}


def _notes(files: dict[str, list[Example]], sizes: Sizes) -> Iterable[str]:
    """One line for every file that is smaller than asked for, with what would make it larger."""
    for (name, examples), wanted in zip(files.items(), asdict(sizes).values(), strict=True):
        if len(examples) < wanted:
            command = _COLLECT_STORIES if name.endswith("count.json") else _COLLECT_PLANS
            yield f"{name}: {len(examples)} of {wanted} examples; for more: `{command}`"


def _listing(found: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in found.items()) or "no episodes"


def statistics(sets: TaskSets) -> dict[str, Any]:
    """What the files hold: sizes, words of the inputs, answers, and the share of the commonest one."""
    return {
        "seed": sets.seed,
        "episodes": sets.episodes,
        "notes": list(sets.notes),
        "files": {name: _file_statistics(name, examples) for name, examples in sets.files.items()},
    }


def _file_statistics(name: str, examples: Sequence[Example]) -> dict[str, Any]:
    words = [len(example.input.split()) for example in examples]
    answers = Counter(example.gold for example in examples)
    kind = _KINDS.get(name, str)
    kinds = Counter(kind(example.gold) for example in examples).most_common()
    summary: dict[str, Any] = {
        "n": len(examples),
        "input_words": {"min": min(words), "median": median(words), "max": max(words)},
        "distinct_answers": len(answers),
        "answers": dict(sorted(kinds, key=lambda pair: (-pair[1], pair[0]))),
        "majority": round(max(answers.values()) / len(examples), 4),
    }
    choices = [example for example in examples if isinstance(example, Choice)]
    if choices:
        positions = Counter(example.answer_list.index(example.answer) for example in choices)
        summary["gold_positions"] = [positions[index] for index in range(len(choices[0].answer_list))]
    return summary
