"""Named tensors on disk: safetensors (one file or shards), and PyTorch's .bin where torch is installed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np

from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json, replacing, write_json

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9  # of one file, as transformers' older default; readers map files whole
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Index = tuple[slice, ...]


class TensorHeader(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str  # as numpy names it, "float32"; a type that numpy does not have, as the file names it


@dataclass(frozen=True)
class TensorFiles:
    """Tensors by name: the headers are here, the values are read when asked for, whole or in part."""

    headers: Mapping[str, TensorHeader]
    read_part: Callable[[str, Index], np.ndarray]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.headers)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.headers[name].shape

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """The tensor, or ``tensor[index]`` without the rest of it."""
        return self.read_part(name, index)


def open_tensors(folder: Path) -> TensorFiles:
    """The tensors of a Hugging Face directory.

    Raises:
        InputError: if there are none, a file is damaged, or reading them needs torch and it is not installed.
    """
    if shards := _shards(folder):
        return open_safetensors(shards)
    if bins := sorted(folder.glob("pytorch_model*.bin")):
        return _open_bins(folder, bins)
    raise InputError(f"{folder}: no *.safetensors and no pytorch_model.bin in it")


def _shards(folder: Path) -> list[Path]:
    """The safetensors files that count, by transformers' rule; others may hold the same weights under other names."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    shards = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(f"{folder}: {missing[0]} is named in {index.name} but not there; fetch the model again")
    return shards


def open_safetensors(shards: list[Path]) -> TensorFiles:
    """The tensors of these files together.

    Raises:
        InputError: naming the file that is damaged.
    """
    from safetensors import SafetensorError, safe_open

    where: dict[str, Path] = {}
    headers: dict[str, TensorHeader] = {}
    for shard in shards:
        try:
            with safe_open(shard, framework="np") as file:
                names = file.keys()
                for name in names:
                    part = file.get_slice(name)
                    where[name] = shard
                    headers[name] = TensorHeader(
                        tuple(part.get_shape()), _NAMES.get(part.get_dtype(), part.get_dtype())
                    )
        except (SafetensorError, OSError) as error:
            raise InputError(f"{shard}: damaged or incomplete safetensors file ({error})") from error

    def read(name: str, index: Index) -> np.ndarray:
        # Opened for each tensor: pages of a mapping that stays open count as memory of this process.
        with safe_open(where[name], framework="np") as file:
            return file.get_slice(name)[index] if index else file.get_tensor(name)

    return TensorFiles(headers, read)


def _open_bins(folder: Path, bins: list[Path]) -> TensorFiles:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{folder}: only pytorch_model.bin weights, and reading them needs torch (pip install 'e2wm_jax[torch]'); "
            "or convert the model to safetensors"
        ) from error
    tensors: dict[str, Any] = {}
    for path in bins:
        try:
            tensors.update(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        except (RuntimeError, UnpicklingError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: damaged or incomplete, or no plain weights ({reason})") from error
    headers = {
        name: TensorHeader(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in tensors.items()
    }
    return TensorFiles(headers, lambda name, index: tensors[name][index].float().numpy())


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write contiguous arrays atomically, readable as any other file (safetensors itself writes mode 600).

    Raises:
        OSError: if the file cannot be written, as on a full disk.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path.name}: {error}") from error
        temporary.chmod(0o644)


def write_shards(
    folder: Path,
    sizes: Mapping[str, int],
    read: Callable[[str], np.ndarray],
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write tensors as transformers names and finds them: `WEIGHTS_FILE`, or several files and `INDEX_FILE`.

    Args:
        folder: an existing directory.
        sizes: bytes of each tensor by name, in the order in which they are written.
        read: gives a tensor by its name; one file's tensors are in host memory at a time.
        max_shard_bytes: a file holds no more, unless it is one tensor.

    Returns:
        The bytes of all tensors.
    """
    shards: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if shards[-1] and sum(shards[-1].values()) + size > max_shard_bytes:
            shards.append({})
        shards[-1][name] = size
    count, total = len(shards), sum(sizes.values())
    files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    files = files if count > 1 else [WEIGHTS_FILE]
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(folder / file, {name: read(name) for name in shard})
    if count > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return total
