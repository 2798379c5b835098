"""Regularizers that watch the way of the adapters: an entry matters as much as it did for the loss along its way.

    penalty              sum Omega (phi - phi*)^2        phi = (A, B); phi*: where the last task ended

Nothing is known before the first task has ended, so its penalty is 0: earlier tasks are held, general text is not.

Synaptic intelligence (Zenke et al. 2017): an entry matters as much as the loss fell along its own way.

    in every step        omega += -g (phi_after - phi_before)       g: gradient of the task loss alone
    between two tasks    Omega <- max(0, decay Omega + omega / ((phi_end - phi_start)^2 + xi))

Where an entry made the loss rise, omega is negative.  The paper does not say what becomes of it; its authors' code
(ganguli-lab/pathint) cuts the sum over tasks at 0, and so does this, for a negative Omega would push entries away
without bound.  (mammoth's `si` approximates omega by lr g^2, never negative.)  decay 1 is the published sum.

Riemannian walk (Chaudhry et al. 2018): a moving average of squared gradients, plus a score of the way.

    every step           drop += -g dphi                    g: gradient of the task loss alone
    every INTERVAL       s  += max(0, drop) / (1/2 F~ (phi - phi at its start)^2 + EPSILON);  drop = 0
                         F~ <- RATE mean(g^2 over the interval) + (1 - RATE) F~
    between two tasks    S  <- s after the first task, (S + s) / 2 after later ones
                         Omega = F~ / max F~ + S / max S    maxima over all adapters

F~ is made of squared gradients of whole batches, as published.  It is not the Fisher of this package, which squares the
gradient of each document: with B documents in a batch it is up to B times smaller, and the noise of the last INTERVAL
steps is in it.  Dividing by the maxima takes its scale out again (the paper scales both terms to [0, 1]).

INTERVAL, RATE and EPSILON are those of the authors' code (facebookresearch/agem), which also subtracts the minima; here
they are 0 wherever an entry never moved.  Avalanche's `rwalk` averages in every step and takes the machine's epsilon.
F~ begins anew with each task, with its first squared gradient: after two intervals an earlier task's F~ would weigh 1%.
`Options.decay` and `damping` do not enter.  Adapters move so little that EPSILON outweighs what is beside it: S / max S
is then nearly the share of the fall of the loss that is owed to an entry.
"""

import jax
import jax.numpy as jnp

from e2wm_jax.lora import Adapters, Scope
from e2wm_jax.regularizers.measure import distance, zeros
from e2wm_jax.regularizers.regularizer import Material, Regularizer, State, Update, anchor_at
from e2wm_jax.sharding import replicate

INTERVAL = 10  # steps
RATE = 0.9  # of the newest interval in F~
EPSILON = 1e-3


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """sum Omega (phi - phi*)^2; 0 in the first task."""
    del scope
    return distance(state["importance"], adapters, state["anchor"])


def si_prepare(material: Material) -> State:
    """No importance yet."""
    return replicate({"importance": zeros(material.adapters), "anchor": material.adapters}, material.scope.mesh)


def si_begin(adapters: Adapters) -> State:
    """The path at a task's start."""
    return {"start": anchor_at(adapters), "omega": zeros(adapters)}


def si_observe(path: State, update: Update) -> State:
    """omega plus what one step did to the loss, to first order."""
    omega = jax.tree.map(
        lambda omega, g, after, before: omega - g * (after - before),
        path["omega"],
        update.gradient,
        update.after,
        update.before,
    )
    return {"start": path["start"], "omega": omega}


def si_next_task(material: Material, state: State, path: State) -> State:
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
    prepare=si_prepare,
    penalty=penalty,
    begin=si_begin,
    observe=si_observe,
    next_task=si_next_task,
)


def rwalk_prepare(material: Material) -> State:
    """No importance yet."""
    start = material.adapters
    state = {"importance": zeros(start), "score": zeros(start), "anchor": start, "tasks": jnp.int32(0)}
    return replicate(state, material.scope.mesh)


def rwalk_begin(adapters: Adapters) -> State:
    """The path at a task's start."""
    names = ("drop", "squares", "fisher", "score")
    return {"steps": jnp.int32(0), "start": anchor_at(adapters), **{name: zeros(adapters) for name in names}}


def rwalk_observe(path: State, update: Update) -> State:
    """One more step; at the end of an interval its score, then the moving average."""
    steps = path["steps"] + 1
    ended = steps % INTERVAL == 0

    def entry(
        drop: jax.Array,
        squares: jax.Array,
        fisher: jax.Array,
        score: jax.Array,
        start: jax.Array,
        g: jax.Array,
        before: jax.Array,
        after: jax.Array,
    ) -> dict[str, jax.Array]:
        drop, squares = drop - g * (after - before), squares + jnp.square(g)
        fisher = jnp.where(steps == 1, jnp.square(g), fisher)
        won = jnp.maximum(drop, 0) / (0.5 * fisher * jnp.square(after - start) + EPSILON)
        averaged = RATE * squares / INTERVAL + (1 - RATE) * fisher
        return {
            "drop": jnp.where(ended, 0, drop),
            "squares": jnp.where(ended, 0, squares),
            "fisher": jnp.where(ended, averaged, fisher),
            "score": jnp.where(ended, score + won, score),
            "start": jnp.where(ended, after, start),
        }

    names = ("drop", "squares", "fisher", "score", "start")
    trees = [path[name] for name in names]
    entries = jax.tree.map(entry, *trees, update.gradient, update.before, update.after)
    now = jax.tree.transpose(jax.tree.structure(update.after), jax.tree.structure(dict.fromkeys(names, 0)), entries)
    return {"steps": steps, **now}


def rwalk_next_task(material: Material, state: State, path: State) -> State:
    """Importance with the finished task in it; the anchor moves to where that task ended."""
    first = state["tasks"] == 0
    score = jax.tree.map(lambda old, new: jnp.where(first, new, (old + new) / 2), state["score"], path["score"])
    importance = jax.tree.map(jnp.add, _up_to_one(path["fisher"]), _up_to_one(score))
    anchor = anchor_at(material.adapters)
    return {"importance": importance, "score": score, "anchor": anchor, "tasks": state["tasks"] + 1}


def _up_to_one(values: Adapters) -> Adapters:
    """Values, 0 or more, by the largest of all."""
    largest = jax.tree.reduce(jnp.maximum, jax.tree.map(jnp.max, values))
    return jax.tree.map(lambda leaf: leaf / jnp.where(largest > 0, largest, 1), values)


RWALK = Regularizer(
    formula="sum (F~ / max F~ + S / max S) (phi - phi*)^2, S <- (S + s) / 2, "
    "s = sum over intervals of max(0, -g dphi) / (1/2 F~ dphi^2 + 1e-3)",
    reference="Riemannian walk, Chaudhry et al. 2018",
    prepare=rwalk_prepare,
    penalty=penalty,
    begin=rwalk_begin,
    observe=rwalk_observe,
    next_task=rwalk_next_task,
)
