"""Multiple-choice questions by the likelihood of each answer, scored as the official code does.

    normalized   sum log p(answer | input) / tokens of the answer            act_recog, count, obj_move
    calibrated   log p(answer | input) - log p(answer | "Answer:")           housework_qa, neg_housework_qa, act_infer

A question goes through the model in one row with all its answers (`answer_rows`).
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from e2wm_jax.data.source import Question, read_questions
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.answer_rows import collate, log_likelihoods, pack
from e2wm_jax.evaluate.model import Evaluated, check_positions, load_evaluated, row_nll, rows_per_pass
from e2wm_jax.evaluate.predictions import Predictions, Record, content_digest, identity
from e2wm_jax.evaluate.settings import QaSettings
from e2wm_jax.evaluate.statistics import bootstrap_interval
from e2wm_jax.evaluate.table import show_scores
from e2wm_jax.progress import progress_bar
from e2wm_jax.sharding import make_mesh

Rule = Literal["normalized", "calibrated"]
RULES: dict[str, Rule] = {
    "act_recog": "normalized",
    "count": "normalized",
    "obj_move": "normalized",
    "housework_qa": "calibrated",
    "neg_housework_qa": "calibrated",
    "act_infer": "calibrated",
}
_CALIBRATION_PROMPT = "Answer:"
_ANSWERS_PER_CALIBRATION_ROW = 16


class _Passes(NamedTuple):
    """How questions go through the model."""

    batch_size: int
    special_tokens: bool


def run(settings: QaSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, before the model is loaded.
    """
    check_at_least(("--samples", settings.samples, 1), ("--batch-size", settings.batch_size, 1))
    task = settings.task or task_name(settings.data)
    if task not in RULES:
        raise InputError(f"--task {task}: unknown scoring rule; give --task with one of {', '.join(RULES)}")
    questions = read_questions(settings.data)[: settings.samples]
    mesh = None if settings.mesh is None else make_mesh(settings.mesh)
    records = predict(
        load_evaluated(settings.model, settings.adapter, settings.base_dtype, mesh=mesh),
        dict(enumerate(questions)),
        RULES[task],
        batch_size=settings.batch_size,
        special_tokens=settings.special_tokens,
        path=settings.predictions,
        resume=settings.resume,
    )
    return {"task": task, **summary(records), "intervals": intervals(records)}


def show(result: dict[str, Any]) -> None:
    """A line per score, with its interval."""
    show_scores(result)


def predict(
    evaluated: Evaluated,
    questions: Mapping[int, Question],
    rule: Rule,
    *,
    batch_size: int = 4,
    special_tokens: bool = False,
    path: Path | None = None,
    resume: bool = False,
) -> list[Record]:
    """{"index", "scores", "choice", "gold"} of every question, by its index in the file; also in ``path``, if given.

    Raises:
        InputError: as `Predictions` and `score_batches`.
    """
    made = identity(
        evaluated,
        content_digest([[index, q.input, q.answers, q.gold] for index, q in questions.items()]),
        rule=rule,
        examples=len(questions),
        batch_size=batch_size,
        special_tokens=special_tokens,
    )
    predictions = Predictions(path, made, questions, resume=resume)
    indices = list(questions)
    done = {place for place, index in enumerate(indices) if index in predictions.done}
    for batch in score_batches(
        evaluated,
        list(questions.values()),
        rule,
        batch_size=batch_size,
        special_tokens=special_tokens,
        done=done,
    ):
        predictions.add([_record(indices[place], questions[indices[place]], scores) for place, scores in batch])
    return predictions.finish()


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Share of questions whose best answer is the gold one (the first of equals), beside always choosing one index."""
    most_common = Counter(record["gold"] for record in records).most_common(1)[0][1]
    n = len(records)
    return {"accuracy": sum(hits(records)) / n, "n": n, "majority": most_common / n}


def hits(records: Sequence[Record]) -> list[bool]:
    """Which questions are answered right."""
    return [record["choice"] == record["gold"] for record in records]


def intervals(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """The 95 % interval of the accuracy."""
    return {"accuracy": bootstrap_interval(hits(records))}


def task_name(path: Path) -> str:
    """ "act_recog" of ".../act_recog.json.gz"."""
    return path.name.split(".")[0]


def accuracy(questions: Sequence[Question], scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """`summary` of questions and the scores of their answers."""
    return summary([_record(i, *both) for i, both in enumerate(zip(questions, scores, strict=True))])


def _record(index: int, question: Question, scores: np.ndarray) -> Record:
    """One row of a predictions file."""
    return {
        "index": index,
        "scores": [float(x) for x in scores],
        "choice": int(np.argmax(scores)),
        "gold": question.gold,
    }


def answer_scores(
    evaluated: Evaluated,
    questions: Sequence[Question],
    rule: Rule,
    *,
    batch_size: int = 4,
    special_tokens: bool = False,
) -> list[np.ndarray]:
    """Scores of every answer of every question, [number of answers] float64 each.

    Raises:
        InputError: if an answer has no tokens of its own.
    """
    results: list[Any] = [None] * len(questions)
    for batch in score_batches(evaluated, questions, rule, batch_size=batch_size, special_tokens=special_tokens):
        for place, scores in batch:
            results[place] = scores
    return results


def score_batches(
    evaluated: Evaluated,
    questions: Sequence[Question],
    rule: Rule,
    *,
    batch_size: int = 4,
    special_tokens: bool = False,
    done: Container[int] = (),
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """After every forward pass, (place in ``questions``, scores [number of answers] float64) of its questions.

    Args:
        done: places to leave out.  A pass holds the same questions whatever is done, so scores are the same bit for
            bit; one of which all are done does not run.

    Raises:
        InputError: if an answer has no tokens of its own, or a question has more tokens than the model positions.
    """
    options = _Passes(batch_size, special_tokens)
    prior: dict[str, float] = {}
    if rule == "calibrated" and any(place not in done for place in range(len(questions))):
        prior = _priors(evaluated, sorted({answer for q in questions for answer in q.answers}), options)
    for batch in _log_likelihoods(evaluated, questions, options, name="qa", done=done):
        if rule == "normalized":
            yield [(place, sums / counts) for place, sums, counts in batch]
        else:
            yield [(place, sums - np.array([prior[a] for a in questions[place].answers])) for place, sums, _ in batch]


def check(evaluated: Evaluated, questions: Sequence[Question], *, special_tokens: bool = False) -> None:
    """Refuse what cannot be scored, without a forward pass.

    Raises:
        InputError: as `score_batches`.
    """
    for question in questions:
        packed = pack(evaluated.tokenizer, question, special_tokens)
        check_positions(evaluated, max(packed.positions) + 1, question.where)


def _priors(evaluated: Evaluated, answers: Sequence[str], passes: _Passes) -> dict[str, float]:
    """log p(answer | "Answer:") of each answer."""
    chunks = [
        answers[i : i + _ANSWERS_PER_CALIBRATION_ROW] for i in range(0, len(answers), _ANSWERS_PER_CALIBRATION_ROW)
    ]
    rows = [Question(_CALIBRATION_PROMPT, tuple(chunk), 0, "calibration") for chunk in chunks]
    return {
        answer: float(value)
        for batch in _log_likelihoods(evaluated, rows, passes, name="priors")
        for place, sums, _ in batch
        for answer, value in zip(chunks[place], sums, strict=True)
    }


def _log_likelihoods(
    evaluated: Evaluated,
    questions: Sequence[Question],
    passes: _Passes,
    *,
    name: str,
    done: Container[int] = (),
) -> Iterator[list[tuple[int, np.ndarray, np.ndarray]]]:
    """Of each pass: place of a question, sum of log p over each answer's tokens, and the number of those tokens."""
    packed = [pack(evaluated.tokenizer, question, passes.special_tokens) for question in questions]
    for row, question in zip(packed, questions, strict=True):
        check_positions(evaluated, max(row.positions) + 1, question.where)
    order = sorted(range(len(packed)), key=lambda place: len(packed[place].ids))
    rows = rows_per_pass(evaluated, passes.batch_size)
    with progress_bar(name, len(packed), "question") as bar:
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            if not all(place in done for place in chosen):
                losses = row_nll(evaluated, collate([packed[place] for place in chosen], rows))
                yield [(place, *log_likelihoods(packed[place], losses[row])) for row, place in enumerate(chosen)]
            bar.update(len(chosen))
