"""An independent look at finished sets: does anything that eval asks about occur in train?

It reads the texts, solved examples included, and knows nothing of how they were split. Texts that say the same in
other words count as the same: a state about Tom and one about Mary, a cup that was grabbed and one that was taken.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from e2wm_jax.tasks.example import Example
from e2wm_jax.tasks.household.inference import state_sentences
from e2wm_jax.tasks.household.plan import TaskPlan
from e2wm_jax.tasks.household.sets import BY_FILE, PLAIN


class LeakageError(RuntimeError):
    """Train and eval share a text or a goal: a defect of the generator, not of its input."""


def facts(name: str, examples: Iterable[Example]) -> set[tuple[str, str]]:
    """Everything in a file that must not occur on the other side: ("plan" | "question" | "task" | "state" |
    "story" | "item question", text). Of tasks only those of train, and those that an unseen file asks about.

    Raises:
        LeakageError: if an example shows nothing of the sort, i.e. its form is not understood.
    """
    found: set[tuple[str, str]] = set()
    for example in examples:
        text = f"{example.input} {example.gold}"
        shown = (
            (kind, fact) for kind, pattern in BY_FILE[name].facts for fact in re.findall(pattern, text, re.MULTILINE)
        )
        here = {(kind, PLAIN.get(kind, str)(fact)) for kind, fact in shown}
        if not here:
            raise LeakageError(f"{name}: cannot tell what this example is about: {text[:80]!r}")
        found |= here
    return found


def check_leakage(files: Mapping[str, Sequence[Example]], plans: Iterable[TaskPlan] = ()) -> None:
    """Compare the two sides of a set of files.

    Args:
        files: file name ("train/...", "eval/...") to examples.
        plans: all plans, to look up which goals a plan text or a told state stands for.

    Raises:
        LeakageError: naming the first plan, question, state, story, task or goal that both sides share.
    """
    sides: dict[str, set[tuple[str, str]]] = {"train": set(), "eval": set()}
    for name, examples in files.items():
        sides[name.split("/")[0]] |= facts(name, examples)
    goals: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for plan in plans:
        goal = ("goal", ", ".join(sorted(plan.aim)))
        state = " ".join(state_sentences(plan.change, "somebody"))
        for shown in (("plan", plan.text), ("state", state)):
            goals.setdefault(shown, set()).add(goal)
    for side, found in sides.items():
        sides[side] = found.union(*(goals.get(shown, set()) for shown in found))
    for kind, text in sorted(sides["train"] & sides["eval"]):
        raise LeakageError(f"train and eval share a {kind}: {text}")
