"""What a run leaves beside its result while it works: rows of logs, and a profile."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from e2wm_jax.storage.metrics import append, metrics_log

_WARM = 2  # steps before a profile begins: those that compile


@contextmanager
def records(
    out: Path, logs: Mapping[str, Sequence[str]], last_step: int
) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """record(name, row) appends to a log of the run, whose rows after `last_step` are dropped; only one host does.

    Args:
        logs: their names, and what their rows have besides a step.

    Raises:
        InputError: for a log with a line that is no row of one.
    """
    if jax.process_index() != 0:
        yield lambda name, row: None
        return
    with ExitStack() as opened:
        # A run that begins measures its start (step 0) anew.
        files = {
            name: opened.enter_context(metrics_log(out / name, last_step=last_step or -1, keys=keys))
            for name, keys in logs.items()
        }
        yield lambda name, row: append(files[name], row)


@contextmanager
def profile(folder: Path, steps: int) -> Iterator[Callable[[int], None]]:
    """begin(steps done): starts the profile when it is due, and ends it."""
    running = False

    def begin(done: int) -> None:
        nonlocal running
        if steps and done == _WARM:
            jax.profiler.start_trace(str(folder))
            running = True
        elif running and done == _WARM + steps:
            jax.profiler.stop_trace()
            running = False

    try:
        yield begin
    finally:
        if running:
            jax.profiler.stop_trace()
