"""Forward and backward passes over the rows of one optimizer step: sums of a loss per token, and their gradients.

On a mesh, rows are split over "data" and "fsdp", and each device goes through its own; value and gradient are summed
over devices once, after the last pass.  A frozen weight that is split over "fsdp" is gathered where it is used, in the
forward pass and again in the backward pass, and never kept.  "tensor" is left to the compiler.

Letters: K accumulated passes, B rows, T tokens, M predicted tokens.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Shaped

from e2wm_jax.data.batch import Batch
from e2wm_jax.lora import Adapters, Scope, attach
from e2wm_jax.models.decoder import hidden_states
from e2wm_jax.models.frozen_head import token_nll
from e2wm_jax.models.head import before_targets, output_head, target_labels
from e2wm_jax.models.layers import Params
from e2wm_jax.models.spread import manual_specs, splits, with_gathered

_ROWS = ("data", "fsdp")
TokenLoss = Callable[[Scope, Params, Params, Batch], jax.Array]  # `Regularizer.token_penalty`
_Sum = tuple[jax.Array, Adapters]  # of a loss, and its gradient


def task_nll(scope: Scope, params: Params, adapted: Params, batch: Batch) -> Float[Array, "B M"]:
    """Negative log-likelihood in nats of each target token; meaningless where its weight is 0."""
    hidden = hidden_states(scope.config, adapted, batch.ids, batch.positions, batch.segments, remat=scope.remat)
    head, parts = output_head(scope.config, params, scope.mesh)
    return token_nll(before_targets(hidden, batch), head, target_labels(batch), parts=parts)


def weighted_mean(
    scope: Scope,
    adapters: Adapters,
    params: Params,
    batch: Batch,
    *,
    of: TokenLoss = task_nll,
    dropout: float = 0.0,
    key: Shaped[Array, ""] | None = None,
) -> tuple[Float[Array, ""], Adapters]:
    """sum(weights * loss) / count(weights > 0) over all K passes, and its gradient with respect to the adapters.

    Args:
        batch: leaves with leading axes [K, B].
        of: the loss per token.
        key: of dropout; each row of each pass draws with a key of its own, wherever it lies.
    """

    def weighted_sum(adapters: Adapters, params: Params, rows: Batch, keys: jax.Array | None) -> jax.Array:
        adapted = attach(params, adapters, scope.spec, dropout=dropout, dropout_keys=keys)
        return jnp.sum(rows.weights * of(scope, params, adapted, rows))

    def accumulate(
        adapters: Adapters, params: Params, batch: Batch, first_row: jax.Array | int
    ) -> tuple[jax.Array, Adapters]:
        def add_pass(total: _Sum, item: tuple[Batch, jax.Array]) -> tuple[_Sum, None]:
            rows, index = item
            keys = None
            if key is not None and dropout > 0:
                numbers = first_row + jnp.arange(rows.ids.shape[0])
                keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, index)))(numbers)
            more = jax.value_and_grad(weighted_sum)(adapters, params, rows, keys)
            return jax.tree.map(jnp.add, total, more), None

        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, adapters))
        return jax.lax.scan(add_pass, zero, (batch, jnp.arange(batch.ids.shape[0])))[0]

    total, gradient = summed_over_devices(scope, accumulate)(adapters, params, batch)
    count = jnp.maximum(jnp.sum(batch.weights > 0), 1).astype(jnp.float32)
    return total / count, jax.tree.map(lambda g: g / count, gradient)


def summed_over_devices(scope: Scope, function: Callable[..., Any]) -> Callable[[Adapters, Params, Batch], Any]:
    """The sum over devices of function(adapters, params, batch, first_row), as a function of the first three.

    Each device calls it with its own rows of the batch, whose leaves have leading axes [K, B], and with which row of a
    pass is the first of them.
    """
    # Over axes of one device there is nothing to sum, and XLA does not compile such a sum beside a split over tensor.
    if scope.mesh is None or scope.mesh.shape["data"] * scope.mesh.shape["fsdp"] == 1:
        return partial(function, first_row=0)
    mesh = scope.mesh

    def summed(adapters: Adapters, params: Params, batch: Batch) -> Any:
        spread = splits(scope.config, params, mesh)

        def local(adapters: Adapters, params: Params, batch: Batch) -> Any:
            part = jax.lax.axis_index("data") * mesh.shape["fsdp"] + jax.lax.axis_index("fsdp")
            params = with_gathered(params, mesh, spread)
            return jax.lax.psum(function(adapters, params, batch, first_row=part * batch.ids.shape[1]), _ROWS)

        # check_vma would sum the gradient of the adapters, which are the same on all devices, once per pass.
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P(), manual_specs(scope.config, params, mesh), P(None, _ROWS)),
            out_specs=P(),
            axis_names=set(_ROWS),
            check_vma=False,
        )(adapters, params, batch)

    return summed
