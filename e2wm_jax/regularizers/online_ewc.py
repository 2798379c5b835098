"""EWC whose cost does not grow with the number of tasks: one Fisher, one anchor.

    sum F~ D^2,   D = s B A - s B* A*,   F~ <- decay F~ + F_t,   (A*, B*) where the last task ended

Schwarz et al. 2018, without the factor one half.  F~ begins as the Fisher of the pretrained model, D as s B A, so a
single task is `ewc`; without a Fisher of the pretrained model the first task is free.  From the second task on the
difference to `ewc` is the anchor, which has moved also for the earlier Fishers.

Unit: (nats per token)^2.  State: F~, N D numbers a matrix (in the type it is stored in, float32 from the second task
on), and the anchor, R (N + D).

Letters: L layers, N outputs, D inputs, R rank.
"""

import jax
import jax.numpy as jnp

from e2wm_jax.fisher.storage import decode
from e2wm_jax.lora import Adapters, Scope, difference
from e2wm_jax.regularizers.measure import decayed_sum, task_fisher
from e2wm_jax.regularizers.quadratic import placed, weighted_change
from e2wm_jax.regularizers.regularizer import Material, Regularizer, State, anchor_at


def prepare(material: Material) -> State:
    """The Fisher of the pretrained model, or nothing."""
    return {} if material.fisher is None else {"fisher": placed(material.scope, material.fisher)}


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """sum F~ D^2."""
    if "fisher" not in state:
        return jnp.float32(0)
    return weighted_change(scope, difference(adapters, state.get("anchor")), state["fisher"])


def next_task(material: Material, state: State, path: State) -> State:
    """The task's Fisher is added, and the anchor moves."""
    del path
    before = {name: decode(value) for name, value in state["fisher"].items()} if "fisher" in state else None
    fisher = decayed_sum(material.options.decay, before, task_fisher(material))
    return {"fisher": placed(material.scope, fisher), "anchor": anchor_at(material.adapters)}


ONLINE_EWC = Regularizer(
    formula="sum F~ D^2, F~ <- decay F~ + F_t",
    reference="online EWC, Schwarz et al. 2018",
    reads="fisher",
    prepare=prepare,
    penalty=penalty,
    next_task=next_task,
)
