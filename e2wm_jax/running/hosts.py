"""What the processes of a run agree on: flags over all of them, and barriers."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def any_host(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process; every process calls this at the same point."""
    if jax.process_count() == 1:
        return list(flags)
    return [bool(flag) for flag in multihost_utils.process_allgather(np.asarray(flags)).any(axis=0)]


def all_hosts(flag: bool) -> bool:
    """Whether the flag is set in all processes; every process calls this at the same point."""
    return not any_host(not flag)[0]


def sync_hosts(name: str) -> None:
    """A barrier: go on when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
