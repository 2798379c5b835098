"""What the scores of a set, as `eval all` and the comparisons keep them, say in one number."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from e2wm_jax.errors import InputError
from e2wm_jax.options.choices import SetKind
from e2wm_jax.storage.files import read_json

KINDS: tuple[SetKind, ...] = get_args(SetKind)
# The score of a set by which models are compared.
HEADLINES = ("accuracy", "lcs", "rougeL", "mean", "nats")
Scores = Mapping[str, Any]


def power(base: float, exponent: float) -> float | None:
    """base ** exponent, such as a perplexity e ** nats; None where that is beyond float64 (from 710 nats on)."""
    try:
        return math.exp(exponent) if base == math.e else base**exponent
    except OverflowError:
        return None


def headline(scores: Scores) -> str:
    """The metric by which models are compared on a set: accuracy, lcs, rougeL, bAbI's mean, or nats."""
    return next(name for name in HEADLINES if isinstance(scores.get(name), int | float))


def majority_of(scores: Scores) -> float | None:
    """What always giving the most frequent answer scores; of bAbI the mean over tasks; None where none occurs twice."""
    found, numbers = scores.get("majority"), scores.get("n")
    if not isinstance(found, Mapping):
        return found
    if not found or not isinstance(numbers, Mapping) or max(numbers.values(), default=1) == 1:
        return None
    return sum(found.values()) / len(found)


def number_of(scores: Scores) -> int:
    """How many examples a set has; of bAbI in all of its tasks."""
    found = scores["n"]
    return sum(found.values()) if isinstance(found, Mapping) else found


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def read_results(path: Path) -> dict[str, Any]:
    """A results.json of `eval all`, whose "sets", "adapter" and "settings" have the form that it writes.

    Raises:
        InputError: naming the set and the key that have another.
    """
    record = read_json(path)
    sets, adapter, settings = record.get("sets"), record.setdefault("adapter", []), record.setdefault("settings", {})
    way_out = "evaluate again with `e2wm eval all --out`"
    if not isinstance(sets, dict) or not isinstance(adapter, list) or not isinstance(settings, dict):
        raise InputError(f"{path}: no results by set; {way_out}")
    data = settings.get("data", [])
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise InputError(f"{path}: settings: 'data' is no list of names; {way_out}")
    for name, one in sets.items():
        if not isinstance(one, dict) or one.get("kind") not in KINDS:
            raise InputError(f"{path}: set {name}: no result of a kind that is known; {way_out}")
        if not any(is_number(one.get(key)) for key in HEADLINES):
            raise InputError(f"{path}: set {name}: no score, one of {', '.join(HEADLINES)}; {way_out}")
        if wrong := next((key for key in _FORMS if not _FORMS[key](one.get(key))), None):
            raise InputError(f"{path}: set {name}: {wrong!r} is not of the form that is written; {way_out}")
    return record


def _is_score(value: Any) -> bool:
    return value is None or is_number(value)


def _are_scores(value: Any) -> bool:
    """A number, or of bAbI one for each task."""
    return _is_score(value) or (isinstance(value, dict) and all(map(is_number, value.values())))


def _are_intervals(value: Any) -> bool:
    pairs = value.values() if isinstance(value, dict) else ()
    return value is None or (
        isinstance(value, dict)
        and all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_score, pair)) for pair in pairs)
    )


def _are_notes(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(note, str) for note in value))


def _is_table(value: Any) -> bool:
    return value is None or isinstance(value, dict)


_FORMS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("rouge1", "rouge2", "rougeL", "lcs", "mean", "nats", "perplexity", "bits_per_byte"), _is_score),
    **dict.fromkeys(("accuracy", "n", "majority"), _are_scores),
    "intervals": _are_intervals,
    "defects": _are_notes,
    "clean": _is_table,
}
