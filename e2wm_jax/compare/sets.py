"""What a comparison evaluates: sets of skill, bAbI beside them, and corpora of retention."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from e2wm_jax.compare.trade_off import SKILL_KINDS
from e2wm_jax.data.source import PYDOC_SPLITS
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate import suite
from e2wm_jax.evaluate.model import Evaluated, Opened
from e2wm_jax.evaluate.sets import EvalSet, find_sets
from e2wm_jax.evaluate.settings import SuiteOptions
from e2wm_jax.options.choices import TooLong


@dataclass(frozen=True)
class EvaluationOptions:
    """How much of every set, and how it is computed."""

    samples: int | None = None
    babi_samples: int | None = None
    text_samples: int | None = None
    text_max_length: int = 800
    batch_size: int = 4
    beams: int = 4
    max_new_tokens: int = 256
    too_long: TooLong = "refuse"
    chat: bool = False


def embodied_sets(places: Sequence[Path]) -> tuple[EvalSet, ...]:
    """QA, generation and bAbI sets of files and folders; general text there is left out.

    Raises:
        InputError: for a place that is missing or has no set, or two sets of one name.
    """
    found = [one for place in places for one in _sets_at("--eval", str(place)) if one.kind != "perplexity"]
    _check_names("--eval", found)
    if not any(one.kind in SKILL_KINDS for one in found):
        raise InputError(
            f"--eval {' '.join(map(str, places))}: no evaluation set of questions or generation, so no skill to "
            "compare; they are found by the names that `e2wm tasks` gives"
        )
    return tuple(found)


def text_sets(texts: Sequence[str]) -> tuple[EvalSet, ...]:
    """A corpus for each file, and for each text in a folder.

    Raises:
        InputError: for a missing file, or two of one name.
    """
    found: list[EvalSet] = []
    for text in texts:
        path = Path(text)
        if path.is_file():
            found.append(EvalSet(path.name.split(".")[0], "perplexity", path))
            continue
        found += [one for one in _sets_at("--text", text) if one.kind == "perplexity"]
    _check_names("--text", found)
    if not found:
        raise InputError(f"--text {' '.join(texts)}: no text there; give .txt or JSON lines with 'text'")
    return tuple(found)


def check_sets(model: Opened, sets: Sequence[EvalSet], texts: Sequence[EvalSet], how: EvaluationOptions) -> None:
    """Read all files once, for their mistakes and for what is too long for the model.

    Raises:
        InputError: naming file and line.
    """
    if both := {one.name for one in sets} & {one.name for one in texts}:
        raise InputError(f"--eval and --text both have {min(both)}; rename one file")
    for some, options in _parts(sets, texts, how):
        suite.check_sets(model, some, options)


def evaluate(
    evaluated: Evaluated,
    sets: Sequence[EvalSet],
    texts: Sequence[EvalSet],
    how: EvaluationOptions,
    out: Path,
    *,
    train: Sequence[Path] = (),
) -> dict[str, dict[str, Any]]:
    """Scores of every set and corpus; predictions are kept in `out`, and what is there is not computed again.

    Args:
        train: training files; what of the sets occurs in them is reported with their scores.
    """
    found: dict[str, dict[str, Any]] = {}
    for some, options in _parts(sets, texts, how):
        found |= suite.evaluate_sets(evaluated, some, replace(options, train=tuple(train), resume=True), out)
    return found


def _parts(
    sets: Sequence[EvalSet], texts: Sequence[EvalSet], how: EvaluationOptions
) -> list[tuple[Sequence[EvalSet], SuiteOptions]]:
    """Sets and corpora with how each is evaluated."""
    common = SuiteOptions(
        batch_size=how.batch_size,
        beams=how.beams,
        max_new_tokens=how.max_new_tokens,
        max_length=how.text_max_length,
        too_long=how.too_long,
        chat=how.chat,
    )
    parts = (
        ([one for one in sets if one.kind in SKILL_KINDS], how.samples),
        ([one for one in sets if one.kind == "babi"], how.babi_samples),
        (texts, how.text_samples),
    )
    return [(some, replace(common, samples=samples)) for some, samples in parts if some]


def _sets_at(flag: str, place: str) -> tuple[EvalSet, ...]:
    if place not in PYDOC_SPLITS and not Path(place).exists():
        raise InputError(f"{flag} {place}: no such file or directory")
    try:
        return find_sets(place)
    except InputError as error:
        raise InputError(str(error).replace("--data", flag)) from error


def _check_names(flag: str, sets: Sequence[EvalSet]) -> None:
    seen: dict[str, EvalSet] = {}
    for one in sets:
        if one.name in seen:
            raise InputError(f"{flag}: {one.path} and {seen[one.name].path} are both {one.name}; leave one out")
        seen[one.name] = one
