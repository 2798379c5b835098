"""What regularizers that measure the model between steps have in common: its weights, documents, sums, anchors; the
Fisher of a finished task; and quadratic penalties on the adapters' own entries.

    sum Omega (phi - phi*)^2        phi = (A, B), as opposed to the weight change s B A; no one half

Omega and phi* have the adapters' shapes.  An entry of a padded rank (`lora.TargetSpec`) stays 0, as does its gradient,
so that it adds 0 whatever its Omega.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Computation, document_fisher
from e2wm_jax.fisher.documents import DocumentBatch, document_batches
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.lora import Adapters, Scope, merge
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.layers import Params
from e2wm_jax.models.weights import flatten, unflatten
from e2wm_jax.regularizers.quadratic import placed
from e2wm_jax.regularizers.regularizer import Material
from e2wm_jax.sharding import stacked, weight_sharding


def target_paths(scope: Scope) -> tuple[str, ...]:
    """Paths of the adapted weights, such as "layers.q.weight"."""
    return tuple(f"{target.path}.weight" for target in scope.spec)


def adapted(material: Material) -> Params:
    """The parameters with the adapters merged in, on the mesh split as they were."""
    flat = flatten(material.params)
    # Of the adapted weights alone: a compiled function copies what it hands through.
    base = unflatten({path: flat[path] for path in target_paths(material.scope)})
    return unflatten({**flat, **flatten(_merged(material.scope, base, material.adapters))})


@partial(jax.jit, static_argnums=0)
def _merged(scope: Scope, base: Params, adapters: Adapters) -> Params:
    """Compiled, so that s B A of a whole stack is nowhere written out by itself."""
    flat = flatten(merge(base, adapters, scope.spec))
    if scope.mesh is not None:
        table = weight_table(scope.config)
        for path, weight in flat.items():
            where = stacked(weight_sharding(scope.mesh, table[path].shape, table[path].axes))
            flat[path] = jax.lax.with_sharding_constraint(weight, where)
    return unflatten(flat)


def row_parts(scope: Scope) -> int:
    """Devices that share the rows of a batch."""
    return 1 if scope.mesh is None else scope.mesh.shape["data"] * scope.mesh.shape["fsdp"]


def documents(material: Material) -> Iterator[DocumentBatch]:
    """All rows, if any, as documents, each in a row of its own; on a mesh this host's parts of each batch.

    Raises:
        InputError: for a mesh on which hosts would share parts.
    """
    if not material.rows:
        return iter(())
    parts, options = row_parts(material.scope), material.options
    size = -(-options.batch_size // parts) * parts
    hosts = (jax.process_index(), jax.process_count())
    if parts % hosts[1]:
        raise InputError(
            f"--mesh: data x fsdp = {parts} must be a multiple of the {hosts[1]} hosts for a regularizer that measures "
            "documents; give tensor fewer devices"
        )
    return document_batches(material.rows, size, options.max_length, parts=parts, process=hosts)


@jax.jit
def _sum(decay: float, before: Any, more: Any) -> Any:
    return jax.tree.map(lambda old, new: decay * old + new, before, more)


def decayed_sum(decay: float, before: Any, more: Any) -> Any:
    """decay * before + more, trees of float32; before the first measurement there is None."""
    return more if before is None else _sum(decay, before, more)


def task_fisher(material: Material) -> Fisher:
    """F of the adapted weights where the task has ended, W + s B A, over that task's own rows.

    The empirical Fisher (`fisher.diagonal`): a row is an example, its loss the mean over the tokens that it trains, in
    nats, without the task's weight.  float32 [L, N, D] by path, on the mesh as the penalty reads it.

    Raises:
        NonFiniteError: if loss or gradient of a row is no finite number.
    """
    scope, paths = material.scope, target_paths(material.scope)
    found = document_fisher(
        scope.config,
        adapted(material),
        documents(material),
        select=paths.__contains__,
        computation=Computation(mesh=scope.mesh),
    )
    return placed(scope, found.values)


def distance(importance: Adapters, adapters: Adapters, anchor: Adapters) -> jax.Array:
    """sum importance * (adapters - anchor)^2, float32 scalar."""
    squares = jax.tree.map(lambda w, now, then: jnp.sum(w * jnp.square(now - then)), importance, adapters, anchor)
    return jax.tree.reduce(jnp.add, squares, jnp.float32(0))


def zeros(adapters: Adapters) -> Adapters:
    """Zeros in the adapters' shapes."""
    return jax.tree.map(jnp.zeros_like, adapters)
