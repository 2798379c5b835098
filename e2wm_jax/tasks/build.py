"""All task files from collected episodes: gather, split, put into words, check."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from e2wm_jax.errors import InputError
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks import leakage
from e2wm_jax.tasks.example import Example
from e2wm_jax.tasks.household import confusing, counting, housework, inference, plan, qa, tracking
from e2wm_jax.tasks.household.counting import CountQuestion, CountStory
from e2wm_jax.tasks.material import Material, gather
from e2wm_jax.tasks.notes import is_official, notes


@dataclass(frozen=True)
class Sizes:
    """The most examples of each file; the defaults are the official files' sizes."""

    train_plan_gen: int = 1659
    train_act_recog: int = 1659
    train_count: int = 1000
    train_obj_move: int = 1000
    eval_plan_gen: int = 175
    eval_plan_gen_unseen: int = 54
    eval_plan_gen_confusing: int = 135
    eval_plan_gen_unseen_confusing: int = 43
    eval_obj_move_path: int = 200
    eval_act_recog: int = 549
    eval_act_infer: int = 262
    eval_housework_qa: int = 261
    eval_neg_housework_qa: int = 162
    eval_obj_move: int = 200
    eval_count: int = 194


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
    sizes: Sizes | None = None,
    eval_share: float = 0.2,
    unseen_share: float = 0.2,
    achieved_share: float = 1.0,
    balanced_counts: bool = False,
) -> TaskSets:
    """Make every set that the episodes have material for. Same arguments, same sets.

    Whole groups of plans that share a goal, a question, a text or what they change go to train or to eval, and so do
    whole random episodes. Some tasks go to eval with all of their plans: `plan_gen_unseen` asks about these, while
    names of all others may occur on both sides. As in the official files, `plan_gen` asks about both kinds. The result
    has been checked by `leakage.check`.

    Args:
        trajectories: planned episodes (plans, activities) and random ones (counting; of several people: tracking).
        seed: of every choice made here.
        sizes: the most examples of each file; the official sizes where not given.
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
    leakage.check(files, material.plans)
    return TaskSets(
        files={name: examples for name, examples in files.items() if examples},
        episodes=material.episodes,
        unseen=tuple(sorted(material.unseen)),
        notes=notes(
            files,
            {name: _size(name, sizes) for name in files},
            material,
            eval_share=eval_share,
            official=is_official(episodes),
        ),
        seed=seed,
    )


def _make(material: Material, sizes: Sizes, seed: int, balanced: bool) -> dict[str, list[Example]]:
    """Every file, empty ones included; each has a random stream of its own, so that one's size leaves others alone."""
    train, held_out, unseen, known = material.train, material.held_out, material.unseen, material.known
    followed: set[tracking.Story] = set()
    # The official training set tells three further stories for every target.
    shares = counting.EVEN if balanced else counting.OFFICIAL_TRAIN
    told_train = _told(train.questions, 4 * sizes.train_count, shares, f"{seed}/told/train")
    shares = {number: share for number, share in counting.EVEN.items() if str(number) in qa.NUMBERS}
    shares = shares if balanced else counting.OFFICIAL_EVAL
    told_eval = _told(held_out.questions, sizes.eval_count, shares, f"{seed}/told/eval")

    def confused(rng: random.Random) -> Callable[[list[plan.Plan]], list[plan.Plan]]:
        return confusing.distraction(material.plans, known, rng)

    makers: dict[str, Callable[[random.Random, int], Sequence[Example]]] = {
        "train/train_plan_gen.json": lambda r, n: plan.plan_gen(train.plans, size=n, rng=r),
        "train/train_act_recog.json": lambda r, n: plan.act_recog(train.plans, size=n, rng=r),
        "train/train_count.json": lambda r, n: counting.count(told_train, size=n, rng=r),
        "train/train_obj_move.json": lambda r, n: tracking.obj_move_path(
            r, size=n, seen=followed, experienced=train.tracked
        ),
        "eval/gen/plan_gen.json": lambda r, n: plan.plan_gen(held_out.plans, size=n, rng=r),
        "eval/gen/plan_gen_unseen.json": lambda r, n: plan.plan_gen(held_out.plans, size=n, rng=r, tasks=unseen),
        "eval/gen/plan_gen_confusing.json": lambda r, n: plan.plan_gen(
            held_out.plans, size=n, rng=r, reword=confused(r)
        ),
        "eval/gen/plan_gen_unseen_confusing.json": lambda r, n: plan.plan_gen(
            held_out.plans, size=n, rng=r, tasks=unseen, reword=confused(r)
        ),
        "eval/gen/obj_move_path.json": lambda r, n: tracking.obj_move_path(
            r, size=n, seen=followed, experienced=held_out.tracked[::2]
        ),
        "eval/qa/act_recog.json": lambda r, n: qa.act_recog(held_out.plans, material.plans, size=n, rng=r),
        "eval/qa/act_infer.json": lambda r, n: inference.act_infer(
            held_out.plans, material.plans, known, size=n, rng=r
        ),
        "eval/qa/housework_qa.json": lambda r, n: housework.housework_qa(held_out.plans, known, size=n, rng=r),
        "eval/qa/neg_housework_qa.json": lambda r, n: housework.neg_housework_qa(held_out.plans, known, size=n, rng=r),
        "eval/qa/obj_move.json": lambda r, n: qa.obj_move(r, size=n, seen=followed, experienced=held_out.tracked[1::2]),
        "eval/qa/count.json": lambda r, n: qa.count(told_eval, size=n, rng=r),
    }
    return {name: list(make(random.Random(f"{seed}/{name}"), _size(name, sizes))) for name, make in makers.items()}


def _told(questions: Sequence[CountQuestion], size: int, shares: Mapping[int, float], seed: str) -> list[CountStory]:
    rng = random.Random(seed)
    drawn = counting.draw(questions, size=size, rng=rng, shares=shares)
    return [counting.put_into_words(question, rng) for question in drawn]


def _size(name: str, sizes: Sizes) -> int:
    """ "eval/qa/count.json" -> sizes.eval_count."""
    side, task = name.split("/")[0], name.split("/")[-1].removesuffix(".json")
    size: int = getattr(sizes, task if side == "train" else f"eval_{task}")
    return size
