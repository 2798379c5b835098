"""All task files from collected episodes: gather, split, put into words, check."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks import leakage
from e2wm_jax.tasks.example import Example
from e2wm_jax.tasks.household import counting, qa
from e2wm_jax.tasks.household.counting import CountQuestion, CountStory
from e2wm_jax.tasks.household.sets import SETS, Stock
from e2wm_jax.tasks.material import TaskMaterial, gather
from e2wm_jax.tasks.notes import is_official, notes

# The most examples of each file, `Sizes(train_count=10, eval_count=5)`; the defaults are the official files' sizes.
Sizes: Any = make_dataclass("Sizes", [(one.field, int, one.size) for one in SETS], frozen=True)


@dataclass(frozen=True)
class TaskSets:
    """Finished sets and how they came about."""

    files: dict[str, list[Example]]  # "train/train_plan_gen.json" -> examples; empty sets are left out
    episodes: dict[str, int]  # what became of the episodes: "used for plans", "goal not achieved", ...
    unseen: tuple[str, ...]  # tasks that train knows nothing of, not even their names
    notes: tuple[str, ...]  # what is missing, and how to get it
    seed: int


def build(
    trajectories: Iterable[Trajectory],
    *,
    seed: int,
    sizes: Any = None,
    eval_share: float = 0.2,
    unseen_share: float = 0.2,
    achieved_share: float = 1.0,
    balanced_counts: bool = False,
) -> TaskSets:
    """Make every set that the episodes have material for. Same arguments, same sets.

    Whole groups of plans that share a goal, a question, a text or what they change go to train or to eval, and so do
    whole random episodes. Some tasks go to eval with all of their plans: `plan_gen_unseen` asks about these, while
    names of all others may occur on both sides. As in the official files, `plan_gen` asks about both kinds. The result
    has been checked by `leakage.check_leakage`.

    Args:
        trajectories: planned episodes (plans, activities) and random ones (counting; of several people: tracking).
        seed: of every choice made here.
        sizes: `Sizes`, the most examples of each file; the official sizes where not given.
        eval_share: the share of the material that is held out.
        unseen_share: the share of the task names that are held out wholly; fewer where they would take up more than
            half of what is held out.
        achieved_share: the share of its goal that a planned episode must have achieved to be used.
        balanced_counts: draw counting stories so that all numbers are equally frequent, as far as there are enough;
            otherwise as frequent as in the official files.

    Raises:
        InputError: if an argument is out of range, an episode is malformed, or no episode can be used.
    """
    shares = {"eval_share": eval_share, "unseen_share": unseen_share, "achieved_share": achieved_share}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"{name}={share}: must lie between 0 and 1")
    sizes = sizes or Sizes()
    episodes = list(trajectories)
    material = gather(
        episodes,
        seed=seed,
        eval_share=eval_share,
        unseen_share=unseen_share,
        achieved_share=achieved_share,
    )
    files = _make(material, sizes, seed, balanced_counts)
    leakage.check_leakage(files, material.plans)
    return TaskSets(
        files={name: examples for name, examples in files.items() if examples},
        episodes=material.episodes,
        unseen=tuple(sorted(material.unseen)),
        notes=notes(
            files,
            {one.file: getattr(sizes, one.field) for one in SETS},
            material,
            eval_share=eval_share,
            official=is_official(episodes),
        ),
        seed=seed,
    )


def _make(material: TaskMaterial, sizes: Any, seed: int, balanced: bool) -> dict[str, list[Example]]:
    """Every file, empty ones included; each has a random stream of its own, so that one's size leaves others alone."""
    # The official training set tells three further stories for every target.
    shares = counting.EVEN if balanced else counting.OFFICIAL_TRAIN
    told_train = _told(material.train.questions, 4 * sizes.train_count, shares, f"{seed}/told/train")
    shares = {number: share for number, share in counting.EVEN.items() if str(number) in qa.NUMBERS}
    shares = shares if balanced else counting.OFFICIAL_EVAL
    told_eval = _told(material.held_out.questions, sizes.eval_count, shares, f"{seed}/told/eval")
    stock = Stock(material, told={"train": told_train, "eval": told_eval}, followed=set())
    return {
        one.file: list(one.make(stock, random.Random(f"{seed}/{one.file}"), getattr(sizes, one.field))) for one in SETS
    }


def _told(questions: Sequence[CountQuestion], size: int, shares: Mapping[int, float], seed: str) -> list[CountStory]:
    rng = random.Random(seed)
    drawn = counting.draw(questions, size=size, rng=rng, shares=shares)
    return [counting.put_into_words(question, rng) for question in drawn]
