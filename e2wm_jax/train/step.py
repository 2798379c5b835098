"""One optimizer step of regularized LoRA finetuning: L = L_V + strength * penalty (Xiang et al. 2023).

Letters: K accumulated forward passes, B rows, T tokens, M predicted tokens.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Batch
from e2wm_jax.kernels.weighted_square import Implementation
from e2wm_jax.lora import Adapters, AdapterSpec, attach
from e2wm_jax.models.layers import Params
from e2wm_jax.models.likelihood import target_nll
from e2wm_jax.regularizers.quadratic import PENALTIES, Fisher, Penalty, RegularizerName, ewc_penalty


@struct.dataclass
class TrainState:
    """What changes from step to step."""

    step: jax.Array  # [] int32, steps done
    adapters: Adapters
    optimizer: optax.OptState


class StepConfig(NamedTuple):
    """What is fixed for a run: static arguments of the compiled step."""

    model: ModelConfig
    spec: AdapterSpec
    regularizer: RegularizerName
    strength: float
    dropout: float
    seed: int
    remat: bool
    optimizer: str
    schedule: str
    lr: float
    weight_decay: float
    steps: int
    penalty_kernel: Implementation = "xla"


def learning_rate(config: StepConfig) -> optax.Schedule:
    """Learning rate by the number of steps already done."""
    if config.schedule == "linear":
        return optax.linear_schedule(config.lr, 0.0, config.steps)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(config.lr, config.steps)
    return optax.constant_schedule(config.lr)


def optimizer(config: StepConfig) -> optax.GradientTransformation:
    """AdamW as torch's default (decoupled decay), or plain SGD with decay added to the gradient."""
    if config.optimizer == "adamw":
        return optax.adamw(learning_rate(config), b1=0.9, b2=0.999, eps=1e-8, weight_decay=config.weight_decay)
    return optax.chain(optax.add_decayed_weights(config.weight_decay), optax.sgd(learning_rate(config)))


def initial_state(config: StepConfig, adapters: Adapters) -> TrainState:
    """State before the first step."""
    return TrainState(jnp.int32(0), adapters, optimizer(config).init(adapters))


def penalty_of(config: StepConfig) -> Penalty:
    """The penalty of a run, without its strength."""
    if config.regularizer == "ewc":
        return partial(ewc_penalty, implementation=config.penalty_kernel)
    return PENALTIES[config.regularizer]


def task_loss_sum(
    config: StepConfig, adapters: Adapters, params: Params, batch: Batch, dropout_key: jax.Array
) -> jax.Array:
    """Sum over one forward pass of weight * negative log-likelihood, in nats."""
    adapted = attach(params, adapters, config.spec, dropout=config.dropout, dropout_key=dropout_key)
    return jnp.sum(batch.weights * target_nll(config.model, adapted, batch, remat=config.remat))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    config: StepConfig, state: TrainState, params: Params, fisher: Fisher, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; metrics are of the adapters before it.

    Args:
        batch: leaves with leading axes [K, B].  Its K passes give exactly the loss of one batch of K * B rows:
            L_V = sum(weight * nll) / count(weight > 0), both over all of them.

    Returns:
        The new state, and loss, task_loss, penalty, lr, grad_norm.
    """
    count = jnp.maximum(jnp.sum(batch.weights > 0), 1).astype(jnp.float32)
    step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    loss_and_gradient = jax.value_and_grad(partial(task_loss_sum, config))

    def accumulate(
        total: tuple[jax.Array, Adapters], one: tuple[Batch, jax.Array]
    ) -> tuple[tuple[jax.Array, Adapters], None]:
        micro, index = one
        result = loss_and_gradient(state.adapters, params, micro, jax.random.fold_in(step_key, index))
        return jax.tree.map(jnp.add, total, result), None

    zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.adapters))
    passes = jnp.arange(batch.ids.shape[0])
    (loss_sum, gradient_sum), _ = jax.lax.scan(accumulate, zero, (batch, passes))
    task_loss = loss_sum / count

    # Once per optimizer step, not once per pass: it does not depend on the data.
    penalty, pull = jax.value_and_grad(
        lambda adapters: config.strength * penalty_of(config)(adapters, config.spec, fisher)
    )(state.adapters)
    gradient = jax.tree.map(lambda g, p: g / count + p, gradient_sum, pull)

    updates, optimizer_state = optimizer(config).update(gradient, state.optimizer, state.adapters)
    metrics = {
        "loss": task_loss + penalty,
        "task_loss": task_loss,
        "penalty": penalty,
        "lr": jnp.asarray(learning_rate(config)(state.step), jnp.float32),
        "grad_norm": optax.tree.norm(gradient),
    }
    return TrainState(state.step + 1, optax.apply_updates(state.adapters, updates), optimizer_state), metrics
