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

from e2wm_jax.data.batch import Batch
from e2wm_jax.lora import Adapters, Scope, attach
from e2wm_jax.models.frozen_head import token_nll
from e2wm_jax.models.head import output_head, target_labels, target_states
from e2wm_jax.models.layers import Params
from e2wm_jax.models.spread import manual_specs, splits, with_gathered

_ROWS = ("data", "fsdp")
TokenLoss = Callable[[Scope, Params, Params, Batch], jax.Array]  # `Regularizer.token_penalty`


def task_nll(scope: Scope, params: Params, adapted: Params, batch: Batch) -> jax.Array:
    """Negative log-likelihood [B, M] in nats of each target token; meaningless where its weight is 0."""
    states = target_states(scope.config, adapted, batch, remat=scope.remat)
    head, parts = output_head(scope.config, params, scope.mesh)
    return token_nll(states, head, target_labels(batch), parts=parts)


def weighted_mean(
    scope: Scope,
    adapters: Adapters,
    params: Params,
    batch: Batch,
    *,
    of: TokenLoss = task_nll,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[jax.Array, Adapters]:
    """sum(weights * loss) / count(weights > 0) over all K passes, and its gradient with respect to the adapters.

    Args:
        batch: leaves with leading axes [K, B].
        of: the loss per token.
        key: of dropout; each row of each pass draws with a key of its own, wherever it lies.
    """

    def sums(
        adapters: Adapters, params: Params, batch: Batch, first_row: jax.Array | int
    ) -> tuple[jax.Array, Adapters]:
        """Of the rows of this device; the first of them is row `first_row` of its pass."""

        def one(adapters: Adapters, micro: Batch, keys: jax.Array | None) -> jax.Array:
            adapted = attach(params, adapters, scope.spec, dropout=dropout, dropout_keys=keys)
            return jnp.sum(micro.weights * of(scope, params, adapted, micro))

        def accumulate(
            total: tuple[jax.Array, Adapters], item: tuple[Batch, jax.Array]
        ) -> tuple[tuple[jax.Array, Adapters], None]:
            micro, index = item
            keys = None
            if key is not None and dropout > 0:
                rows = first_row + jnp.arange(micro.ids.shape[0])
                keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, index)))(rows)
            return jax.tree.map(jnp.add, total, jax.value_and_grad(one)(adapters, micro, keys)), None

        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, adapters))
        return jax.lax.scan(accumulate, zero, (batch, jnp.arange(batch.ids.shape[0])))[0]

    total, gradient = summed_over_devices(scope, sums, adapters, params, batch)
    count = jnp.maximum(jnp.sum(batch.weights > 0), 1).astype(jnp.float32)
    return total / count, jax.tree.map(lambda g: g / count, gradient)


def summed_over_devices(
    scope: Scope,
    function: Callable[[Adapters, Params, Batch, jax.Array | int], Any],
    adapters: Adapters,
    params: Params,
    batch: Batch,
) -> Any:
    """The sum over devices of function(adapters, params, its rows of the batch, which row of a pass is its first).

    Args:
        batch: leaves with leading axes [K, B].
    """
    # Over axes of one device there is nothing to sum, and XLA does not compile such a sum beside a split over tensor.
    if scope.mesh is None or scope.mesh.shape["data"] * scope.mesh.shape["fsdp"] == 1:
        return function(adapters, params, batch, 0)
    mesh, spread = scope.mesh, splits(scope.config, params, scope.mesh)

    def local(adapters: Adapters, params: Params, batch: Batch) -> Any:
        part = jax.lax.axis_index("data") * mesh.shape["fsdp"] + jax.lax.axis_index("fsdp")
        return jax.lax.psum(
            function(adapters, with_gathered(params, mesh, spread), batch, part * batch.ids.shape[1]), _ROWS
        )

    # check_vma would sum the gradient of the adapters, which are the same everywhere, once per pass.
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), manual_specs(scope.config, params, mesh), P(None, _ROWS)),
        out_specs=P(),
        axis_names=set(_ROWS),
        check_vma=False,
    )(adapters, params, batch)
