"""Named tensors on disk: safetensors (one file or shards), and PyTorch's .bin where torch is installed."""

import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from e2wm_jax.errors import InputError, first_line
from e2wm_jax.storage.files import check_fetched, read_json, replacing, write_json

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
WEIGHT_NAMES = (WEIGHTS_FILE, INDEX_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json")  # first come first
_OF_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack")  # files that may hold a model
READABLE = ("float32", "float16", "bfloat16", "float64")  # dtypes of weights
MAX_SHARD_BYTES = 5 * 10**9  # of one file, as transformers' older default; readers map files whole
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Index = tuple[slice, ...]


class TensorHeader(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: str  # as numpy names it, "float32"; a type that numpy does not have, as the file names it
    file: Path


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
        """The tensor, or ``tensor[index]`` without the rest of it; float32 in place of float64."""
        return self.read_part(name, index)


def open_tensors(folder: Path) -> TensorFiles:
    """The tensors of a Hugging Face directory, from the files that `weight_files` finds.

    Raises:
        InputError: if there are none, a file is damaged, or reading them needs torch and it is not installed.
    """
    files = weight_files(folder)
    return open_safetensors(files) if files[0].suffix == ".safetensors" else open_bins(files)


def weight_files(folder: Path) -> list[Path]:
    """The files whose weights count, by transformers' rule: the first of `WEIGHT_NAMES` that is there, and what it
    names if it is an index. Others may hold another variant (``fp16``), the same weights again, or something else.

    Raises:
        InputError: if there are none, or one that an index names is not there.
    """
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    others = sorted(path.name for path in folder.glob("*") if path.suffix in _OF_WEIGHTS)
    found = f"; {others[0]} is not read under that name" if others else ""
    if broken := [name for name in others if name in WEIGHT_NAMES]:
        found = f"; {broken[0]} is a link to nothing, or no file; fetch the model again"
    raise InputError(f"{folder}: no weights in it ({', '.join(WEIGHT_NAMES)}){found}")


def index_shards(index: Path) -> list[str]:
    """The names of the files that an index of weights names, each once.

    Raises:
        InputError: if it is no such index.
    """
    weight_map = read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) and _all_text(weight_map.values()) else set()
    suffix = ".safetensors" if ".safetensors" in index.name else ".bin"
    if not names or not all(name.endswith(suffix) and PurePosixPath(name).name == name for name in names):
        raise InputError(f"{index}: weight_map must name the *{suffix} file beside it of each weight")
    return sorted(names)


def _all_text(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _shards(index: Path) -> list[Path]:
    shards = [index.with_name(name) for name in index_shards(index)]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise InputError(f"{index.parent}: {missing[0]} is named in {index.name} but not there; fetch the model again")
    return shards


def open_safetensors(shards: list[Path]) -> TensorFiles:
    """The tensors of these files together.

    Raises:
        InputError: naming the file that is damaged.
    """
    from safetensors import SafetensorError, safe_open

    headers: dict[str, TensorHeader] = {}
    for shard in shards:
        check_fetched(shard)
        try:
            with safe_open(shard, framework="np") as file:
                names = file.keys()
                for name in names:
                    part = file.get_slice(name)
                    dtype = _NAMES.get(part.get_dtype(), part.get_dtype())
                    _add(headers, name, TensorHeader(tuple(part.get_shape()), dtype, shard))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{shard}: damaged or incomplete safetensors file ({error})") from error

    def read(name: str, index: Index) -> np.ndarray:
        # Opened for each tensor: pages of a mapping that stays open count as memory of this process.
        with safe_open(headers[name].file, framework="np") as file:
            value = file.get_slice(name)[index] if index else file.get_tensor(name)
        with np.errstate(over="ignore"):  # whoever reads checks that values are finite
            return value.astype(np.float32) if value.dtype == np.float64 else value

    return TensorFiles(headers, read)


def _add(headers: dict[str, TensorHeader], name: str, header: TensorHeader) -> None:
    if name in headers:
        raise InputError(f"{header.file}: {name} is in {headers[name].file.name} too; fetch the model again")
    headers[name] = header


def open_bins(paths: list[Path]) -> TensorFiles:
    """The tensors of PyTorch's own files together; nothing but tensors is unpickled.

    Raises:
        InputError: naming the file that is damaged or holds something else, or if torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{paths[0]}: reading this format needs torch (pip install 'e2wm_jax[torch]'); "
            "or convert the weights to safetensors"
        ) from error
    tensors: dict[str, Any] = {}
    headers: dict[str, TensorHeader] = {}
    for path in paths:
        check_fetched(path)
        try:
            # Files of torch before 1.6 are no archives, and cannot be mapped.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:  # torch's own advice is to run what the file says
            raise InputError(
                f"{path}: no plain weights: no file of torch.save, or one that holds more than tensors, such as a "
                "whole module; save its state_dict() alone"
            ) from error
        except Exception as error:  # of any kind: what a damaged pickle says is followed as far as it goes
            raise InputError(
                f"{path}: damaged or incomplete, or no plain weights ({type(error).__name__}: {first_line(error)})"
            ) from error
        for name, value in _plain(path, loaded).items():
            dtype = str(value.dtype).removeprefix("torch.")
            _add(headers, name, TensorHeader(tuple(value.shape), dtype, path))
            tensors[name] = value.detach()

    def read(name: str, index: Index) -> np.ndarray:
        return tensors[name][index].float().numpy()

    return TensorFiles(headers, read)


def _plain(path: Path, loaded: Any) -> dict[str, Any]:
    """The loaded object, if it maps names to tensors with values."""
    import torch

    if not isinstance(loaded, dict):
        raise InputError(f"{path}: no plain weights: it holds a {type(loaded).__name__}, not tensors by name")
    for name, value in loaded.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
            kind = type(value).__name__
            if isinstance(value, torch.Tensor):
                kind = "tensor without values" if value.is_meta else f"{value.layout} tensor"
            inner = [key for key, part in loaded.items() if isinstance(part, dict)]
            way_out = f"save what is under {inner[0]!r} alone" if inner else "save its tensors alone"
            raise InputError(f"{path}: no plain weights: {name!r} is a {kind}; {way_out}")
        if not isinstance(name, str):
            raise InputError(f"{path}: no plain weights: a tensor's name is {name!r}, not text")
    return loaded


def largest_magnitude(value: np.ndarray) -> np.ndarray:
    """The largest absolute value of floats [], or NaN where there is one, without a copy and in any 16- or 32-bit type.

    Bits of floats without their sign are in the order of the numbers, infinity and NaN above them.
    """
    signed, unsigned = (value.view(f"{kind}{value.itemsize}") for kind in "iu")
    positive, negative = int(signed.max(initial=0)), int(unsigned.max(initial=0)) & np.iinfo(signed.dtype).max
    return np.asarray(max(positive, negative), unsigned.dtype).view(value.dtype)


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
