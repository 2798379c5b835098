"""What a regularizer is: a penalty on what finetuning changes, and the state which that penalty reads.

    before the first step of a task     prepare(material) -> state       reads the Fisher or general text, once
    in every step                       penalty(scope, adapters, state), or token_penalty(scope, ...) on a batch
                                        observe(path, update) -> path    where the way matters (si, rwalk)
    between two tasks of a sequence     next_task(material, state, path) -> state

Everything is a pure function; state and path are pytrees of arrays.  The strength multiplies the penalty outside, and
no formula has a factor one half.  A regularizer is one file with one `Regularizer` and one line in `catalogue`.

Letters: B rows, M predicted tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.data.batch import Batch, Row
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.lora import Adapters, Scope
from e2wm_jax.models.layers import Params

State = Any  # a pytree of arrays; () where there is nothing to keep


class Update(NamedTuple):
    """One optimizer step, as a path sees it."""

    before: Adapters
    after: Adapters
    gradient: Adapters  # of the task loss alone, at `before`


def anchor_at(adapters: Adapters) -> Adapters:
    """A copy to hold on to: a training step gives away (donates) the adapters that it is called with."""
    return jax.tree.map(jnp.copy, adapters)


@dataclass(frozen=True)
class PenaltyOptions:
    """Numbers that some regularizers have."""

    decay: float = 1.0  # of earlier tasks' importance, gamma
    damping: float = 1e-3  # xi of si
    batch_size: int = 4  # rows that `prepare` and `next_task` read at once
    max_length: int = 800  # longest of those rows
    seed: int = 0


@dataclass(frozen=True)
class Material:
    """What a regularizer may read between steps."""

    scope: Scope
    params: Params  # the frozen base
    adapters: Adapters  # the model as it stands: before a task, or after it
    fisher: Fisher | None  # of --fisher, by path of the weight: of the pretrained model
    rows: Sequence[Row]  # before the first task general text (--regularizer-data), after a task that task's own rows
    options: PenaltyOptions


def nothing(*_: Any) -> State:
    """No state."""
    return ()


def same_state(material: Material, state: State, path: State) -> State:
    """A state that the next task finds as it is."""
    del material, path
    return state


class Regularizer(NamedTuple):
    """One regularizer; of `penalty` and `token_penalty` at most one is there."""

    formula: str  # what is added to the task loss, without the strength
    reference: str
    reads: Literal["nothing", "fisher", "text"] = "nothing"  # "text": --regularizer-data, if only to `prepare`

    prepare: Callable[[Material], State] = nothing
    """State before the first step of the first task."""

    penalty: Callable[[Scope, Adapters, State], jax.Array] | None = None
    """float32 scalar of the adapters alone; once per optimizer step."""

    token_penalty: Callable[[Scope, Params, Params, Batch], jax.Array] | None = None
    """(scope, base parameters, the same with adapters attached, batch) -> [B, M] float32 per predicted token; its
    weighted mean is the penalty: sum(weights * value) / count(weights > 0) over the batches of one optimizer step."""

    begin: Callable[[Adapters], State] = nothing
    """The path before the first step of each task."""

    observe: Callable[[State, Update], State] | None = None
    """The path after one more step; None: there is no path to keep."""

    next_task: Callable[[Material, State, State], State] = same_state
    """(material of the finished task, state, path) -> state for the next task."""
