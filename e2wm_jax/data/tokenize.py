"""Text -> token rows, cut and masked as the official code does it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from e2wm_jax.data.batch import Row
from e2wm_jax.data.source import TaskExample
from e2wm_jax.errors import InputError


def encode(tokenizer: Any, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
    """Token ids of each text; `special_tokens` adds what the tokenizer adds by default (such as a leading <s>)."""
    # verbose: no warning about the tokenizer's own length limit; the caller's max_length is the limit that counts.
    return tokenizer(list(texts), add_special_tokens=special_tokens, verbose=False)["input_ids"] if texts else []


def task_rows(
    tokenizer: Any,
    examples: Sequence[TaskExample],
    *,
    max_length: int,
    special_tokens: bool = False,
    skip_truncated: bool = False,
) -> tuple[list[Row], list[int]]:
    """Rows of f"{input} {ref}\\n" whose targets are the tokens beyond those of `input` alone.

    Returns:
        The rows, and for each the index of its example (rows without answer tokens are left out).

    Raises:
        InputError: if truncation to `max_length` leaves a row without answer tokens and not `skip_truncated`.
    """
    prefixes = encode(tokenizer, [example.input for example in examples], special_tokens=special_tokens)
    texts = [f"{example.input} {example.ref}\n" for example in examples]
    rows, kept, lost = [], [], []
    for index, ids in enumerate(encode(tokenizer, texts, special_tokens=special_tokens)):
        first_target = max(len(prefixes[index]), 1)
        if min(len(ids), max_length) > first_target:
            rows.append(Row(np.asarray(ids[:max_length], np.int32), first_target, examples[index].weight))
            kept.append(index)
        else:
            lost.append(index)
    if lost and (not skip_truncated or not rows):
        longest = max(len(prefixes[index]) for index in lost)
        rule = "--max-length or pass --skip-truncated" if rows else "--max-length"
        raise InputError(
            f"{examples[lost[0]].where}: --max-length {max_length} leaves no answer token ({len(lost)} of "
            f"{len(examples)} rows, inputs up to {longest} tokens); raise {rule}"
        )
    return rows, kept


def document_rows(
    tokenizer: Any, documents: Sequence[str], *, max_length: int, special_tokens: bool
) -> tuple[list[Row], list[int]]:
    """Rows that predict every token but the first of each document, cut to `max_length` tokens.

    Returns:
        The rows, and for each the number of UTF-8 bytes of its predicted tokens.  Documents of fewer than two tokens
        predict nothing and are left out.
    """
    encoded = tokenizer(list(documents), add_special_tokens=special_tokens, verbose=False, return_offsets_mapping=True)
    rows, sizes = [], []
    for text, ids, offsets in zip(documents, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        ids = ids[:max_length]
        if len(ids) < 2:
            continue
        rows.append(Row(np.asarray(ids, np.int32), 1))
        start, end = offsets[0][1], max(stop for _, stop in offsets[: len(ids)])
        sizes.append(len(text[start:end].encode()))
    return rows, sizes
