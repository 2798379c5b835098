"""One optimizer step of regularized LoRA finetuning: L = L_V + strength * penalty (Xiang et al. 2023).

Letters: K accumulated forward passes, B rows, T tokens, M predicted tokens.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from e2wm_jax.data.batch import Batch
from e2wm_jax.lora import Adapters, Scope
from e2wm_jax.models.layers import Params
from e2wm_jax.regularizers.catalogue import REGULARIZERS
from e2wm_jax.regularizers.regularizer import State, Update
from e2wm_jax.sharding import replicate
from e2wm_jax.train.passes import weighted_mean

Optimizer = Literal["adamw", "sgd"]
Scalar = jax.Array | np.number | float


@struct.dataclass
class TrainState:
    """What changes from step to step."""

    step: jax.Array  # [] int32, steps done
    adapters: Adapters
    optimizer: optax.OptState
    path: State  # what the regularizer keeps of the way (`Regularizer.observe`)


class StepConfig(NamedTuple):
    """What is fixed for a run: static arguments of the compiled step."""

    scope: Scope
    regularizer: str = "none"
    dropout: float = 0.0
    optimizer: Optimizer = "adamw"
    clip: float | None = None  # largest norm of the gradient


class Controls(NamedTuple):
    """Numbers of one step; a change of theirs compiles nothing."""

    lr: Scalar
    strength: Scalar = 0.0
    weight_decay: Scalar = 0.0
    seed: Scalar = 0


def optimizer(config: StepConfig, controls: Controls) -> optax.GradientTransformation:
    """AdamW as torch's default (decoupled decay), or plain SGD with decay added to the gradient."""
    if config.optimizer == "adamw":
        rule = optax.adamw(controls.lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=controls.weight_decay)
    else:
        rule = optax.chain(optax.add_decayed_weights(controls.weight_decay), optax.sgd(controls.lr))
    return rule if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), rule)


def initial_state(config: StepConfig, adapters: Adapters) -> TrainState:
    """State before the first step."""
    path = REGULARIZERS[config.regularizer].begin(adapters)
    state = TrainState(jnp.int32(0), adapters, optimizer(config, Controls(0.0)).init(adapters), path)
    return replicate(state, config.scope.mesh)  # copies, for a step donates them


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    config: StepConfig,
    state: TrainState,
    controls: Controls,
    params: Params,
    constants: State,
    batch: Batch,
    text: Batch | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; metrics are of the adapters before it.

    Args:
        constants: what the regularizer prepared.
        batch: leaves with leading axes [K, B].  Its K passes give exactly the loss of one batch of K * B rows:
            L_V = sum(weight * nll) / count(weight > 0), both over all of them.
        text: what a penalty per token is computed on, [K, B'] as `batch`; None: on `batch` itself.

    Returns:
        The new state, and loss, task_loss, penalty, grad_norm, tokens (no padding), finite.  Where loss or gradient
        are not finite, the new state is the old one but for its step.
    """
    regularizer = REGULARIZERS[config.regularizer]
    key = jax.random.fold_in(jax.random.key(controls.seed), state.step)
    task_loss, task_gradient = weighted_mean(
        config.scope, state.adapters, params, batch, dropout=config.dropout, key=key
    )
    # Else the update would be worked out in shares of a mesh's devices, and each of its results gathered.
    task_gradient = _replicated(config, task_gradient)

    penalty, pull = jnp.float32(0), jax.tree.map(jnp.zeros_like, state.adapters)
    if regularizer.penalty is not None:
        # Once per optimizer step, not once per pass: it does not depend on the data.
        penalty, pull = jax.value_and_grad(partial(regularizer.penalty, config.scope))(state.adapters, constants)
        pull = _replicated(config, pull)
    elif regularizer.token_penalty is not None:
        rows = batch if text is None else text
        penalty, pull = weighted_mean(config.scope, state.adapters, params, rows, of=regularizer.token_penalty)
    penalty = controls.strength * penalty
    gradient = jax.tree.map(lambda g, p: g + controls.strength * p, task_gradient, pull)

    updates, new_optimizer = optimizer(config, controls).update(gradient, state.optimizer, state.adapters)
    adapters = optax.apply_updates(state.adapters, updates)
    path = state.path
    if regularizer.observe is not None:
        path = regularizer.observe(path, Update(state.adapters, adapters, task_gradient))

    loss, norm = task_loss + penalty, optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = TrainState(state.step, adapters, new_optimizer, path)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    metrics = {
        "loss": loss,
        "task_loss": task_loss,
        "penalty": penalty,
        "grad_norm": norm,
        "tokens": jnp.sum(batch.segments >= 0),
        "finite": finite,
    }
    return _replicated(config, (kept.replace(step=state.step + 1), metrics))


def _replicated(config: StepConfig, tree: State) -> State:
    """The same on every device of the mesh, inside of `jax.jit`."""
    if config.scope.mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(config.scope.mesh, PartitionSpec()))
