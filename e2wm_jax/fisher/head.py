"""The output head and the loss, over the vocabulary in chunks: no array of tokens times vocabulary exists.

Pass 1 reads the head once and gives each token's log-normalizer, its label (given, or drawn from the model) and the
gradient of the hidden states; as in flash attention (Dao et al. 2022), sums of exponentials are rescaled whenever a
larger score turns up.  Pass 2, only where the head's own squares are wanted, makes each chunk's scores again.
Chunks are of the vocabulary and never of time, because a document's gradient must be whole before it is squared.

Letters: B rows, T tokens, D width of the head, V vocabulary, C words of a chunk, J documents.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.fisher.squares import Documents, Split, square_matrix, square_vector
from e2wm_jax.models.head import CHUNK, Chunk, over_chunks
from e2wm_jax.models.layers import Params, linear, lookup


class HeadPass(NamedTuple):
    """What pass 1 found, per token."""

    labels: jax.Array  # [B, T] int32
    nll: jax.Array  # [B, T] float32 nats
    log_normalizer: jax.Array  # [B, T] float32
    dh: jax.Array  # [B, T, D]: gradient of sum(weights * nll)


def loss_and_gradient(
    hidden: jax.Array, head: Params, labels: jax.Array, weights: jax.Array, keys: jax.Array | None = None
) -> HeadPass:
    """Pass 1 for hidden states [B, T, D] and ``head``, {"weight": [V, D] of any kind, optional "bias": [V]}.

    Args:
        labels: the words to predict, [B, T]; ignored where ``keys`` are given.
        weights: of each token in the loss, [B, T] float32.
        keys: random keys [B, T]: labels are drawn from the model instead, each by its token's key alone (Gumbel-max:
            the largest of score + Gumbel noise is a draw from the softmax).
    """

    def add_chunk(state: tuple[jax.Array, ...], chunk: Chunk) -> tuple[jax.Array, ...]:
        largest, normalizer, mixed, best, drawn = state
        part, words, known = chunk
        scores, pull = jax.vjp(lambda hidden: linear(hidden, part), hidden)
        scores = jnp.where(known, -jnp.inf, scores.astype(jnp.float32))
        if keys is not None:
            noise = jax.vmap(jax.vmap(partial(jax.random.gumbel, shape=words.shape)))(_fold(keys, words[0]))
            noisy = scores + noise
            index = jnp.argmax(noisy, axis=-1)
            top = jnp.take_along_axis(noisy, index[..., None], axis=-1)[..., 0]
            drawn = jnp.where(top > best, words[index], drawn)
            best = jnp.maximum(top, best)
        now_largest = jnp.maximum(largest, jnp.max(scores, axis=-1))
        shrink = jnp.exp(largest - now_largest)
        e = jnp.exp(scores - now_largest[..., None])
        normalizer = normalizer * shrink + jnp.sum(e, axis=-1)
        mixed = mixed * shrink[..., None] + pull(e.astype(hidden.dtype))[0].astype(jnp.float32)
        return now_largest, normalizer, mixed, best, drawn

    tokens = hidden.shape[:-1]
    lowest = jnp.full(tokens, -jnp.inf, jnp.float32)
    start = (lowest, jnp.zeros(tokens), jnp.zeros(hidden.shape, jnp.float32), lowest, jnp.zeros(tokens, jnp.int32))
    largest, normalizer, mixed, _, drawn = over_chunks(head, add_chunk, start, CHUNK)
    labels = labels if keys is None else drawn
    log_normalizer = largest + jnp.log(normalizer)
    own = lookup(labels, head["weight"])
    picked = jnp.einsum("btd,btd->bt", hidden.astype(jnp.float32), own.astype(jnp.float32))
    if "bias" in head:
        picked += head["bias"][labels]
    dh = weights[..., None] * (mixed / normalizer[..., None] - own.astype(jnp.float32))
    return HeadPass(labels, log_normalizer - picked, log_normalizer, dh.astype(hidden.dtype))


def add_squares(
    totals: dict[str, jax.Array],
    hidden: jax.Array,
    head: Params,
    found: HeadPass,
    weights: jax.Array,
    documents: Documents,
    split: Split | None = None,
) -> dict[str, jax.Array]:
    """Pass 2: ``totals``, "weight" [V, D], "bias" [V] or both, plus the documents' squares."""

    def add_chunk(totals: dict[str, jax.Array], chunk: Chunk) -> dict[str, jax.Array]:
        part, words, known = chunk
        scores, _ = jax.vjp(lambda hidden: linear(hidden, part), hidden)  # exact, as in pass 1
        g = _score_gradient(scores, words, found, weights)
        g = jnp.where(known, 0, g)
        updated = {}
        for name, total in totals.items():
            here = jax.lax.dynamic_slice_in_dim(total, words[0], words.shape[0])
            if name == "weight":
                here = square_matrix(here, g.astype(hidden.dtype), hidden, documents, split)
            else:
                here = square_vector(here, g, documents)
            updated[name] = jax.lax.dynamic_update_slice_in_dim(total, here, words[0], 0)
        return updated

    return over_chunks(head, add_chunk, totals, CHUNK)


def own_rows(
    hidden: jax.Array, head: Params, ids: jax.Array, found: HeadPass, weights: jax.Array, documents: Documents
) -> jax.Array:
    """Rows L_j[ids] [B, T, D] of the head's gradient L_j of each token's own document, at that token's word."""
    rows = lookup(ids, head["weight"])  # [B, S, D]
    scores = jnp.einsum("btd,bsd->bts", hidden, rows, preferred_element_type=jnp.float32)
    if "bias" in head:
        scores += head["bias"][ids][:, None, :]
    g = jnp.exp(scores - found.log_normalizer[..., None]) - (found.labels[..., None] == ids[:, None, :])
    together = documents.slots[:, :, None] == documents.slots[:, None, :]
    g = jnp.where(together, g * weights[..., None], 0)
    return jnp.einsum("bts,btd->bsd", g, hidden.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


def token_keys(seed: int, numbers: jax.Array, slots: jax.Array, positions: jax.Array) -> jax.Array:
    """A key per token [B, T] from its document's place in the corpus and its own in it, whatever the batch."""
    number = jnp.append(numbers, -1)[slots]
    by_document = _fold(jnp.broadcast_to(jax.random.key(seed), slots.shape), number)
    return _fold(by_document, positions)


def _fold(keys: jax.Array, numbers: jax.Array) -> jax.Array:
    fold = jnp.vectorize(lambda key, number: jax.random.fold_in(key, number), signature="(),()->()")
    return fold(keys, jnp.broadcast_to(numbers, keys.shape))


def _score_gradient(scores: jax.Array, words: jax.Array, found: HeadPass, weights: jax.Array) -> jax.Array:
    """Of sum(weights * nll): weights (softmax - label), [B, T, C]."""
    p = jnp.exp(scores.astype(jnp.float32) - found.log_normalizer[..., None])
    return (p - (found.labels[..., None] == words)) * weights[..., None]
