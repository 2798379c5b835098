"""EWC from the sums of F over rows and over columns.

    sum r_n c_d / t * D_nd^2,   r = F 1,  c = F^T 1,  t = sum F,   D = s B A - s B* A*
    = s^2 tr((B^T diag(r) B)(A diag(c) A^T)) / t

F is replaced by the matrix of rank one with its row and column sums, as Adafactor does with squared gradients (Shazeer
and Stern 2018), so the penalty costs R x R products like `l2` and never sees a matrix of N x D.  Between tasks the sums
are added, r <- decay r + r_t and c likewise: they are those of online EWC's F~.

Unit: (nats per token)^2.  State: r and c, N + D numbers a matrix, and the anchor, R (N + D).

Letters: L layers, N outputs, D inputs, R rank.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from e2wm_jax.fisher.storage import Fisher, StoredFisher, decode
from e2wm_jax.lora import Adapters, Scope, difference
from e2wm_jax.regularizers.measure import decayed_sum, task_fisher
from e2wm_jax.regularizers.quadratic import placed
from e2wm_jax.regularizers.regularizer import Material, Regularizer, State, anchor_at


def prepare(material: Material) -> State:
    """Row and column sums of the Fisher of the pretrained model, or nothing."""
    if material.fisher is None:
        return {}
    return {"sums": sums(material.scope, placed(material.scope, material.fisher))}


@partial(jax.jit, static_argnums=0)
def sums(scope: Scope, fisher: Fisher) -> dict[str, Any]:
    """{"layers.q.weight": {"rows": [L, N], "columns": [L, D]}, ...} of a `placed` F of any storage type."""

    def of_layer(fisher: StoredFisher) -> dict[str, jax.Array]:
        values = decode(fisher)
        return {"rows": jnp.sum(values, axis=1), "columns": jnp.sum(values, axis=0)}

    # Layer by layer, so that of codes one layer at a time is decoded.
    found = {path: jax.lax.map(of_layer, value) for path, value in fisher.items()}
    if scope.mesh is None:
        return found
    return jax.lax.with_sharding_constraint(found, NamedSharding(scope.mesh, PartitionSpec()))


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """sum r c / t * D^2."""
    total, exact = jnp.float32(0), jax.lax.Precision.HIGHEST
    if "sums" not in state:
        return total
    change = difference(adapters, state.get("anchor"))
    for target in scope.spec:
        a, b = change[target.path]["a"], change[target.path]["b"]
        rows, columns = (state["sums"][f"{target.path}.weight"][name] for name in ("rows", "columns"))
        outputs = jnp.einsum("lnr,ln,lnq->lrq", b, rows, b, precision=exact)
        inputs = jnp.einsum("lrd,ld,lqd->lrq", a, columns, a, precision=exact)
        whole = jnp.sum(rows, axis=1)
        factors = target.scales**2 / jnp.where(whole > 0, whole, 1)
        total += jnp.einsum("l,lrq,lrq->", factors, outputs, inputs, precision=exact)
    return total


def next_task(material: Material, state: State, path: State) -> State:
    """The sums of the task's Fisher are added, and the anchor moves."""
    del path
    more = sums(material.scope, task_fisher(material))
    return {
        "sums": decayed_sum(material.options.decay, state.get("sums"), more),
        "anchor": anchor_at(material.adapters),
    }


ROW_COLUMN = Regularizer(
    formula="sum r c^T / t * D^2, r and c the row and column sums of F, t its sum",
    reference="EWC with F factored as in Adafactor, Shazeer and Stern 2018",
    reads="fisher",
    prepare=prepare,
    penalty=penalty,
    next_task=next_task,
)
