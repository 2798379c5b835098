"""The three questions that lm-evaluation-harness asks a model, answered without it.

    loglikelihoods     log p(continuation | context), and whether greedy decoding would write the continuation
    rolling            log p of a whole text, in windows of the model's length, each token predicted once
    generate_until     a continuation up to the first of some strings

The rules are the harness' own for causal models, so that scores compare with its `hf` model: spaces at a context's end
belong to the continuation; the continuation's tokens are those of the whole text beyond the number of the context's;
without a context the beginning-of-text token (or else the end-of-text token) stands in; what is too long loses its
beginning; the last window of a long text reaches back as far as it can.

Continuations of one context go through the model in one row (`answer_rows`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Batch
from e2wm_jax.data.tokenize import encode
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.model import Evaluated, check_finite, ending_tokens, prompt_ids
from e2wm_jax.evaluate.questions.answer_rows import Packed, collate, log_likelihoods, shapes_of
from e2wm_jax.evaluate.texts.continuations import tokens_with
from e2wm_jax.models import decoder
from e2wm_jax.models.decoding.generate import Decoding, generate
from e2wm_jax.models.decoding.sampling import Sampling
from e2wm_jax.models.head import target_labels, target_logits
from e2wm_jax.models.layers import Params, negative_log_likelihood
from e2wm_jax.running.progress import progress_bar

_CONTINUATIONS_PER_ROW = 16
_DEFAULT_NEW_TOKENS = 256  # the harness' own
_NEW_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one counts
_GENERATION_KEYS = (*_NEW_TOKENS_KEYS, "until", "do_sample", "temperature", "top_k", "top_p", "num_beams")

Tokens = Sequence[int]


@dataclass(frozen=True)
class Answering:
    """How requests are put to the model."""

    batch_size: int = 8  # rows of a pass
    max_length: int | None = None  # tokens that the model may read; its positions by default
    special_tokens: bool = True  # the tokenizer's default ones, as the harness' `hf` model
    seed: int = 0  # of sampling, where a task asks for it


def loglikelihoods(
    evaluated: Evaluated, pairs: Sequence[tuple[str, str]], how: Answering = Answering()
) -> list[tuple[float, bool]]:
    """(log p of the continuation, is it what greedy decoding writes) of every (context, continuation).

    Raises:
        InputError: for a continuation without tokens, or with more than the model can read.
    """
    moved = [_spaces_moved(*pair) for pair in pairs]
    contexts = _encode(evaluated, [context for context, _ in moved], how)
    wholes = _encode(evaluated, [context + continuation for context, continuation in moved], how)
    # Without a context no special tokens are added to the continuation.
    alone = encode(evaluated.tokenizer, [continuation for _, continuation in moved], special_tokens=False)
    begin = _begin(evaluated)
    found: list[tuple[Tokens, Tokens]] = []
    for (context, continuation), context_ids, whole, own in zip(moved, contexts, wholes, alone, strict=True):
        if context:
            both = context_ids, whole[len(context_ids) :]
        else:
            both = ([begin], own) if own[:1] != [begin] else (own[:1], own[1:])
        if not both[0] or not both[1]:
            raise InputError(f"the continuation {continuation!r} of {context[-40:]!r} has no tokens to predict")
        found.append(both)
    return token_loglikelihoods(evaluated, found, how, name="loglikelihood")


def rolling(evaluated: Evaluated, texts: Sequence[str], how: Answering = Answering()) -> list[float]:
    """Log p of every text, given only the beginning-of-text token; 0 of one without tokens."""
    begin, limit = _begin(evaluated), _limit(evaluated, how)
    encoded = _encode(evaluated, texts, how)
    owned = [(index, window) for index, ids in enumerate(encoded) for window in windows(begin, ids, limit)]
    sums = [0.0] * len(texts)
    scores = token_loglikelihoods(evaluated, [window for _, window in owned], how, name="rolling")
    for (index, _), (value, _) in zip(owned, scores, strict=True):
        sums[index] += value
    return sums


def windows(begin: int, ids: Tokens, limit: int) -> list[tuple[Tokens, Tokens]]:
    """(context, tokens to predict) of a text, so that the model reads at most `limit` tokens at a time.

    Each window predicts the `limit` tokens behind the one before; the last one, of fewer, has more context instead.
    """
    read = [begin, *ids]
    found: list[tuple[Tokens, Tokens]] = []
    for start in range(0, len(ids), limit):
        end = min(start + limit, len(ids))  # predict ids[start:end] = read[start + 1 : end + 1]
        first = max(0, end - limit)
        found.append((read[first : start + 1], read[start + 1 : end + 1]))
    return found


def generate_until(
    evaluated: Evaluated, requests: Sequence[tuple[str, Mapping[str, Any]]], how: Answering = Answering()
) -> list[str]:
    """The text behind every (context, options), cut before the first of the strings under "until".

    Options are the harness': "until", "max_gen_toks" (256), and "do_sample", "temperature", "top_k", "top_p" or
    "num_beams"; greedy without them.

    Raises:
        InputError: for other options, or where they leave no room for the context.
    """
    groups: dict[str, list[int]] = {}
    for index, (_, options) in enumerate(requests):
        groups.setdefault(json.dumps(options, sort_keys=True), []).append(index)
    encoded = _encode(evaluated, [context for context, _ in requests], how)
    params, tokenizer = decoder.unstack(evaluated.params), evaluated.tokenizer
    results = [""] * len(requests)
    with progress_bar("generate", len(requests), "request") as bar:
        for indices in groups.values():
            decoding, until = _decoding(requests[indices[0]][1], how.seed)
            room = _limit(evaluated, how) - decoding.max_new_tokens
            if room < 1:
                raise InputError(
                    f"{decoding.max_new_tokens} new tokens leave no room for a prompt in {_limit(evaluated, how)}; "
                    "lower the task's max_gen_toks"
                )
            found = generate(
                evaluated.config,
                params,
                [encoded[index][-room:] or [_begin(evaluated)] for index in indices],
                decoding,
                ends=ending_tokens(evaluated),
                cuts={token for text in until for token in tokens_with(tokenizer, text)},
                batch_size=how.batch_size,
                on_batch=bar.update,
                mesh=evaluated.mesh,
            )
            for index, text in zip(indices, tokenizer.batch_decode(found, skip_special_tokens=True), strict=True):
                results[index] = _cut(text, until)
    return results


def token_loglikelihoods(
    evaluated: Evaluated, pairs: Sequence[tuple[Tokens, Tokens]], how: Answering, *, name: str
) -> list[tuple[float, bool]]:
    """As `loglikelihoods`, of (context tokens, continuation tokens), one or more each.

    Raises:
        InputError: for a continuation with more tokens than the model can read.
    """
    limit = _limit(evaluated, how)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (context, continuation) in enumerate(pairs):
        if len(continuation) > limit:
            raise InputError(f"a continuation of {len(continuation)} tokens; the model reads {limit} at most")
        # The last token is predicted only, not read.
        groups.setdefault(tuple(context[-(limit + 1 - len(continuation)) :]), []).append(index)
    rows = [
        (indices[start : start + _CONTINUATIONS_PER_ROW], context)
        for context, indices in groups.items()
        for start in range(0, len(indices), _CONTINUATIONS_PER_ROW)
    ]
    packed = [(indices, _pack(context, [pairs[i][1] for i in indices])) for indices, context in rows]
    packed.sort(key=lambda row: len(row[1].ids))
    shapes = shapes_of([row for _, row in packed], how.batch_size)
    results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    with progress_bar(name, len(pairs), "request") as bar:
        for start in range(0, len(packed), how.batch_size):
            chunk = packed[start : start + how.batch_size]
            batch = collate([row for _, row in chunk], how.batch_size, shapes)
            # The last of limit + 1 tokens is not read, so its position does not matter; tables have none for it.
            batch = batch._replace(positions=np.minimum(batch.positions, evaluated.config.max_positions - 1))
            losses, likeliest = map(np.asarray, _target_scores(evaluated.config, evaluated.params, batch))
            for (indices, row), loss, best in zip(chunk, losses.astype(np.float64), likeliest, strict=False):
                sums, counts = log_likelihoods(row, loss)
                hits = np.bincount(row.owners, weights=best[: len(row.owners)])
                check_finite(sums, f"request {indices[0] + 1}")
                for index, value, greedy in zip(indices, sums, hits == counts, strict=True):
                    results[index] = float(value), bool(greedy)
            bar.update(sum(len(indices) for indices, _ in chunk))
    return results


@partial(jax.jit, static_argnums=0)
def _target_scores(config: ModelConfig, params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood [B, M] of each target token, and whether it is the likeliest."""
    logits, labels = target_logits(config, params, batch), target_labels(batch)
    return negative_log_likelihood(logits, labels), jnp.argmax(logits, axis=-1) == labels


def _pack(context: Tokens, continuations: Sequence[Tokens]) -> Packed:
    """A row: the context but its last token, then for each continuation that token and its own."""
    shared = len(context) - 1
    ids, positions, segments = list(context[:shared]), list(range(shared)), [0] * shared
    targets: list[int] = []
    owners: list[int] = []
    for owner, continuation in enumerate(continuations):
        targets += range(len(ids) + 1, len(ids) + 1 + len(continuation))
        ids += [context[-1], *continuation]
        positions += range(shared, shared + 1 + len(continuation))
        segments += [owner + 1] * (1 + len(continuation))
        owners += [owner] * len(continuation)
    return Packed(ids, positions, segments, targets, owners)


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continuation


def _encode(evaluated: Evaluated, texts: Sequence[str], how: Answering) -> list[list[int]]:
    """Token ids; special tokens are not added to a text that begins with one already."""
    tokenizer = evaluated.tokenizer
    plain = prompt_ids(evaluated, texts, where=lambda i: f"request {i + 1} {texts[i][-40:]!r}")
    if not how.special_tokens or not any(encode(tokenizer, [""], special_tokens=True)):
        return plain
    begin = tokenizer.decode([_begin(evaluated)])
    added = encode(tokenizer, texts, special_tokens=True)
    return [without if text.startswith(begin) else ids for text, without, ids in zip(texts, plain, added, strict=True)]


def _begin(evaluated: Evaluated) -> int:
    tokens = (evaluated.tokenizer.bos_token_id, evaluated.tokenizer.eos_token_id, *evaluated.ends)
    begin = next((token for token in tokens if token is not None), None)
    if begin is None:
        raise InputError(
            "the tokenizer has neither a beginning-of-text nor an end-of-text token; the harness needs one"
        )
    return int(begin)


def _limit(evaluated: Evaluated, how: Answering) -> int:
    positions = evaluated.config.max_positions
    return positions if how.max_length is None else min(how.max_length, positions)


def _decoding(options: Mapping[str, Any], seed: int) -> tuple[Decoding, list[str]]:
    """Our settings for the harness' generation options, and the strings to stop at."""
    if unknown := sorted({*options} - {*_GENERATION_KEYS}):
        raise InputError(f"generation option {unknown[0]!r} of a task: not known; known: {', '.join(_GENERATION_KEYS)}")
    until = options.get("until") or []
    until = [text for text in ([until] if isinstance(until, str) else until) if text]
    new_tokens = next((options[key] for key in _NEW_TOKENS_KEYS if options.get(key)), _DEFAULT_NEW_TOKENS)
    temperature = float(options.get("temperature") or 0.0)
    sampling = None
    if options.get("do_sample", temperature > 0) and temperature > 0:
        sampling = Sampling(temperature, options.get("top_k"), options.get("top_p"))
    decoding = Decoding(int(new_tokens), int(options.get("num_beams") or 1), sampling=sampling, seed=seed)
    decoding.check()
    return decoding, until


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text
