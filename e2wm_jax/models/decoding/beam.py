"""Beam search over a cache that never moves: which beam wrote which place is kept in a mask instead.

Letters as in `layers`; W beams, C candidates, N new tokens, S places of the cache.  The W beams of a row are W queries
of one step.  A row's prompt is in the cache once, and step n writes its W tokens to the next W places; a beam sees
those that its ancestors wrote.  Hypotheses are kept and ended as transformers' `generate` does it with
early_stopping False.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.config import ModelConfig
from e2wm_jax.models import decoder
from e2wm_jax.models.decoder import Cache
from e2wm_jax.models.layers import Params

_NEVER = -1e9  # added to the score of what must not be chosen


class Prompts(NamedTuple):
    """Left-padded prompts: three arrays [B, T] (`decoder.hidden_states`)."""

    ids: jax.Array
    positions: jax.Array
    segments: jax.Array


class Rules(NamedTuple):
    """When a hypothesis ends, and what it is worth; a change compiles nothing."""

    ends: jax.Array  # [V] bool, tokens that end a hypothesis
    cuts: jax.Array  # [V] bool, tokens behind which nothing matters: a row is done when all agree up to one
    limit: jax.Array  # [] int32: how many tokens to write at most
    length_penalty: jax.Array  # []


class _Finished(NamedTuple):
    """The best W ended hypotheses of each row."""

    tokens: jax.Array  # [B, W, N]
    scores: jax.Array  # [B, W] log-likelihood / length ** rules.length_penalty
    lengths: jax.Array  # [B, W]
    real: jax.Array  # [B, W] bool: False where there is none yet


class _Beams(NamedTuple):
    """The loop's state."""

    step: jax.Array  # tokens written to each running beam
    tokens: jax.Array  # [B, W, N] of running beams
    scores: jax.Array  # [B, W] their log-likelihoods
    seen: jax.Array  # [B, W, S] bool: the places that each beam sees
    finished: _Finished
    improvable: jax.Array  # [B] bool: a running beam may still beat a finished one
    decided: jax.Array  # [B] bool: everything agrees up to a cut
    finite: jax.Array  # [B] bool: so were all scores
    cache: Cache


@partial(jax.jit, static_argnames=("config", "num_beams", "candidates", "new_tokens"))
def beam_search(
    config: ModelConfig,
    params: Params,
    prompts: Prompts,
    rules: Rules,
    *,
    num_beams: int,
    candidates: int,
    new_tokens: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best hypothesis of each row behind its prompt.

    Args:
        candidates: C, so many that W run on whatever ends: W times one more than there are ends, at least 2 W.
        new_tokens: N, at least ``rules.limit``; it sets the shapes.

    Returns:
        tokens [B, N], how many of them count [B], an end or cut included, and whether all scores were finite [B].
    """
    places, shape = num_beams * new_tokens, (len(prompts.ids), num_beams)
    hidden, cache = decoder.prefill(config, params, *prompts, places=places)
    next_position = prompts.positions[:, -1:]

    def unfinished(beams: _Beams) -> jax.Array:
        return jnp.any(beams.improvable & ~beams.decided) & (beams.step < rules.limit)

    def advance(beams: _Beams) -> _Beams:
        last = jnp.take_along_axis(beams.tokens, jnp.full((*shape, 1), beams.step - 1), axis=2)[..., 0]
        own = jnp.arange(beams.seen.shape[2]) == beams.cache.length + jnp.arange(num_beams)[:, None]
        seen = beams.seen | own
        where = jnp.broadcast_to(next_position + beams.step, shape)
        hidden, cache = decoder.extend(config, params, beams.cache, last, where, jnp.zeros(shape, jnp.int32), seen)
        return _choose(
            beams._replace(seen=seen, cache=cache), decoder.logits(config, params, hidden), rules, candidates
        )

    beams = _start(prompts.segments, cache, num_beams, new_tokens)
    # Of one beam, the prompt itself.
    beams = _choose(beams, decoder.logits(config, params, hidden[:, -1:]), rules, candidates)
    beams = jax.lax.while_loop(unfinished, advance, beams)
    ended = beams.finished.real[:, 0]
    best = jnp.where(ended[:, None], beams.finished.tokens[:, 0], beams.tokens[:, 0])
    written = jnp.where(ended, beams.finished.lengths[:, 0], beams.step)
    return best, jnp.minimum(written, _cut_lengths(best, written, rules.cuts)), beams.finite


def _start(segments: jax.Array, cache: Cache, num_beams: int, new_tokens: int) -> _Beams:
    """Nothing written yet; ``cache`` holds the prompts, whose segments are [B, T]."""
    shape = (len(segments), num_beams)
    tokens = jnp.zeros((*shape, new_tokens), jnp.int32)
    prompt = jnp.pad(segments == 0, ((0, 0), (0, num_beams * new_tokens)))
    return _Beams(
        step=jnp.int32(0),
        tokens=tokens,
        scores=jnp.zeros(shape),
        seen=jnp.repeat(prompt[:, None], num_beams, axis=1),
        finished=_Finished(tokens, jnp.full(shape, _NEVER), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)),
        improvable=jnp.any(segments == 0, axis=1),
        decided=jnp.zeros(len(segments), bool),
        finite=jnp.ones(len(segments), bool),
        cache=cache,
    )


def _choose(beams: _Beams, logits: jax.Array, rules: Rules, keep: int) -> _Beams:
    """One more token: logits [B, W (at first 1), V] of the running beams -> the best running and ended ones."""
    num_beams = beams.scores.shape[1]
    top, ids = jax.lax.top_k(logits.astype(jnp.float32), keep)
    normalizers = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1, keepdims=True)
    likelihoods = top - normalizers
    likelihoods += beams.scores[:, : logits.shape[1], None]
    scores, index = jax.lax.top_k(likelihoods.reshape(len(ids), -1), keep)  # [B, C]
    parent, token = index // keep, jnp.take_along_axis(ids.reshape(len(ids), -1), index, axis=1)
    tokens = _of(beams.tokens, parent).at[:, :, beams.step].set(token)
    step = beams.step + 1
    stops = rules.ends[token] | (step >= rules.limit)

    # A candidate behind the first W is there only to run on in the place of one that has ended.
    ending = stops & (jnp.arange(keep) < num_beams)
    final = scores / step.astype(jnp.float32) ** rules.length_penalty + jnp.where(
        ending & beams.improvable[:, None], 0, _NEVER
    )
    new = _Finished(tokens, final, jnp.full_like(token, step), ending)
    merged = jax.tree.map(lambda old, new: jnp.concatenate([old, new], axis=1), beams.finished, new)
    best = jax.lax.top_k(merged.scores, num_beams)[1]
    finished = jax.tree.map(lambda leaf: _of(leaf, best), merged)

    running_scores, running = jax.lax.top_k(scores + jnp.where(stops, _NEVER, 0), num_beams)
    running_tokens = _of(tokens, running)
    # The likeliest running beam is taken at its present length, although a longer one could score better.
    worst = jnp.where(jnp.all(finished.real, axis=1), jnp.min(finished.scores, axis=1), _NEVER)
    improvable = beams.improvable & (running_scores[:, 0] / step.astype(jnp.float32) ** rules.length_penalty > worst)
    return beams._replace(
        step=step,
        tokens=running_tokens,
        scores=running_scores,
        seen=_of(beams.seen, jnp.take_along_axis(parent, running, axis=1)),
        finished=finished,
        improvable=improvable,
        decided=_decided(running_tokens, step, finished, rules.cuts),
        finite=beams.finite & jnp.all(jnp.isfinite(normalizers), axis=(1, 2)),
    )


def _of(array: jax.Array, index: jax.Array) -> jax.Array:
    """Rows ``index`` [B, C] of the second axis."""
    return jnp.take_along_axis(array, index.reshape(*index.shape, *(1,) * (array.ndim - 2)), axis=1)


def _cut_lengths(tokens: jax.Array, lengths: jax.Array, cuts: jax.Array) -> jax.Array:
    """Tokens [...] up to and including the first cut among the first ``lengths`` of [..., N]; N if there is none."""
    where = cuts[tokens] & (jnp.arange(tokens.shape[-1]) < lengths[..., None])
    return jnp.where(jnp.any(where, axis=-1), jnp.argmax(where, axis=-1) + 1, tokens.shape[-1])


def _decided(tokens: jax.Array, step: jax.Array, finished: _Finished, cuts: jax.Array) -> jax.Array:
    """[B]: all beams, running and finished, have the same tokens up to the first cut, so the rest changes nothing."""
    everything = jnp.concatenate([tokens, finished.tokens], axis=1)
    lengths = jnp.concatenate([jnp.full(tokens.shape[:2], step), finished.lengths], axis=1)
    counts = jnp.concatenate([jnp.ones(tokens.shape[:2], bool), finished.real], axis=1)
    until = _cut_lengths(everything, lengths, cuts)
    first = jnp.min(jnp.where(counts, until, 0)[:, :1], axis=1, keepdims=True)
    same = (everything == everything[:, :1]) | (jnp.arange(tokens.shape[-1]) >= first[..., None])
    has_cut = jnp.any(cuts[everything[:, 0]] & (jnp.arange(tokens.shape[-1]) < step), axis=-1)
    return has_cut & jnp.all(~counts | ((until == first) & jnp.all(same, axis=-1)), axis=1)
