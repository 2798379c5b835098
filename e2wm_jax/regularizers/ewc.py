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

import jax
import jax.numpy as jnp

from e2wm_jax.lora import Adapters, difference
from e2wm_jax.regularizers.measure import anchor_at
from e2wm_jax.regularizers.quadratic import placed, weighted_change
from e2wm_jax.regularizers.regularizer import Material, Regularizer, Scope, State
from e2wm_jax.regularizers.task_fisher import task_fisher


def prepare(material: Material) -> State:
    """The term of the pretrained model, where its Fisher is given."""
    if material.fisher is None:
        return {"terms": ()}
    return {"terms": ({"fisher": placed(material.scope, material.fisher)},)}


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
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
