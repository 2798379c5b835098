"""An unfinished Fisher pass on disk, from which it goes on to the same numbers bit for bit.

    OUT/partial/00000120/host-00000/model.safetensors   this host's parts of the totals, as the devices hold them
    OUT/partial/00000120/state.json                     what the pass is, and how far it has come: 120 batches

`state.json` is written last, when every host's totals are there: a folder without it is a save that was killed, and
counts for nothing.  The save before goes when the new one is complete.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Flat, Progress
from e2wm_jax.fisher.finite import check_finite
from e2wm_jax.running.hosts import all_hosts, sync_hosts
from e2wm_jax.storage.files import read_json, write_json
from e2wm_jax.storage.tensor_files import open_tensors, write_shards

PARTIAL, STATE_FILE = "partial", "state.json"
_CONTENT = {"tokens": "the tokens of the documents have", "fingerprint": "the model's weights have"}
_COUNTS = ("batches", "samples", "tokens", "nats", "peak_bytes")


class Saved(NamedTuple):
    """A saved pass but for its totals."""

    folder: Path
    identity: dict[str, Any]  # what must be the same for the pass to go on (`check_same`)
    counts: dict[str, Any]
    skipped: tuple[int, ...]  # numbers of the documents left out


def find(out: Path) -> Saved | None:
    """The last complete save of the pass that writes to `out`, if there is one."""
    folders = sorted((path.parent for path in (out / PARTIAL).glob(f"*/{STATE_FILE}")), reverse=True)
    if not folders:
        return None
    record = read_json(folders[0] / STATE_FILE)
    return Saved(folders[0], record["identity"], record["counts"], tuple(record["skipped"]))


def save(out: Path, now: Progress, skipped: tuple[int, ...], identity: Mapping[str, Any]) -> None:
    """Save the pass; on several hosts all call this, with `out` on a disk that all of them see.

    Raises:
        InputError: if the totals are not finite; the save before then stays.
    """
    check_finite(now.totals)
    folder = out / PARTIAL / f"{now.batches:08d}"
    if (folder / STATE_FILE).is_file():
        return
    own = folder / _host()
    own.mkdir(parents=True, exist_ok=True)
    parts = {name: part for path, total in now.totals.items() for name, part in _parts(path, total).items()}
    write_shards(own, {name: part.nbytes for name, part in parts.items()}, lambda name: np.asarray(parts[name]))
    sync_hosts("totals saved")
    if jax.process_index() == 0:
        counts = {name: getattr(now, name) for name in _COUNTS}
        write_json(folder / STATE_FILE, {"identity": identity, "counts": counts, "skipped": sorted(skipped)})
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other)
    sync_hosts("state saved")


def load(saved: Saved, empty: Flat) -> Progress:
    """The pass as it was saved.

    Args:
        empty: totals of a pass that begins, for their shapes and devices; they are deleted one by one to make room.
    """
    tensors, totals = open_tensors(saved.folder / _host()), {}
    for path, total in empty.items():
        shape, sharding = total.shape, total.sharding
        total.delete()
        if isinstance(sharding, jax.sharding.SingleDeviceSharding):
            totals[path] = jnp.array(tensors.read(_name(path, (slice(None),) * len(shape), shape)))
            continue

        def part(index: tuple[slice, ...] | None, path: str = path, shape: tuple[int, ...] = shape) -> np.ndarray:
            return tensors.read(_name(path, index or (slice(None),) * len(shape), shape))

        totals[path] = jax.make_array_from_callback(shape, sharding, part)
    return Progress(totals, **saved.counts)


def remove(out: Path) -> None:
    """Forget the unfinished pass."""
    shutil.rmtree(out / PARTIAL, ignore_errors=True)


def check_same(saved: Saved, identity: Mapping[str, Any]) -> None:
    """Refuse to continue another pass.

    Raises:
        InputError: naming the first difference.
    """
    way_out = f"repeat what it was started with, or give a new --out (or remove {saved.folder.parent})"
    for key, now in identity.items():
        before = saved.identity.get(key)
        if before == now:
            continue
        if key in _CONTENT:
            raise InputError(f"--resume: {_CONTENT[key]} changed since the pass was saved; {way_out}")
        if key == "data":
            paths, earlier = ([one["path"] for one in record] for record in (now, before or ()))
            if paths == earlier:
                changed = next(one["path"] for one in now if one not in (before or ()))
                raise InputError(f"--resume: {changed} has changed since the pass was saved; {way_out}")
            key, before, now = "--data", " ".join(earlier), " ".join(paths)
        raise InputError(f"--resume: the unfinished pass has {key} = {before!r}, not {now!r}; {way_out}")


def check_shared(out: Path) -> None:
    """Refuse an `out` of which every host has its own: the saves and their record would not be in one place.

    Raises:
        InputError: on all hosts, if some do not see what the first writes.
    """
    if jax.process_count() == 1:
        return
    sync_hosts("settings checked")
    if jax.process_index() == 0:
        (out / PARTIAL).mkdir(parents=True, exist_ok=True)
    sync_hosts("directory made")
    if not all_hosts((out / PARTIAL).is_dir()):
        raise InputError(f"--out {out}: some hosts do not see what the first writes there; give a shared directory")


def _host() -> str:
    return f"host-{jax.process_index():05d}"


def _parts(path: str, total: jax.Array) -> dict[str, jax.Array]:
    """The parts of a total on this host's devices, by name; devices may hold the same part."""
    return {_name(path, shard.index, total.shape): shard.data for shard in total.addressable_shards}


def _name(path: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """ "layers.q.weight[0:1,0:2,0:32]"."""
    bounds = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return f"{path}[{','.join(f'{start}:{stop}' for start, stop, _ in bounds)}]"
