"""The household's sets: which files there are, how each is made, and what its examples say.

`build` writes them, `leakage` looks for what their texts give away, `notes` and `statistics` tell of them by their
kind, and `online:` makes those of them that have options for it while a model reads.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from e2wm_jax.tasks.example import Example
from e2wm_jax.tasks.household import confusing, counting, housework, inference, plan, qa, tracking
from e2wm_jax.tasks.household.counting import CountStory
from e2wm_jax.tasks.household.inference import PEOPLE
from e2wm_jax.tasks.household.plan import TaskPlan
from e2wm_jax.tasks.household.tracking import PHRASES, Story
from e2wm_jax.tasks.material import TaskMaterial


@dataclass(frozen=True)
class Stock:
    """What the sets of one run are made of."""

    material: TaskMaterial
    told: Mapping[Literal["train", "eval"], Sequence[CountStory]]
    followed: set[Story]  # tracking stories told so far: no two sets tell the same

    def confused(self, rng: random.Random) -> Callable[[list[TaskPlan]], list[TaskPlan]]:
        """What adds distraction to the plans of a prompt."""
        return confusing.distraction(self.material.plans, self.material.known, rng)


Fact = tuple[str, str]  # kind of text, and the pattern whose group it is in f"{input} {gold}"
Make = Callable[[Stock, random.Random, int], Sequence[Example]]


@dataclass(frozen=True)
class TaskSet:
    """One file of `e2wm tasks`."""

    file: str  # "eval/qa/count.json"
    size: int  # of the official file
    kind: Literal["plans", "counting", "tracking"]  # of the episodes that it is made of
    facts: tuple[Fact, ...]  # what an example gives away
    make: Make  # (stock, rng, size) -> at most so many examples
    answers: Callable[[str], str] = str  # how an answer is summed up
    online: tuple[str, ...] | None = None  # the options of "online:NAME"; None where it is not made on demand

    @property
    def side(self) -> str:
        """ "train" or "eval"."""
        return self.file.partition("/")[0]

    @property
    def name(self) -> str:
        """The file's name alone: "train_count", "count"."""
        return self.file.rpartition("/")[2].removesuffix(".json")

    @property
    def field(self) -> str:
        """What its size is called: "train_count", "eval_count"."""
        return self.name if self.side == "train" else f"eval_{self.name}"

    @property
    def online_name(self) -> str:
        """ "count" of "online:count"."""
        return self.name.removeprefix("train_")


_TASK = ("task", r"^Q: How to (.*?)\?")
_PLAN_GEN = (("question", r"^Q: (.*)$"), ("plan", r"^A: (.*)$"))
_ACT_RECOG = (("plan", r"^Given a household activity plan as follows:\n(.*)$"), ("task", r"^A: (.*)$"))
_COUNT = (("story", r"^Q: (.*) How many items are there"),)
_OBJ_MOVE = (("story", r"^(.*)\nQuestion: "),)
_UNSEEN = (*_PLAN_GEN, ("task", r"^Q: How to (.*?)\?.*\nA: .*\Z"))  # of the question only: examples may be seen ones
_HOUSEWORK = (("item question", r"^Question: (To .*, a (?:possibly related|unrelated) item could be)$"),)

_PLANNED = ("search", "simulations", "dialect", "exclude")


def _steps(gold: str) -> str:
    return f"{gold.count('.')} steps"


def _rooms(gold: str) -> str:
    return f"{gold.count(',') + 1} rooms"


def _number(gold: str) -> str:
    return " ".join(gold.split()[2:4])


def _plan_gen(side: str, *, unseen: bool = False, confused: bool = False) -> Make:
    def make(stock: Stock, rng: random.Random, size: int) -> Sequence[Example]:
        plans = stock.material.side(side).plans
        tasks = stock.material.unseen if unseen else None
        reword = stock.confused(rng) if confused else list
        return plan.plan_gen(plans, size=size, rng=rng, tasks=tasks, reword=reword)

    return make


def _obj_move(stories: Callable[[TaskMaterial], Sequence[Story]]) -> Make:
    def make(stock: Stock, rng: random.Random, size: int) -> Sequence[Example]:
        return tracking.obj_move_path(rng, size=size, seen=stock.followed, experienced=stories(stock.material))

    return make


SETS = (
    TaskSet(
        "train/train_plan_gen.json", 1659, "plans", (*_PLAN_GEN, _TASK), _plan_gen("train"), _steps, online=_PLANNED
    ),
    TaskSet(
        "train/train_act_recog.json",
        1659,
        "plans",
        _ACT_RECOG,
        lambda stock, rng, size: plan.act_recog(stock.material.train.plans, size=size, rng=rng),
        online=_PLANNED,
    ),
    TaskSet(
        "train/train_count.json",
        1000,
        "counting",
        _COUNT,
        lambda stock, rng, size: counting.count(stock.told["train"], size=size, rng=rng),
        _number,
        online=("scene", "dialect"),
    ),
    TaskSet(
        "train/train_obj_move.json",
        1000,
        "tracking",
        _OBJ_MOVE,
        _obj_move(lambda material: material.train.tracked),
        _rooms,
        online=(),
    ),
    TaskSet("eval/gen/plan_gen.json", 175, "plans", _PLAN_GEN, _plan_gen("eval"), _steps),
    TaskSet("eval/gen/plan_gen_unseen.json", 54, "plans", _UNSEEN, _plan_gen("eval", unseen=True), _steps),
    TaskSet("eval/gen/plan_gen_confusing.json", 135, "plans", _PLAN_GEN, _plan_gen("eval", confused=True), _steps),
    TaskSet(
        "eval/gen/plan_gen_unseen_confusing.json",
        43,
        "plans",
        _UNSEEN,
        _plan_gen("eval", unseen=True, confused=True),
        _steps,
    ),
    TaskSet(
        "eval/gen/obj_move_path.json",
        200,
        "tracking",
        _OBJ_MOVE,
        _obj_move(lambda material: material.held_out.tracked[::2]),
        _rooms,
    ),
    TaskSet(
        "eval/qa/act_recog.json",
        549,
        "plans",
        (("plan", r"^Given a task plan: (.*)$"),),
        lambda stock, rng, size: qa.act_recog(stock.material.held_out.plans, stock.material.plans, size=size, rng=rng),
    ),
    TaskSet(
        "eval/qa/act_infer.json",
        262,
        "plans",
        (("state", r"^(.*)\nQuestion: Given the above state"),),
        lambda stock, rng, size: inference.act_infer(
            stock.material.held_out.plans, stock.material.plans, stock.material.known, size=size, rng=rng
        ),
    ),
    TaskSet(
        "eval/qa/housework_qa.json",
        261,
        "plans",
        _HOUSEWORK,
        lambda stock, rng, size: housework.housework_qa(
            stock.material.held_out.plans, stock.material.known, size=size, rng=rng
        ),
    ),
    TaskSet(
        "eval/qa/neg_housework_qa.json",
        162,
        "plans",
        _HOUSEWORK,
        lambda stock, rng, size: housework.neg_housework_qa(
            stock.material.held_out.plans, stock.material.known, size=size, rng=rng
        ),
    ),
    TaskSet(
        "eval/qa/obj_move.json",
        200,
        "tracking",
        _OBJ_MOVE,
        lambda stock, rng, size: qa.obj_move(
            rng, size=size, seen=stock.followed, experienced=stock.material.held_out.tracked[1::2]
        ),
    ),
    TaskSet(
        "eval/qa/count.json",
        194,
        "counting",
        _COUNT,
        lambda stock, rng, size: qa.count(stock.told["eval"], size=size, rng=rng),
    ),
)
BY_FILE = {one.file: one for one in SETS}
ONLINE = {one.online_name: one for one in SETS if one.online is not None}

_PERSON = re.compile(rf"\b(?:{'|'.join(PEOPLE)})\b")
_DEED = re.compile("|".join(f"(?P<{kind}>{'|'.join(phrases)})" for kind, phrases in PHRASES.items()))
# Wording that makes no difference, taken out of the texts of a kind.
PLAIN: dict[str, Callable[[str], str]] = {
    "state": lambda text: _PERSON.sub("somebody", text),
    "story": lambda text: _DEED.sub(lambda match: match.lastgroup or "", text),
}
