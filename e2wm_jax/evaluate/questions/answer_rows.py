"""All answers of a question in one row: the prompt, by far the longest part, goes through the model once.

The tokens that the answers share are segment 0, each answer's own tokens a segment behind it
(`models.decoder.visibility`).

Letters: B rows, T tokens, M answer tokens of a row, A answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from e2wm_jax.data.batch import Batch, Row
from e2wm_jax.data.chat import as_messages, chat_prompt
from e2wm_jax.data.loader import sorted_shapes
from e2wm_jax.data.source import Question
from e2wm_jax.data.tokenize import encode, encode_prompts
from e2wm_jax.errors import InputError


@dataclass(frozen=True)
class Packed:
    """One question as a row: shared tokens, then each answer's own."""

    ids: list[int]
    positions: list[int]
    segments: list[int]  # 0 shared, k + 1 for answer k
    targets: list[int]  # indices of answer tokens
    owners: list[int]  # which answer each target belongs to


def pack(
    tokenizer: Any, question: Question, special_tokens: bool, *, chat: bool = False, limit: int | None = None
) -> Packed:
    """Answer tokens are those of "input answer" beyond the number of tokens of the input alone, but not the first.

    Args:
        chat: the input is what a user says, and each answer the assistant's turn, right behind the template's prompt.
        limit: cut the input from the left until it has, with its longest answer, at most so many tokens.

    Raises:
        InputError: if an answer has no tokens of its own, or leaves none of the input; for a chat without a template.
    """
    asked = chat_prompt(tokenizer, as_messages(question.input), question.where) if chat else question.input
    (prompt,) = encode_prompts(tokenizer, [asked], special_tokens=special_tokens)
    texts = [f"{asked}{answer}" if chat else f"{asked} {answer}" for answer in question.answers]
    answered = encode(tokenizer, texts, special_tokens=special_tokens)
    if limit is not None and (over := max(map(len, answered)) - limit) > 0:
        if over >= len(prompt):
            raise InputError(f"{question.where}: an answer leaves no room for its question in {limit} tokens")
        prompt, *answered = (sequence[over:] for sequence in (prompt, *answered))
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
    return Packed(ids, positions, segments, targets, owners)


def shapes_of(rows: Sequence[Packed], batch_size: int) -> tuple[tuple[int, int], ...]:
    """(tokens, answer tokens) to pad to, few of them, where rows go by length, ``batch_size`` at a time."""
    measured = [Row(np.asarray(row.ids, np.int32), len(row.ids) - len(row.targets)) for row in rows]
    return sorted_shapes(measured, batch_size, max((len(row.ids) for row in rows), default=1))


def collate(rows: Sequence[Packed], batch_size: int, shapes: Sequence[tuple[int, int]]) -> Batch:
    """Rows padded to the first of the shapes (`shapes_of`) that holds them, and to ``batch_size`` rows."""
    longest = max(len(row.ids) for row in rows)
    length, num_targets = next(shape for shape in shapes if shape[0] >= longest)
    ids = np.zeros((batch_size, length), np.int32)
    positions, segments = np.zeros_like(ids), np.full_like(ids, -1)
    targets = np.ones((batch_size, num_targets), np.int32)
    weights = np.zeros((batch_size, num_targets), np.float32)
    for index, row in enumerate(rows):
        n, m = len(row.ids), len(row.targets)
        ids[index, :n], positions[index, :n], segments[index, :n] = row.ids, row.positions, row.segments
        targets[index, :m], weights[index, :m] = row.targets, 1.0
    return Batch(ids, positions, segments, targets, weights)


def log_likelihoods(packed: Packed, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log p of each answer, and its number of tokens, from the negative log-likelihoods [M] of a row's targets."""
    n = max(packed.owners) + 1  # every answer has tokens
    own = losses[: len(packed.owners)]
    return -np.bincount(packed.owners, weights=own, minlength=n), np.bincount(packed.owners, minlength=n)


def _common_prefix(sequences: Sequence[Sequence[int]], *, limit: int) -> int:
    """Number of leading tokens that all share, at most `limit`: the token before an answer is each answer's own."""
    length = 0
    for column in zip(*sequences, strict=False):
        if length >= limit or len(set(column)) > 1:
            break
        length += 1
    return length
