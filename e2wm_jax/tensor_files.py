"""Named tensors on disk: safetensors (one file or shards), and PyTorch's .bin where torch is installed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json, replacing


@dataclass(frozen=True)
class TensorFiles:
    """Tensors by name, each read when asked for, so that one at a time is in host memory."""

    names: frozenset[str]
    shape: Callable[[str], tuple[int, ...]]
    read: Callable[[str], np.ndarray]


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
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
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
    for shard in shards:
        try:
            with safe_open(shard, framework="np") as file:
                where.update(dict.fromkeys(file.keys(), shard))
        except SafetensorError as error:
            raise InputError(f"{shard}: damaged or incomplete safetensors file ({error})") from error

    def shape(name: str) -> tuple[int, ...]:
        with safe_open(where[name], framework="np") as file:
            return tuple(file.get_slice(name).get_shape())

    def read(name: str) -> np.ndarray:
        with safe_open(where[name], framework="np") as file:
            return file.get_tensor(name)

    return TensorFiles(frozenset(where), shape, read)


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
    return TensorFiles(
        frozenset(tensors), lambda name: tuple(tensors[name].shape), lambda name: tensors[name].float().numpy()
    )


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write contiguous arrays atomically, readable as any other file (safetensors itself writes mode 600)."""
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)
