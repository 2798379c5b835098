"""Elastic weight consolidation: what earlier tasks need is held, task by task.

    sum over t of sum F_t D_t^2,   D_t = s B A - s B_t A_t

Kirkpatrick et al. 2017, on LoRA's weight change (Xiang et al. 2023), without the factor one half.  The first term is
the pretrained model's: F of `e2wm fisher`, D = s B A.  Each finished task adds one: the Fisher of its rows where it
ended (`task_fisher`), and that place (A_t, B_t).  Without a Fisher of the pretrained model the first task is free.

Unit: (nats per token)^2, for F is the mean square of the gradient of a document's mean loss.
State: a Fisher, N D numbers a matrix in the type it is stored in (float32 of later tasks), and an anchor, R (N + D),
per term: it grows with every task, and each term is read in every step (`online_ewc` keeps one).

Letters: L layers, N outputs, D inputs, R rank.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.storage import Bfloat16Bits, SquareRootCodes, StoredFisher, decode
from e2wm_jax.lora import Adapters, Scope, difference
from e2wm_jax.regularizers.measure import task_fisher
from e2wm_jax.regularizers.quadratic import placed, weighted_change
from e2wm_jax.regularizers.regularizer import Material, Regularizer, State, anchor_at


def ewc_penalty(params: Any, anchor: Any, fisher: Any, strength: Float[Array, ""] | float = 1.0) -> Float[Array, ""]:
    """strength * sum F (theta - theta*)^2 of any pytree of parameters, without the factor one half; float32 scalar.

    Args:
        params: theta; differentiate by these.
        anchor: theta*, of the same structure.
        fisher: F of the same structure and shapes (`fisher_diagonal`), in float32 or a storage type; None for leaves
            that are free.

    All three may be split over a mesh, alike: under `jax.jit` each device reads its own parts.

    Raises:
        InputError: where F and a parameter differ in shape.
    """

    def term(f: StoredFisher | None, now: jax.Array, then: jax.Array) -> jax.Array:
        if f is None:
            return jnp.float32(0)
        if not f.shape == jnp.shape(now) == jnp.shape(then):
            raise InputError(f"F {f.shape}, parameter {jnp.shape(now)}, anchor {jnp.shape(then)}: shapes must be equal")
        change = jnp.asarray(now, jnp.float32) - jnp.asarray(then, jnp.float32)
        return jnp.sum(decode(f) * jnp.square(change))

    def is_leaf(f: Any) -> bool:
        return f is None or isinstance(f, Bfloat16Bits | SquareRootCodes)

    terms = jax.tree.leaves(jax.tree.map(term, fisher, params, anchor, is_leaf=is_leaf))
    return strength * jnp.sum(jnp.stack(terms))


def prepare(material: Material) -> State:
    """The term of the pretrained model, where its Fisher is given."""
    if material.fisher is None:
        return {"terms": ()}
    return {"terms": ({"fisher": placed(material.scope, material.fisher)},)}


def penalty(scope: Scope, adapters: Adapters, state: State) -> Float[Array, ""]:
    """sum over the terms of sum F D^2."""
    total = jnp.float32(0)
    for term in state["terms"]:
        total += weighted_change(scope, difference(adapters, term.get("anchor")), term["fisher"])
    return total


def next_task(material: Material, state: State, path: State) -> State:
    """One more term."""
    del path
    term = {"fisher": task_fisher(material), "anchor": anchor_at(material.adapters)}
    return {"terms": (*state["terms"], term)}


EWC = Regularizer(
    formula="sum_t sum F_t D_t^2",
    reference="EWC, Kirkpatrick et al. 2017; on LoRA's weight change, Xiang et al. 2023",
    reads="fisher",
    prepare=prepare,
    penalty=penalty,
    next_task=next_task,
)
