"""The output head: log-likelihoods of the predicted tokens, and the vocabulary in chunks where no array of tokens times
vocabulary is to exist.

Letters: B rows, M predicted tokens, D width, V vocabulary, C words of a chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Batch
from e2wm_jax.models import decoder
from e2wm_jax.models.decoder import Remat
from e2wm_jax.models.layers import Params, negative_log_likelihood

CHUNK = 4096  # words
Chunk = tuple[Params, jax.Array, jax.Array]  # rows of the head, their words [C], which of them came before [C]


class Head(NamedTuple):
    """The output head, and into how many equal parts the mesh splits its vocabulary (`models.frozen_head`)."""

    weights: Params  # {"weight": [V, D], optional "bias": [V]}
    parts: int


def output_head(config: ModelConfig, params: Params, mesh: Mesh | None) -> Head:
    """The head of the base model, which no adapter touches."""
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    whole = config.vocab_size % tensor != 0  # such a head is copied to every device: `sharding.partition`
    return Head(params["embed" if config.tied else "head"], 1 if whole else tensor)


def over_chunks(head: Params, add_chunk: Callable[[Any, Chunk], Any], state: Any, size: int) -> Any:
    """state after ``state = add_chunk(state, chunk)`` for all chunks of ``size`` words of ``head``, whose leaves have
    the vocabulary first.

    The last chunk begins early enough to be whole: padding the head would copy it.
    """
    vocabulary = head["weight"].shape[0]
    chunk = min(size, vocabulary)

    def body(index: jax.Array, state: Any) -> Any:
        start = jnp.minimum(index * chunk, vocabulary - chunk)
        words = start + jnp.arange(chunk, dtype=jnp.int32)
        part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, chunk), head)
        return add_chunk(state, (part, words, words < index * chunk))

    return jax.lax.fori_loop(0, -(-vocabulary // chunk), body, state)


def target_states(config: ModelConfig, params: Params, batch: Batch, *, remat: Remat = "none") -> Float[Array, "B M D"]:
    """Hidden states from which each target token is predicted."""
    hidden = decoder.hidden_states(config, params, batch.ids, batch.positions, batch.segments, remat=remat)
    return before_targets(hidden, batch)


def before_targets(hidden: Float[Array, "B T D"], batch: Batch) -> Float[Array, "B M D"]:
    """Of hidden states those that predict the target tokens."""
    return jnp.take_along_axis(hidden, (batch.targets - 1)[..., None], axis=1)


def target_logits(config: ModelConfig, params: Params, batch: Batch) -> Float[Array, "B M V"]:
    """Output scores from which each target token is predicted."""
    return decoder.logits(config, params, target_states(config, params, batch))


def target_labels(batch: Batch) -> Int[Array, "B M"]:
    """The target tokens themselves."""
    return jnp.take_along_axis(batch.ids, batch.targets, axis=1)


def target_nll(config: ModelConfig, params: Params, batch: Batch) -> Float[Array, "B M"]:
    """Negative log-likelihood in nats of each target token; meaningless where its weight is 0."""
    return negative_log_likelihood(target_logits(config, params, batch), target_labels(batch))
