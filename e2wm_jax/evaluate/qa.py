"""Multiple-choice questions by the likelihood of each answer, scored as the official code does.

    normalized   sum log p(answer | input) / tokens of the answer            act_recog, count, obj_move
    calibrated   log p(answer | input) - log p(answer | "Answer:")           housework_qa, neg_housework_qa, act_infer

All answers of a question go through the model in one row: the tokens they share are segment 0, each answer's own tokens
a segment behind it (models.decoder.visibility).  The prompt, by far the longest part, is computed once.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from e2wm_jax.config import BaseDType
from e2wm_jax.data.batch import Batch, padded_length
from e2wm_jax.data.source import Question, read_questions
from e2wm_jax.data.tokenize import encode
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.model import Evaluated, batch_nll, load_evaluated
from e2wm_jax.files import write_json_lines
from e2wm_jax.progress import progress_bar

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


@dataclass(frozen=True)
class QaSettings:
    """Accuracy on a multiple-choice file."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: Path
    """JSON lines {"input", "answer", "answer_list"}, possibly .gz."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model; several are added up."""
    task: str | None = None
    """Task name, which decides the scoring rule; by default the file's name."""
    samples: int | None = None
    """Use the first N questions; all by default."""
    predictions: Path | None = None
    """Write one JSON line per question: index, scores, choice, gold."""
    batch_size: int = 4
    """Questions per forward pass."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens (the official code does not)."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits."""


@dataclass(frozen=True)
class _Packed:
    """One question as a row: shared tokens, then each answer's own."""

    ids: list[int]
    positions: list[int]
    segments: list[int]  # 0 shared, k + 1 for answer k
    targets: list[int]  # indices of answer tokens
    owners: list[int]  # which answer each target belongs to


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
    evaluated = load_evaluated(settings.model, settings.adapter, settings.base_dtype)
    scores = answer_scores(
        evaluated,
        questions,
        RULES[task],
        batch_size=settings.batch_size,
        special_tokens=settings.special_tokens,
    )
    if settings.predictions is not None:
        write_json_lines(settings.predictions, prediction_records(questions, scores))
    return {"task": task, **accuracy(questions, scores)}


def task_name(path: Path) -> str:
    """ "act_recog" of ".../act_recog.json.gz"."""
    return path.name.split(".")[0]


def accuracy(questions: Sequence[Question], scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """Share of questions whose best answer is the gold one (the first of equals), beside always choosing one index."""
    correct = sum(int(np.argmax(s)) == q.gold for q, s in zip(questions, scores, strict=True))
    most_common = Counter(question.gold for question in questions).most_common(1)[0][1]
    n = len(questions)
    return {"accuracy": correct / n, "n": n, "majority": most_common / n}


def prediction_records(questions: Sequence[Question], scores: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Rows of a predictions file."""
    return [
        {"index": index, "scores": [float(x) for x in s], "choice": int(np.argmax(s)), "gold": question.gold}
        for index, (question, s) in enumerate(zip(questions, scores, strict=True))
    ]


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
    score = partial(_log_likelihoods, evaluated, batch_size=batch_size, special_tokens=special_tokens)
    results = score(questions, name="qa")
    if rule == "normalized":
        return [sums / counts for sums, counts in results]
    answers = sorted({answer for question in questions for answer in question.answers})
    chunks = [
        answers[i : i + _ANSWERS_PER_CALIBRATION_ROW] for i in range(0, len(answers), _ANSWERS_PER_CALIBRATION_ROW)
    ]
    priors = score([Question(_CALIBRATION_PROMPT, tuple(chunk), 0, "calibration") for chunk in chunks], name="priors")
    prior = {
        answer: value
        for chunk, (sums, _) in zip(chunks, priors, strict=True)
        for answer, value in zip(chunk, sums, strict=True)
    }
    return [
        sums - np.array([prior[answer] for answer in question.answers])
        for question, (sums, _) in zip(questions, results, strict=True)
    ]


def _log_likelihoods(
    evaluated: Evaluated, questions: Sequence[Question], *, batch_size: int, special_tokens: bool, name: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per question: sum of log p over each answer's tokens, and the number of those tokens."""
    config, params, tokenizer = evaluated
    packed = [_pack(tokenizer, question, special_tokens) for question in questions]
    order = sorted(range(len(packed)), key=lambda index: len(packed[index].ids))
    results: list[Any] = [None] * len(packed)
    with progress_bar(name, len(packed), "question") as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            losses = np.asarray(
                batch_nll(config, params, _collate([packed[i] for i in chosen], batch_size)), np.float64
            )
            for row, index in enumerate(chosen):
                owners, n = packed[index].owners, len(questions[index].answers)
                counts = np.bincount(owners, minlength=n)
                results[index] = (-np.bincount(owners, weights=losses[row, : len(owners)], minlength=n), counts)
            bar.update(len(chosen))
    return results


def _pack(tokenizer: Any, question: Question, special_tokens: bool) -> _Packed:
    """Answer tokens are those of "input answer" beyond the number of tokens of the input alone, but not the first."""
    texts = [question.input, *(f"{question.input} {answer}" for answer in question.answers)]
    prompt, *answered = encode(tokenizer, texts, special_tokens=special_tokens)
    first = max(len(prompt), 1)  # nothing predicts the first token of all
    shared = _common_prefix(answered, limit=first - 1)
    ids, positions = answered[0][:shared], list(range(shared))
    segments = [0] * shared
    targets: list[int] = []
    owners: list[int] = []
    for index, sequence in enumerate(answered):
        if len(sequence) <= first:
            raise InputError(f"{question.where}: the answer {question.answers[index]!r} has no tokens behind the input")
        start = len(ids) - shared  # where position p of this answer lies: start + p
        ids += sequence[shared:]
        positions += range(shared, len(sequence))
        segments += [index + 1] * (len(sequence) - shared)
        targets += range(start + first, start + len(sequence))
        owners += [index] * (len(sequence) - first)
    return _Packed(ids, positions, segments, targets, owners)


def _common_prefix(sequences: Sequence[Sequence[int]], *, limit: int) -> int:
    """Number of leading tokens that all share, at most `limit`: the token before an answer is each answer's own."""
    length = 0
    for column in zip(*sequences, strict=False):
        if length >= limit or len(set(column)) > 1:
            break
        length += 1
    return length


def _collate(rows: Sequence[_Packed], batch_size: int) -> Batch:
    longest = max(len(row.ids) for row in rows)
    length = padded_length(longest, limit=2 * longest)
    num_targets = padded_length(max(len(row.targets) for row in rows), limit=length)
    ids = np.zeros((batch_size, length), np.int32)
    positions, segments = np.zeros_like(ids), np.full_like(ids, -1)
    targets = np.ones((batch_size, num_targets), np.int32)
    weights = np.zeros((batch_size, num_targets), np.float32)
    for index, row in enumerate(rows):
        n, m = len(row.ids), len(row.targets)
        ids[index, :n], positions[index, :n], segments[index, :n] = row.ids, row.positions, row.segments
        targets[index, :m], weights[index, :m] = row.targets, 1.0
    return Batch(ids, positions, segments, targets, weights)
