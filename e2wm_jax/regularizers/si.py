"""Synaptic intelligence (Zenke et al. 2017): an entry matters as much as the loss fell along its own way.

    in every step        omega += -g (phi_after - phi_before)       g: gradient of the task loss alone
    between two tasks    Omega <- max(0, decay Omega + omega / ((phi_end - phi_start)^2 + xi))
    penalty              sum Omega (phi - phi*)^2                   phi*: where the last task ended

Where an entry made the loss rise, omega is negative.  The paper does not say what becomes of it; its authors' code
(ganguli-lab/pathint) cuts the sum over tasks at 0, and so does this, for a negative Omega would push entries away
without bound.  (mammoth's `si` approximates omega by lr g^2, never negative.)  decay 1 is the published sum.

Nothing is known before the first task has ended, so its penalty is 0: earlier tasks are held, general text is not.
"""

import jax
import jax.numpy as jnp

from e2wm_jax.lora import Adapters
from e2wm_jax.regularizers.factors import distance, zeros
from e2wm_jax.regularizers.measure import anchor_at
from e2wm_jax.regularizers.regularizer import Material, Regularizer, Scope, State, Update
from e2wm_jax.sharding import everywhere


def prepare(material: Material) -> State:
    """No importance yet."""
    return everywhere({"importance": zeros(material.adapters), "anchor": material.adapters}, material.scope.mesh)


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """sum Omega (phi - phi*)^2; 0 in the first task."""
    del scope
    return distance(state["importance"], adapters, state["anchor"])


def begin(adapters: Adapters) -> State:
    """The path at a task's start."""
    return {"start": anchor_at(adapters), "omega": zeros(adapters)}


def observe(path: State, update: Update) -> State:
    """omega plus what one step did to the loss, to first order."""
    omega = jax.tree.map(
        lambda omega, g, after, before: omega - g * (after - before),
        path["omega"],
        update.gradient,
        update.after,
        update.before,
    )
    return {"start": path["start"], "omega": omega}


def next_task(material: Material, state: State, path: State) -> State:
    """Omega with the finished task in it; the anchor moves to where that task ended."""
    decay, damping = material.options.decay, material.options.damping

    def importance(earlier: jax.Array, omega: jax.Array, end: jax.Array, start: jax.Array) -> jax.Array:
        return jnp.maximum(decay * earlier + omega / (jnp.square(end - start) + damping), 0)

    end = material.adapters
    return {
        "importance": jax.tree.map(importance, state["importance"], path["omega"], end, path["start"]),
        "anchor": anchor_at(end),
    }


SI = Regularizer(
    formula="sum Omega (phi - phi*)^2, Omega <- max(0, decay Omega + omega / ((phi_end - phi_start)^2 + damping)), "
    "omega = sum over steps of -g dphi",
    reference="synaptic intelligence, Zenke, Poole and Ganguli 2017",
    prepare=prepare,
    penalty=penalty,
    begin=begin,
    observe=observe,
    next_task=next_task,
)
