"""Log-likelihoods of the predicted tokens of a batch.  Letters: B rows, M predicted tokens, V vocabulary."""

import jax
import jax.numpy as jnp

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Batch
from e2wm_jax.models import decoder
from e2wm_jax.models.layers import Params, negative_log_likelihood


def target_logits(config: ModelConfig, params: Params, batch: Batch, *, remat: bool = False) -> jax.Array:
    """Output scores [B, M, V] from which each target token is predicted."""
    hidden = decoder.hidden_states(config, params, batch.ids, batch.positions, batch.segments, remat=remat)
    previous = jnp.take_along_axis(hidden, (batch.targets - 1)[..., None], axis=1)
    return decoder.logits(config, params, previous)


def target_labels(batch: Batch) -> jax.Array:
    """The target tokens themselves, [B, M]."""
    return jnp.take_along_axis(batch.ids, batch.targets, axis=1)


def target_nll(config: ModelConfig, params: Params, batch: Batch, *, remat: bool = False) -> jax.Array:
    """Negative log-likelihood [B, M] in nats of each target token; meaningless where its weight is 0."""
    return negative_log_likelihood(target_logits(config, params, batch, remat=remat), target_labels(batch))
