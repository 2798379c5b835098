"""An independent look at finished sets: does anything that eval asks about occur in train?

It reads the texts, solved examples included, and knows nothing of how they were split.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from e2wm_jax.tasks.example import Example
from e2wm_jax.tasks.plan import Plan

_PLAN_GEN = (("question", r"^Q: (.*)$"), ("plan", r"^A: (.*)$"))
_COUNT = (("story", r"^Q: (.*) How many items are there"),)
_OBJ_MOVE = (("story", r"^(.*)\nQuestion: "),)
# File name -> what to look for in f"{input} {gold}": (kind, pattern with the text as its group).
_FACTS = {
    "train/train_plan_gen.json": _PLAN_GEN,
    "train/train_act_recog.json": (("plan", r"^Given a household activity plan as follows:\n(.*)$"),),
    "train/train_count.json": _COUNT,
    "train/train_obj_move.json": _OBJ_MOVE,
    "eval/gen/plan_gen.json": _PLAN_GEN,
    "eval/gen/obj_move_path.json": _OBJ_MOVE,
    "eval/qa/act_recog.json": (("plan", r"^Given a task plan: (.*)$"),),
    "eval/qa/obj_move.json": _OBJ_MOVE,
    "eval/qa/count.json": _COUNT,
}


class LeakageError(RuntimeError):
    """Train and eval share a text or a goal: a defect of the generator, not of its input."""


def facts(name: str, examples: Iterable[Example]) -> set[tuple[str, str]]:
    """Everything in a file that must not occur on the other side: ("plan" | "question" | "story", text).

    Raises:
        LeakageError: if an example shows nothing of the sort, i.e. its form is not understood.
    """
    found: set[tuple[str, str]] = set()
    for example in examples:
        text = f"{example.input} {example.gold}"
        here = {(kind, fact) for kind, pattern in _FACTS[name] for fact in re.findall(pattern, text, re.MULTILINE)}
        if not here:
            raise LeakageError(f"{name}: cannot tell what this example is about: {text[:80]!r}")
        found |= here
    return found


def check(files: Mapping[str, Sequence[Example]], plans: Iterable[Plan] = ()) -> None:
    """Compare the two sides of a set of files.

    Args:
        files: file name ("train/...", "eval/...") to examples.
        plans: all plans, to look up which goals a plan text stands for.

    Raises:
        LeakageError: naming the first plan, question, story or goal that both sides share.
    """
    sides: dict[str, set[tuple[str, str]]] = {"train": set(), "eval": set()}
    for name, examples in files.items():
        sides[name.split("/")[0]] |= facts(name, examples)
    goals: dict[str, set[tuple[str, str]]] = {}
    for plan in plans:
        goals.setdefault(plan.text, set()).add(("goal", ", ".join(sorted(plan.goal))))
    for side, found in sides.items():
        sides[side] = found.union(*(goals.get(text, set()) for kind, text in found if kind == "plan"))
    for kind, text in sorted(sides["train"] & sides["eval"]):
        raise LeakageError(f"train and eval share a {kind}: {text}")
