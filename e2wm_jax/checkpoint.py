"""Checkpoints of a training run, by orbax: arrays of the state, and the position in the data as JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


@contextmanager
def checkpoints(folder: Path, *, keep: int) -> Iterator[ocp.CheckpointManager]:
    """Manager of the numbered checkpoints in `folder`; waits for unfinished writes when left.

    A checkpoint appears under its number only when it is complete; leftovers of a killed write are removed.
    """
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    manager = ocp.CheckpointManager(folder.absolute(), options=options)
    try:
        yield manager
    finally:
        manager.wait_until_finished()
        manager.close()


def save(manager: ocp.CheckpointManager, step: int, state: Any, position: dict[str, Any]) -> None:
    """Write the state and the position in the data under `step`, in the background."""
    if step not in manager.all_steps():
        manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position))
        )


def restore(manager: ocp.CheckpointManager, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """The state, with the shapes, dtypes and shardings of `like`, and the position saved under `step`."""
    # Shardings must be stated: without them orbax restores onto the devices of the saving run.
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    found = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())
    )
    return found["state"], found["position"]
