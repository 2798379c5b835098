"""Every entry of a weight is held alike.

    sum D^2,   D = s B A - s B* A*

L2-SP (Li et al. 2018) of the adapted weights: the distance to where the task began, (A*, B*); in the first task to the
pretrained weights, B* A* = 0.  sum D^2 = s^2 tr((B^T B)(A A^T)), R x R products only, also of the difference, which is
an adapter of twice the rank.

Unit: squared weights.  State: the anchor, R (N + D) numbers a matrix, from the second task on.

Letters: L layers, N outputs, D inputs, R rank.
"""

import jax
import jax.numpy as jnp

from e2wm_jax.lora import Adapters, AdapterSpec, difference
from e2wm_jax.regularizers.measure import anchor_at
from e2wm_jax.regularizers.regularizer import Material, Regularizer, Scope, State


def l2_penalty(change: Adapters, spec: AdapterSpec) -> jax.Array:
    """Squared Frobenius norm of all s B A, from R x R products only; float32 scalar."""
    total, exact = jnp.float32(0), jax.lax.Precision.HIGHEST
    for target in spec:
        a, b = change[target.path]["a"], change[target.path]["b"]
        rows = jnp.einsum("lrd,lqd->lrq", a, a, precision=exact)
        columns = jnp.einsum("lnr,lnq->lrq", b, b, precision=exact)
        total += jnp.einsum("l,lrq,lrq->", target.scales**2, rows, columns, precision=exact)
    return total


def prepare(material: Material) -> State:
    """No anchor: the first task is held at the pretrained weights."""
    del material
    return {}


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """sum D^2."""
    return l2_penalty(difference(adapters, state.get("anchor")), scope.spec)


def next_task(material: Material, state: State, path: State) -> State:
    """The anchor moves to where the task has ended."""
    del state, path
    return {"anchor": anchor_at(material.adapters)}


L2 = Regularizer(
    formula="sum D^2",
    reference="L2-SP, Li et al. 2018",
    prepare=prepare,
    penalty=penalty,
    next_task=next_task,
)
