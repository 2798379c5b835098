"""Memory aware synapses: an entry is held as far as the model's outputs hang on it.  No labels are read.

    sum Omega D^2,   D = s B A - s B* A*
    Omega = 1/J sum over J documents of |d/dW mean over predicted tokens of ||f(x_t)||^2|,   f the output scores

Aljundi et al. 2018, on LoRA's weight change.  The squared norm of the scores h W^T + b is
h (W^T W) h^T + 2 h W^T b + b b^T, so no array of tokens times vocabulary exists.  Between tasks
Omega <- decay Omega + Omega_t.

Unit: scores squared, by a weight.  State: Omega, N D float32 numbers a matrix, split as a Fisher over a mesh; and the
anchor, R (N + D).

Letters: L layers, N outputs, D inputs, R rank, P devices that share a batch, B rows, T tokens, J documents, C width of
the head.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from e2wm_jax.fisher import sharded
from e2wm_jax.fisher.documents import DocumentBatch
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.lora import Adapters, Scope, difference
from e2wm_jax.models.decoder import hidden_states, weight_table
from e2wm_jax.models.layers import Params
from e2wm_jax.models.quantized import dense
from e2wm_jax.models.weights import flatten, unflatten
from e2wm_jax.regularizers.measure import adapted, decayed_sum, documents, row_parts, target_paths
from e2wm_jax.regularizers.quadratic import fisher_partition, weighted_change
from e2wm_jax.regularizers.regularizer import Material, Regularizer, State, anchor_at

_EXACT = jax.lax.Precision.HIGHEST


class HeadProducts(NamedTuple):
    """All that the norm of the scores needs of the head: weight W [V, C] and bias b [V]."""

    square: jax.Array  # [C, C]: W^T W
    cross: jax.Array  # [C]: W^T b
    constant: jax.Array  # []: b b^T


@jax.jit
def head_products(head: Params) -> HeadProducts:
    """Of {"weight": [V, C] of any kind, optional "bias": [V]}."""
    w = dense(head["weight"]).astype(jnp.float32)
    b = head["bias"].astype(jnp.float32) if "bias" in head else jnp.zeros(w.shape[:1], jnp.float32)
    square = jnp.einsum("vc,ve->ce", w, w, precision=_EXACT)
    return HeadProducts(square, jnp.einsum("vc,v->c", w, b, precision=_EXACT), jnp.sum(b * b))


def squared_norm(products: HeadProducts, hidden: jax.Array) -> jax.Array:
    """||f||^2 [...] of hidden states [..., C], float32."""
    h = hidden.astype(jnp.float32)
    square = jnp.einsum("...c,ce,...e->...", h, products.square, h, precision=_EXACT)
    return square + 2 * jnp.einsum("...c,c->...", h, products.cross, precision=_EXACT) + products.constant


def importance(scope: Scope, params: Params, batches: Iterable[DocumentBatch]) -> Fisher:
    """Omega of the adapted weights as they stand in `params`, float32 [L, N, D] by path, over all documents."""
    table, config = weight_table(scope.config), scope.config
    shapes = {path: (config.num_layers, *table[path].shape) for path in target_paths(scope)}
    totals = {path: jnp.zeros(shape, jnp.float32) for path, shape in shapes.items()}
    if scope.mesh is not None:
        totals = {path: jax.device_put(total, _split(scope, path, total)) for path, total in totals.items()}
    products = head_products(params["embed" if config.tied else "head"])
    number = 0
    for batch in batches:
        on_devices = batch if scope.mesh is None else sharded.put(batch, scope.mesh)
        totals, more = _add(scope, totals, params, products, on_devices)
        number += int(more)
    return {path: total / max(number, 1) for path, total in totals.items()}


def _split(scope: Scope, path: str, total: jax.Array) -> NamedSharding:
    """Where Omega lies on the mesh: as a Fisher."""
    assert scope.mesh is not None
    return NamedSharding(scope.mesh, fisher_partition(scope.mesh, scope.config, path, total))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add(
    scope: Scope, totals: dict[str, jax.Array], params: Params, products: HeadProducts, batch: DocumentBatch
) -> tuple[dict[str, jax.Array], jax.Array]:
    """The sums with the documents of a batch, one after another on each device; and their number."""
    flat = flatten(params)
    chosen = {path: dense(flat[path]) for path in totals}
    parts = row_parts(scope)
    rows = (batch.ids, batch.positions, batch.segments, batch.predicted)
    # [B, T] -> [B / P, P, T]: of each step of the scan every device has one row.
    turns = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, leaf.shape[1]).swapaxes(0, 1), rows)

    def mean_norm(chosen: dict[str, Any], row: tuple[jax.Array, ...]) -> jax.Array:
        ids, positions, segments, predicted = (leaf[None] for leaf in row)
        whole = unflatten({**flat, **chosen})
        hidden = hidden_states(scope.config, whole, ids, positions, segments, remat="layers")
        return jnp.sum(predicted * squared_norm(products, hidden)) / jnp.maximum(jnp.sum(predicted), 1)

    def add(totals: dict[str, jax.Array], row: tuple[jax.Array, ...]) -> tuple[dict[str, jax.Array], None]:
        axes = None if scope.mesh is None else ("data", "fsdp")
        gradients = jax.vmap(jax.grad(mean_norm), in_axes=(None, 0), spmd_axis_name=axes)(chosen, row)
        sums = {path: t + jnp.sum(jnp.abs(gradients[path].astype(jnp.float32)), 0) for path, t in totals.items()}
        if scope.mesh is not None:
            constrain = jax.lax.with_sharding_constraint
            sums = {path: constrain(total, _split(scope, path, total)) for path, total in sums.items()}
        return sums, None

    totals, _ = jax.lax.scan(add, totals, turns)
    return totals, jnp.sum(jnp.any(batch.predicted > 0, axis=1))


def prepare(material: Material) -> State:
    """Omega of the pretrained model on general text; without text the first task is free."""
    if not material.rows:
        return {}
    return {"importance": importance(material.scope, material.params, documents(material))}


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """sum Omega D^2."""
    if "importance" not in state:
        return jnp.float32(0)
    return weighted_change(scope, difference(adapters, state.get("anchor")), state["importance"])


def next_task(material: Material, state: State, path: State) -> State:
    """Omega on the task's own rows, where it has ended, is added, and the anchor moves."""
    del path
    more = importance(material.scope, adapted(material), documents(material))
    return {
        "importance": decayed_sum(material.options.decay, state.get("importance"), more),
        "anchor": anchor_at(material.adapters),
    }


MAS = Regularizer(
    formula="sum Omega D^2, Omega = mean |d ||f||^2 / dW|",
    reference="memory aware synapses, Aljundi et al. 2018",
    reads="text",
    prepare=prepare,
    penalty=penalty,
    next_task=next_task,
)
