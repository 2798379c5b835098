"""Riemannian walk (Chaudhry et al. 2018): a moving average of squared gradients, plus a score of the way.

    every step           drop += -g dphi                    g: gradient of the task loss alone
    every INTERVAL       s  += max(0, drop) / (1/2 F~ (phi - phi at its start)^2 + EPSILON);  drop = 0
                         F~ <- RATE mean(g^2 over the interval) + (1 - RATE) F~
    between two tasks    S  <- s after the first task, (S + s) / 2 after later ones
                         Omega = F~ / max F~ + S / max S    maxima over all adapters
    penalty              sum Omega (phi - phi*)^2           phi*: where the last task ended

F~ is made of squared gradients of whole batches, as published.  It is not the Fisher of this package, which squares the
gradient of each document: with B documents in a batch it is up to B times smaller, and the noise of the last INTERVAL
steps is in it.  Dividing by the maxima takes its scale out again (the paper scales both terms to [0, 1]).

INTERVAL, RATE and EPSILON are those of the authors' code (facebookresearch/agem), which also subtracts the minima; here
they are 0 wherever an entry never moved.  Avalanche's `rwalk` averages in every step and takes the machine's epsilon.
F~ begins anew with each task, with its first squared gradient: after two intervals an earlier task's F~ would weigh 1%.
`Options.decay` and `damping` do not enter.  Adapters move so little that EPSILON outweighs what is beside it: S / max S
is then nearly the share of the fall of the loss that is owed to an entry.

Nothing is known before the first task has ended, so its penalty is 0: earlier tasks are held, general text is not.
"""

import jax
import jax.numpy as jnp

from e2wm_jax.lora import Adapters
from e2wm_jax.regularizers.factors import distance, zeros
from e2wm_jax.regularizers.measure import anchor_at
from e2wm_jax.regularizers.regularizer import Material, Regularizer, Scope, State, Update
from e2wm_jax.sharding import everywhere

INTERVAL = 10  # steps
RATE = 0.9  # of the newest interval in F~
EPSILON = 1e-3


def prepare(material: Material) -> State:
    """No importance yet."""
    start = material.adapters
    state = {"importance": zeros(start), "score": zeros(start), "anchor": start, "tasks": jnp.int32(0)}
    return everywhere(state, material.scope.mesh)


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """sum Omega (phi - phi*)^2; 0 in the first task."""
    del scope
    return distance(state["importance"], adapters, state["anchor"])


def begin(adapters: Adapters) -> State:
    """The path at a task's start."""
    names = ("drop", "squares", "fisher", "score")
    return {"steps": jnp.int32(0), "start": anchor_at(adapters), **{name: zeros(adapters) for name in names}}


def observe(path: State, update: Update) -> State:
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


def next_task(material: Material, state: State, path: State) -> State:
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
    prepare=prepare,
    penalty=penalty,
    begin=begin,
    observe=observe,
    next_task=next_task,
)
