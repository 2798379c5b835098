"""What a directory of `e2wm tasks` holds out, so that examples made on demand do not give it away."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import read_json_lines
from e2wm_jax.tasks import leakage
from e2wm_jax.tasks.example import from_json
from e2wm_jax.tasks.household.inference import state_sentences
from e2wm_jax.tasks.household.plan import TaskPlan
from e2wm_jax.tasks.household.sets import SETS

# Sets whose questions, plans, unseen activities or told states a plan could give away.
FILES = tuple(
    one.file
    for one in SETS
    if one.side == "eval" and {kind for kind, _ in one.facts} & {"question", "plan", "task", "state"}
)


@dataclass(frozen=True)
class HeldOut:
    """Texts of evaluation sets, as `leakage.facts` finds them: (kind, text)."""

    facts: frozenset[tuple[str, str]]

    def __contains__(self, plan: TaskPlan) -> bool:
        """Whether a plan says what an evaluation set asks: its question, its text, what it changes, or its activity
        where that is one of the unseen."""
        told = state_sentences(plan.change, "somebody")  # as leakage.facts calls everybody
        return not self.facts.isdisjoint(
            {("question", plan.question), ("plan", plan.text), ("task", plan.task), ("state", " ".join(told))}
        )


def check_folder(folder: str, where: str) -> None:
    """
    Raises:
        InputError: starting with ``where``, if there is no evaluation set of plans in the folder.
    """
    if not any((Path(folder) / name).is_file() for name in FILES):
        raise InputError(f"{where}: exclude={folder}: none of {', '.join(FILES)} is there; give an --out of e2wm tasks")


@lru_cache(maxsize=4)
def held_out(folder: str) -> HeldOut:
    """What the evaluation sets in a folder ask; without a folder, nothing.

    Raises:
        InputError: naming file and line of what is not an example of its set.
    """
    found: set[tuple[str, str]] = set()
    for path, name in ((Path(folder) / name, name) for name in FILES if folder):
        if path.is_file():
            examples = [from_json(record, where=f"{path}:{line}") for line, record in read_json_lines(path)]
            try:
                found |= leakage.facts(name, examples)
            except leakage.LeakageError as error:
                raise InputError(f"{path}: {error}") from error
    return HeldOut(frozenset(found))
