"""Log-likelihoods of the answers to multiple-choice questions, and what is made of them (`Rule`).

A question goes through the model in one row with all its answers (`answer_rows`).
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from e2wm_jax.data.source import Question
from e2wm_jax.data.tokenize import check_ids
from e2wm_jax.evaluate.model import Evaluated, Opened, check_finite, check_positions, row_nll, rows_per_pass
from e2wm_jax.evaluate.questions.answer_rows import Packed, collate, log_likelihoods, pack, shapes_of
from e2wm_jax.evaluate.texts.prompting import Fitted, Need, Prompting, fit
from e2wm_jax.running.progress import progress_bar

Rule = Literal["normalized", "calibrated"]
_CALIBRATION_PROMPT = "Answer:"
_ANSWERS_PER_CALIBRATION_ROW = 16


class _Passes(NamedTuple):
    """How questions go through the model."""

    batch_size: int
    prompting: Prompting


def answer_scores(
    evaluated: Evaluated,
    questions: Sequence[Question],
    rule: Rule,
    prompting: Prompting = Prompting(),
    *,
    batch_size: int = 4,
) -> list[np.ndarray]:
    """Scores of every answer of every question, [number of answers] float64 each.

    Raises:
        InputError: if an answer has no tokens of its own.
    """
    results: list[Any] = [None] * len(questions)
    for batch in score_batches(evaluated, questions, rule, prompting, batch_size=batch_size):
        for place, scores in batch:
            results[place] = scores
    return results


def score_batches(
    evaluated: Evaluated,
    questions: Sequence[Question],
    rule: Rule,
    prompting: Prompting = Prompting(),
    *,
    batch_size: int = 4,
    done: Container[int] = (),
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """After every forward pass, (place in ``questions``, scores [number of answers] float64) of its questions.

    Args:
        done: places to leave out.  A pass holds the same questions whatever is done, so scores are the same bit for
            bit; one of which all are done does not run.

    Raises:
        InputError: if an answer has no tokens of its own, or a question has more tokens than the model positions and
            is not to be cut.
        NonFiniteError: naming a question whose scores are not finite.
    """
    options = _Passes(batch_size, prompting)
    prior: dict[str, float] = {}
    if rule == "calibrated" and any(place not in done for place in range(len(questions))):
        prior = _priors(evaluated, sorted({answer for q in questions for answer in q.answers}), options)
    for batch in _log_likelihoods(evaluated, questions, options, name="qa", done=done):
        if rule == "normalized":
            yield [(place, sums / counts) for place, sums, counts in batch]
        else:
            yield [(place, sums - np.array([prior[a] for a in questions[place].answers])) for place, sums, _ in batch]


def fitting(model: Opened | Evaluated, questions: Mapping[int, Question], prompting: Prompting) -> Fitted:
    """The questions for which the model has room, or is given it, without a forward pass.

    Raises:
        InputError: for what cannot be scored: an answer without tokens, a token without a row, too long a question.
    """
    needs = {}
    for index, question in questions.items():
        packed = _packed(model, question, prompting)
        check_ids(model.tokenizer, model.config.vocab_size, [(question.where, packed.ids)])
        needs[index] = Need(question.where, max(packed.positions) + 1)
    fitted = fit(questions, needs, model.config.max_positions, prompting.too_long)
    if fitted.over and prompting.too_long == "truncate":
        for index in questions:
            if needs[index].tokens > model.config.max_positions:
                _packed(model, questions[index], prompting, limit=model.config.max_positions)
    return fitted


def _packed(model: Opened | Evaluated, question: Question, prompting: Prompting, *, limit: int | None = None) -> Packed:
    return pack(model.tokenizer, question, prompting.special_tokens, chat=prompting.chat, limit=limit)


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
    limit = evaluated.config.max_positions if passes.prompting.too_long == "truncate" else None
    packed = [_packed(evaluated, question, passes.prompting, limit=limit) for question in questions]
    for row, question in zip(packed, questions, strict=True):
        check_positions(evaluated, max(row.positions) + 1, question.where)
    order = sorted(range(len(packed)), key=lambda place: len(packed[place].ids))
    rows = rows_per_pass(evaluated, passes.batch_size)
    shapes = shapes_of(packed, rows)
    with progress_bar(name, len(packed), "question") as bar:
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            if not all(place in done for place in chosen):
                losses = row_nll(evaluated, collate([packed[place] for place in chosen], rows, shapes))
                found = [(place, *log_likelihoods(packed[place], losses[row])) for row, place in enumerate(chosen)]
                for place, sums, _ in found:
                    check_finite(sums, questions[place].where)
                yield found
            bar.update(len(chosen))
