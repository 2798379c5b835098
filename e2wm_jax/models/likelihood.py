"""Log-likelihoods of the predicted tokens of a batch.  Letters: B rows, M predicted tokens, D width, V vocabulary."""

import jax
import jax.numpy as jnp

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Batch
from e2wm_jax.models import decoder
from e2wm_jax.models.decoder import Remat
from e2wm_jax.models.layers import Params, negative_log_likelihood


def target_states(config: ModelConfig, params: Params, batch: Batch, *, remat: Remat = "none") -> jax.Array:
    """Hidden states [B, M, D] from which each target token is predicted."""
    hidden = decoder.hidden_states(config, params, batch.ids, batch.positions, batch.segments, remat=remat)
    return jnp.take_along_axis(hidden, (batch.targets - 1)[..., None], axis=1)


def target_logits(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    """Output scores [B, M, V] from which each target token is predicted."""
    return decoder.logits(config, params, target_states(config, params, batch))


def target_labels(batch: Batch) -> jax.Array:
    """The target tokens themselves, [B, M]."""
    return jnp.take_along_axis(batch.ids, batch.targets, axis=1)


def target_nll(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    """Negative log-likelihood [B, M] in nats of each target token; meaningless where its weight is 0."""
    return negative_log_likelihood(target_logits(config, params, batch), target_labels(batch))
