"""EWC on the adapters themselves: F_A (A - A*)^2 + F_B (B - B*)^2.

    F_phi = 1/N sum_j (d L_j / d phi)^2      L_j: mean nats over the predicted tokens of document j

One document is one example: its gradient is squared before anything is summed (Kirkpatrick et al. 2017, with
phi = (A, B) in place of the weights).  With G = dL/dW the gradients are s B^T G and s G A^T, hence at the start, where
B is 0, the Fisher of A is 0: in the first task only B is held, and A is free.  EWC on the weight change (`ewc`) has no
such blind spot.

Letters: B rows, T tokens, P devices that share a batch, J documents.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from e2wm_jax import lora
from e2wm_jax.fisher import sharded
from e2wm_jax.fisher.documents import DocumentBatch
from e2wm_jax.lora import Adapters, Scope
from e2wm_jax.models.decoder import hidden_states
from e2wm_jax.models.frozen_head import token_nll
from e2wm_jax.models.head import output_head
from e2wm_jax.models.layers import Params
from e2wm_jax.regularizers.measure import decayed_sum, distance, documents, row_parts, zeros
from e2wm_jax.regularizers.regularizer import Material, Regularizer, State
from e2wm_jax.sharding import replicate


def factor_fisher(material: Material) -> Adapters:
    """F of every entry of the adapters over `material.rows`, at the model as it stands, without dropout.

    A row's task weight does not count: L_j is a mean over its predicted tokens.
    """
    scope = material.scope
    adapters = replicate(material.adapters, scope.mesh)
    total = replicate(zeros(adapters), scope.mesh)
    for batch in documents(material):
        on_devices = batch if scope.mesh is None else sharded.put(batch, scope.mesh)
        total = _add_squares(scope, total, material.params, adapters, on_devices)
    return jax.tree.map(lambda leaf: leaf / max(len(material.rows), 1), total)


def prepare(material: Material) -> State:
    """F of general text at the adapters the first task starts from, which are its anchor."""
    return {"fisher": factor_fisher(material), "anchor": replicate(material.adapters, material.scope.mesh)}


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """sum F_A (A - A*)^2 + F_B (B - B*)^2."""
    del scope
    return distance(state["fisher"], adapters, state["anchor"])


def next_task(material: Material, state: State, path: State) -> State:
    """F <- decay F + F of the finished task's rows; the anchor moves to where that task ended."""
    del path
    fisher = decayed_sum(material.options.decay, state["fisher"], factor_fisher(material))
    return {"fisher": fisher, "anchor": replicate(material.adapters, material.scope.mesh)}


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_squares(scope: Scope, total: Adapters, params: Params, adapters: Adapters, batch: DocumentBatch) -> Adapters:
    """The sums with the documents of a batch, one after another on each device; a row of padding adds 0."""
    rows = (batch.ids, batch.positions, batch.segments, batch.labels, batch.predicted)
    # [B, T] -> [B / P, P, T]: of each step of the scan every device has one row.
    turns = jax.tree.map(lambda leaf: leaf.reshape(row_parts(scope), -1, leaf.shape[1]).swapaxes(0, 1), rows)
    head, parts = output_head(scope.config, params, scope.mesh)

    def loss(adapters: Adapters, row: tuple[jax.Array, ...]) -> jax.Array:
        ids, positions, segments, labels, predicted = (leaf[None] for leaf in row)
        adapted = lora.attach(params, adapters, scope.spec)
        hidden = hidden_states(scope.config, adapted, ids, positions, segments, remat="layers")
        nll = token_nll(hidden, head, labels, parts=parts)
        return jnp.sum(predicted * nll) / jnp.maximum(jnp.sum(predicted), 1)

    def add(total: Adapters, row: tuple[jax.Array, ...]) -> tuple[Adapters, None]:
        axes = None if scope.mesh is None else ("data", "fsdp")
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0), spmd_axis_name=axes)(adapters, row)
        total = jax.tree.map(lambda sums, g: sums + jnp.sum(jnp.square(g), axis=0), total, gradients)
        if scope.mesh is not None:
            total = jax.lax.with_sharding_constraint(total, NamedSharding(scope.mesh, PartitionSpec()))
        return total, None

    return jax.lax.scan(add, total, turns)[0]


FACTOR_EWC = Regularizer(
    formula="sum F_A (A - A*)^2 + F_B (B - B*)^2, F per document; F <- decay F + F_task",
    reference="EWC, Kirkpatrick et al. 2017, on the adapters' entries",
    reads="text",
    prepare=prepare,
    penalty=penalty,
    next_task=next_task,
)
