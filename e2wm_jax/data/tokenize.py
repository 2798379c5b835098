"""Text -> token rows, cut and masked as the official code does it."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from e2wm_jax.data.batch import Row
from e2wm_jax.data.chat import common_prefix, conversation_tokens
from e2wm_jax.data.example import Completion, Conversation, Document, Example, TaskExample
from e2wm_jax.errors import InputError
from e2wm_jax.running.progress import say


def encode(tokenizer: Any, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
    """Token ids of each text; `special_tokens` adds what the tokenizer adds by default (such as a leading <s>)."""
    # verbose: no warning about the tokenizer's own length limit; the caller's max_length is the limit that counts.
    return tokenizer(list(texts), add_special_tokens=special_tokens, verbose=False)["input_ids"] if texts else []


def encode_prompts(tokenizer: Any, texts: Sequence[str], *, special_tokens: bool) -> list[list[int]]:
    """Token ids of texts that go on: with the special tokens that are added in front of a text, none added behind."""
    behind = _added_behind(tokenizer) if special_tokens else 0
    return [ids[: len(ids) - behind] for ids in encode(tokenizer, texts, special_tokens=special_tokens)]


def _added_behind(tokenizer: Any) -> int:
    """How many special tokens the tokenizer adds behind a text, such as a closing </s>."""
    (plain,), (added,) = (encode(tokenizer, ["a"], special_tokens=flag) for flag in (False, True))
    before = next((n for n in range(len(added)) if added[n : n + len(plain)] == plain), len(added) - len(plain))
    return len(added) - len(plain) - before


def task_rows(
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    max_length: int,
    special_tokens: bool = False,
    skip_truncated: bool = False,
    append_eos: bool | None = None,
) -> tuple[list[Row], list[int]]:
    """A row of each example, cut to `max_length` tokens; what is learned of it, `data.example` says.

    Of f"{input} {ref}\\n" the targets are the tokens beyond the number of those of `input`, as in the official code;
    of a prompt and its completion the tokens from where they part from the prompt's.

    Args:
        append_eos: end examples with the tokenizer's end-of-text token; None: documents and completions only, which
            then learn to stop. A conversation ends as its template has it.

    Returns:
        The rows, and for each the index of its example (rows without anything to learn are left out).

    Raises:
        InputError: if truncation to `max_length` leaves a row without answer tokens and not `skip_truncated`; if
            `append_eos` and there is no such token; for a conversation as `conversation_tokens`.
    """
    if append_eos and tokenizer.eos_token_id is None:
        raise InputError("--append-eos yes: the model's tokenizer has no end-of-text token; pass --append-eos no")
    found = _tokens(tokenizer, examples, special_tokens=special_tokens, append_eos=append_eos)
    rows, kept, lost = [], [], []
    for index, (example, (ids, targets)) in enumerate(zip(examples, found, strict=True)):
        # Nothing predicts the first token of all.
        targets = targets[np.searchsorted(targets, 1) : np.searchsorted(targets, max_length)]
        if not len(targets):
            lost.append(index)
            continue
        first, all_behind = int(targets[0]), len(targets) == min(len(ids), max_length) - targets[0]
        row = np.asarray(ids[:max_length], np.int32)
        chosen, cut = None if all_behind else targets, max(len(ids) - max_length, 0)
        rows.append(Row(row, first, example.weight, chosen, cut))
        kept.append(index)
    if lost and (not skip_truncated or not rows):
        if empty := [index for index in lost if len(found[index][0]) <= max_length]:
            raise InputError(
                f"{examples[empty[0]].where}: nothing to learn, no token to predict ({len(empty)} of {len(examples)} "
                f"rows, at any --max-length); give answers{', or pass --skip-truncated' if rows else ''}"
            )
        longest = max(_before(*found[index]) for index in lost)
        rule = "--max-length or pass --skip-truncated" if rows else "--max-length"
        raise InputError(
            f"{examples[lost[0]].where}: --max-length {max_length} leaves no answer token ({len(lost)} of "
            f"{len(examples)} rows, inputs up to {longest} tokens); raise {rule}"
        )
    return rows, kept


def say_cut(rows: Sequence[Row], max_length: int, name: str = "") -> None:
    """One line for the user if `max_length` has cut rows, after the name of what they are."""
    cut = [row.cut for row in rows if row.cut]
    if cut:
        say(
            f"{name and name + ': '}--max-length {max_length} cuts {len(cut)} of {len(rows)} examples, "
            f"the longest by {max(cut)} of {max_length + max(cut)} tokens"
        )


def _before(ids: Sequence[int], targets: np.ndarray) -> int:
    """Tokens in front of what is learned."""
    return int(targets[0]) if len(targets) else len(ids)


def _tokens(
    tokenizer: Any, examples: Sequence[Example], *, special_tokens: bool, append_eos: bool | None
) -> list[tuple[list[int], np.ndarray]]:
    """Of each example its tokens, and the indices of those to learn."""
    pairs = [_pair(example) for example in examples if not isinstance(example, Conversation)]
    prefixes = encode_prompts(tokenizer, [prefix for prefix, _ in pairs], special_tokens=special_tokens)
    texts = encode(tokenizer, [text for _, text in pairs], special_tokens=special_tokens)
    encoded = zip(prefixes, texts, strict=True)
    found = []
    for example in examples:
        if isinstance(example, Conversation):
            ids, places = conversation_tokens(tokenizer, example)
            found.append((ids, np.asarray(places, np.int32)))
            continue
        prefix, ids = next(encoded)
        ends = append_eos if append_eos is not None else not isinstance(example, TaskExample)
        if ends and tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        first = common_prefix(prefix, ids) if isinstance(example, Completion) else len(prefix)
        found.append((ids, np.arange(first, len(ids), dtype=np.int32)))
    return found


def _pair(example: TaskExample | Completion | Document) -> tuple[str, str]:
    """What is given, and all the text."""
    match example:
        case TaskExample():
            return example.input, f"{example.input} {example.ref}\n"
        case Completion():
            return example.prompt, example.prompt + example.completion
        case Document():
            return "", example.text


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
        cut, ids = max(len(ids) - max_length, 0), ids[:max_length]
        if len(ids) < 2:
            continue
        rows.append(Row(np.asarray(ids, np.int32), 1, cut=cut))
        start, end = offsets[0][1], max(stop for _, stop in offsets[: len(ids)])
        sizes.append(len(text[start:end].encode()))
    return rows, sizes


def check_ids(tokenizer: Any, vocab_size: int, encoded: Iterable[tuple[str, Sequence[int] | np.ndarray]]) -> None:
    """Refuse tokens for which the model has no row; a tokenizer that could make such is no mistake as long as it does
    not, and a table that is larger than the tokenizer is none at all.

    Args:
        encoded: where a text stands ("file:line"), and its token ids.

    Raises:
        InputError: naming the place, the token and the table of the first that is beyond it.
    """
    for where, ids in encoded:
        if len(ids) and int(np.max(ids)) >= vocab_size:
            token = next(int(one) for one in ids if one >= vocab_size)
            raise InputError(
                f"{where}: token {token} ({tokenizer.convert_ids_to_tokens(token)}), the model has {vocab_size} rows; "
                "give the tokenizer that the weights were trained with, or a model whose embeddings were resized"
            )
