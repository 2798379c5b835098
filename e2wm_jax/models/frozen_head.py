"""Losses over the vocabulary under a frozen output head: no array of tokens times vocabulary, forwards or backwards.

Of a frozen head only the gradient of the hidden states is wanted, and that is found on the way forwards: the head is
read once, in chunks, and the backward pass is a product with the cotangent.  Sums of exponentials are rescaled whenever
a larger score turns up, as in flash attention (Dao et al. 2022).  Products take the hidden states' dtype and give
float32, as is everything else.

Where a mesh splits the vocabulary into P parts, each part is gone through by itself and what was found is put together
at the end: within the loop no device needs another's rows or sums.

Letters: D width of the head, V vocabulary, P parts of it, C words of a chunk; "..." is any shape of tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.models.head import CHUNK, Chunk, over_chunks
from e2wm_jax.models.layers import Params, lookup
from e2wm_jax.models.quantized import dense

Direction = Literal["forward", "reverse"]


def token_nll(hidden: jax.Array, head: Params, labels: jax.Array, *, parts: int = 1) -> jax.Array:
    """-log p(label) of each token in float32 nats: hidden [..., D], labels [...] -> [...].

    Products of tokens x V x D: two where it is differentiated, which it can be in ``hidden`` only; otherwise one.

    Args:
        head: {"weight": [V, D] of any kind with `dense`, optional "bias": [V]}.
        parts: into how many equal parts a mesh splits V.

    Raises:
        ValueError: if ``parts`` does not divide V.
    """
    return _nll(parts, hidden, head, labels)


def token_kl(
    hidden: jax.Array, base_hidden: jax.Array, head: Params, *, direction: Direction, parts: int = 1
) -> jax.Array:
    """Divergence of each token's prediction p from the base model's p0 in float32 nats: two [..., D] -> [...].

        forward   KL(p0 || p) = sum_v p0 (log p0 - log p)     gradient of ``hidden``: sum_v (p - p0) W_v
        reverse   KL(p || p0) = sum_v p (log p - log p0)                              sum_v p (log p - log p0 - KL) W_v

    Products of tokens x V x D: four where it is differentiated, which it can be in ``hidden`` only; otherwise two.
    (Two passes, the second with the normalizers known, would take five.)  Sums are exact to some 1e-6 nats; what that
    leaves below 0 is given as 0.

    Args:
        base_hidden: the base model's hidden states, constants.
        head: as in `token_nll`; the same for both models.
        parts: as in `token_nll`.

    Raises:
        ValueError: if ``parts`` does not divide V.
    """
    return _kl(direction, parts, hidden, base_hidden, head)


class _Softmax(NamedTuple):
    """Over the words so far."""

    largest: jax.Array  # [...]: largest score
    total: jax.Array  # [...]: sum of exp(score - largest)

    def including(self, scores: jax.Array) -> "_Softmax":
        """With the words of one more chunk, [..., C]."""
        largest = jnp.maximum(self.largest, jnp.max(scores, axis=-1))
        added = jnp.sum(jnp.exp(scores - largest[..., None]), axis=-1)
        return _Softmax(largest, self.total * jnp.exp(self.largest - largest) + added)

    def joined(self) -> "_Softmax":
        """[P, ...] of the parts -> [...] of all words."""
        largest = jnp.max(self.largest, axis=0)
        return _Softmax(largest, jnp.sum(self.total * jnp.exp(self.largest - largest), axis=0))


def _no_words(tokens: tuple[int, ...]) -> _Softmax:
    # With the first words the total is multiplied by exp(-inf) = 0; until then it is something to divide by.
    return _Softmax(jnp.full(tokens, -jnp.inf, jnp.float32), jnp.ones(tokens, jnp.float32))


# ---------------------------------------------------------------------------------------------- negative log-likelihood


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _nll(parts: int, hidden: jax.Array, head: Params, labels: jax.Array) -> jax.Array:
    return _nll_and_gradient(parts, hidden, head, labels, differentiated=False)[0]


def _nll_forward(parts: int, hidden: jax.Array, head: Params, labels: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    return _nll_and_gradient(parts, hidden, head, labels, differentiated=True)


def _nll_backward(parts: int, gradient: jax.Array, g: jax.Array) -> tuple[jax.Array, None, None]:
    del parts
    return (g[..., None] * gradient).astype(gradient.dtype), None, None


_nll.defvjp(_nll_forward, _nll_backward)


def _nll_and_gradient(
    parts: int, hidden: jax.Array, head: Params, labels: jax.Array, *, differentiated: bool
) -> tuple[jax.Array, jax.Array | None]:
    """nll [...] and its gradient [..., D]."""

    def add_chunk(state: tuple[_Softmax, jax.Array | None], chunk: Chunk) -> tuple[_Softmax, jax.Array | None]:
        softmax, mixed = state
        weight = _written_out(chunk, hidden)
        scores = _new(_biased(_products(hidden, weight), chunk), chunk)
        now = softmax.including(scores)
        if mixed is not None:
            e = jnp.exp(scores - now.largest[..., None])
            mixed = mixed * jnp.exp(softmax.largest - now.largest)[..., None] + _weighted_sum(e, weight)
        return now, mixed

    start = _no_words(labels.shape), jnp.zeros(hidden.shape, jnp.float32) if differentiated else None
    of_parts, mixed = _over_parts(head, parts, add_chunk, start)
    softmax = of_parts.joined()
    own = lookup(labels, head["weight"]).astype(jnp.float32)
    score = jnp.sum(hidden.astype(jnp.float32) * own, axis=-1)
    if "bias" in head:
        score += head["bias"][labels]
    nll = softmax.largest + jnp.log(softmax.total) - score
    if mixed is None:
        return nll, None
    share = jnp.exp(of_parts.largest - softmax.largest) / softmax.total
    return nll, (jnp.sum(mixed * share[..., None], axis=0) - own).astype(hidden.dtype)


# ------------------------------------------------------------------------------------------ Kullback-Leibler divergence


class _Comparison(NamedTuple):
    """Of the two models over the words so far, weighted as the base (forward) or the tuned model (reverse) does.

    e are exp(score - largest) of the model that weighs, d the tuned model's scores less the base's.  ``pull`` is the
    sum that becomes the gradient, with weights that are small where the models agree: e (p / p0 - 1) or e (d - mean),
    p, p0 and mean being those of the words so far.  Differences of two sums, p W and p0 W, would be lost in bfloat16's
    rounding of p just there, and a regularized model is always there.
    """

    tuned: _Softmax
    base: _Softmax
    mean: jax.Array  # [...]: weighted mean of d
    pull: jax.Array | None  # [..., D]
    mixed: jax.Array | None  # [..., D]: sum of e W, by which ``pull`` is corrected when p / p0 or the mean moves

    def pull_after(self, now: "_Comparison", direction: Direction) -> jax.Array:
        """``pull`` of the same words as it is when more words have made softmaxes and mean those of ``now``."""
        assert self.pull is not None
        assert self.mixed is not None
        tuned_shrinks = jnp.exp(self.tuned.largest - now.tuned.largest)
        if direction == "reverse":
            moved = (now.mean - self.mean)[..., None]
            return tuned_shrinks[..., None] * (self.pull - moved * self.mixed)
        base_shrinks = jnp.exp(self.base.largest - now.base.largest)
        growth = tuned_shrinks * (self.tuned.total / now.tuned.total) * (now.base.total / self.base.total)
        return growth[..., None] * self.pull + (growth - base_shrinks)[..., None] * self.mixed


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kl(direction: Direction, parts: int, hidden: jax.Array, base_hidden: jax.Array, head: Params) -> jax.Array:
    return _kl_and_gradient(direction, parts, hidden, base_hidden, head, differentiated=False)[0]


def _kl_forward(
    direction: Direction, parts: int, hidden: jax.Array, base_hidden: jax.Array, head: Params
) -> tuple[jax.Array, jax.Array | None]:
    return _kl_and_gradient(direction, parts, hidden, base_hidden, head, differentiated=True)


def _kl_backward(direction: Direction, parts: int, gradient: jax.Array, g: jax.Array) -> tuple[jax.Array, None, None]:
    del direction
    return _nll_backward(parts, gradient, g)


_kl.defvjp(_kl_forward, _kl_backward)


def _kl_and_gradient(
    direction: Direction, parts: int, hidden: jax.Array, base_hidden: jax.Array, head: Params, *, differentiated: bool
) -> tuple[jax.Array, jax.Array | None]:
    """KL [...] and its gradient [..., D]."""
    forward, tokens = direction == "forward", hidden.shape[:-1]
    # Accelerators round float32 states on their way into a product: small changes would be lost.  bfloat16's are not.
    of_change = hidden.dtype == jnp.float32
    both = jnp.stack([hidden, hidden - base_hidden if of_change else base_hidden])

    def add_chunk(old: _Comparison, chunk: Chunk) -> _Comparison:
        weight = _written_out(chunk, hidden)
        products = _products(both, weight)
        tuned_scores = _biased(products[0], chunk)
        base_scores = tuned_scores - products[1] if of_change else _biased(products[1], chunk)
        d = tuned_scores - base_scores  # even where its product is at hand: value and pull are to be of the same scores
        tuned_scores, base_scores = _new(tuned_scores, chunk), _new(base_scores, chunk)
        tuned, base = old.tuned.including(tuned_scores), old.base.including(base_scores)
        weighing, scores = (base, base_scores) if forward else (tuned, tuned_scores)
        e = jnp.exp(scores - weighing.largest[..., None])
        mean = old.mean + jnp.sum(e * (d - old.mean[..., None]), axis=-1) / weighing.total
        now = _Comparison(tuned, base, mean, None, None)
        if old.mixed is None:
            return now
        if forward:
            weights = jnp.exp(tuned_scores - tuned.largest[..., None]) * (base.total / tuned.total)[..., None] - e
        else:
            weights = e * (d - mean[..., None])
        pull, mixed = _weighted_sum(jnp.stack([weights, e]), weight)
        shrinks = jnp.exp((old.base if forward else old.tuned).largest - weighing.largest)
        return now._replace(pull=old.pull_after(now, direction) + pull, mixed=shrinks[..., None] * old.mixed + mixed)

    zeros = jnp.zeros(hidden.shape, jnp.float32) if differentiated else None
    start = _Comparison(_no_words(tokens), _no_words(tokens), jnp.zeros(tokens, jnp.float32), zeros, zeros)
    of_parts = _over_parts(head, parts, add_chunk, start)
    tuned, base = of_parts.tuned.joined(), of_parts.base.joined()
    weighing, weighing_parts = (base, of_parts.base) if forward else (tuned, of_parts.tuned)
    share = weighing_parts.total * jnp.exp(weighing_parts.largest - weighing.largest) / weighing.total
    mean = jnp.sum(share * of_parts.mean, axis=0)
    normalizers = (tuned.largest - base.largest) + jnp.log(tuned.total / base.total)
    kl = jnp.maximum(normalizers - mean if forward else mean - normalizers, 0)
    if not differentiated:
        return kl, None
    pull = of_parts.pull_after(_Comparison(tuned, base, mean, None, None), direction)
    return kl, (jnp.sum(pull, axis=0) / weighing.total[..., None]).astype(hidden.dtype)


# ------------------------------------------------------------------------------------------------------- the vocabulary


def _over_parts(head: Params, parts: int, add_chunk: Callable[[Any, Chunk], Any], start: Any) -> Any:
    """What `over_chunks` leaves of each part, with a leading axis P; a chunk has CHUNK words of all parts together."""
    vocabulary = head["weight"].shape[0]
    if vocabulary % parts:
        raise ValueError(f"{parts=} must divide the vocabulary of {vocabulary} words")
    with jax.named_scope("frozen_head"):
        if parts == 1:  # as below, but there XLA on a CPU would transpose each chunk
            return jax.tree.map(lambda x: x[None], over_chunks(head, add_chunk, start, CHUNK))
        split = jax.tree.map(lambda leaf: leaf.reshape(parts, vocabulary // parts, *leaf.shape[1:]), head)
        return jax.vmap(lambda part: over_chunks(part, add_chunk, start, -(-CHUNK // parts)))(split)


def _written_out(chunk: Chunk, like: jax.Array) -> jax.Array:
    """The chunk's rows [C, D]."""
    return dense(chunk[0]["weight"]).astype(like.dtype)


def _products(hidden: jax.Array, rows: jax.Array) -> jax.Array:
    """hidden [..., D], rows [C, D] -> [..., C]."""
    return jnp.einsum("...d,nd->...n", hidden, rows, preferred_element_type=jnp.float32)


def _biased(products: jax.Array, chunk: Chunk) -> jax.Array:
    """[..., C] with the head's bias, where it has one."""
    rows = chunk[0]
    return products + rows["bias"] if "bias" in rows else products


def _new(scores: jax.Array, chunk: Chunk) -> jax.Array:
    """[..., C] without the words that came before."""
    return jnp.where(chunk[2], -jnp.inf, scores)


def _weighted_sum(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """Weighted sum of rows [C, D] with weights [..., C] -> [..., D]."""
    return jnp.einsum("...n,nd->...d", weights.astype(rows.dtype), rows, preferred_element_type=jnp.float32)
