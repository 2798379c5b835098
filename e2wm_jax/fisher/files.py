"""The Fisher on disk: F under Hugging Face names, shapes and layouts, and `fisher.json` about it.

    float32, bfloat16   the directory is also a Hugging Face model whose weights are F: the form in which the official
                        code publishes and reads one
    uint8               codes under the parameters' names and their scales under "<name>.scale" (`fisher.storage`);
                        without `config.json`, for a program that took the codes for F would go wrong without a word

A directory without `fisher.json` is a Fisher in the official form: any float type, safetensors or pytorch_model.bin,
checked by names and shapes.
"""

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

import e2wm_jax
from e2wm_jax.config import BaseDType, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Estimator, FisherResult
from e2wm_jax.fisher.storage import BLOCK, Bfloat16Bits, FisherDType, SquareRootCodes, StoredFisher, decode, encode
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.families.weight_table import WeightSpec
from e2wm_jax.models.weights import Model, config_to_hf
from e2wm_jax.storage.files import read_json, write_json
from e2wm_jax.storage.tensor_files import MAX_SHARD_BYTES, TensorFiles, open_tensors, write_shards

METADATA_FILE, CONFIG_FILE = "fisher.json", "config.json"
SCALE = ".scale"  # behind a parameter's name: the scales of its codes
_LARGEST = float(np.finfo(np.float32).max)
_LARGEST_SCALE = _LARGEST**0.5 / 255 * (1 - 1e-6)  # whose largest code is a finite number
_FLOATS = ("float64", "float32", "float16", "bfloat16")


def write_fisher(
    folder: Path,
    model: Model,
    result: FisherResult,
    *,
    keep: re.Pattern[str] | None = None,
    estimator: Estimator | None = None,
    method: str | None = None,
    base_dtype: BaseDType = "float32",
    max_length: int | None = None,
    data: Sequence[dict[str, str]] = (),
    dtype: FisherDType = "float32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write F of every parameter whose Hugging Face name matches `keep` (None: all), in the type `dtype`.

    `fisher.json` comes last: a directory that has one is complete.  `estimator`, `method`, `base_dtype`, `max_length`
    and `data` are for its record only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = _by_hf_name(model.config, result.values, keep, dtype)
    sizes = {name: value.nbytes for name, value in tensors.items()}
    write_shards(folder, sizes, tensors.__getitem__, max_shard_bytes=max_shard_bytes)
    if dtype != "uint8":
        write_json(folder / CONFIG_FILE, config_to_hf(model.config))  # for transformers' from_pretrained
    write_json(
        folder / METADATA_FILE,
        {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "estimator": asdict(estimator or Estimator()),
            "samples": result.samples,
            "tokens": result.tokens,
            "max_length": max_length,
            "data": list(data),
            "dtype": dtype,
            "base_dtype": base_dtype,
            "method": method,
            "version": e2wm_jax.__version__,
        },
    )


def check_fisher(folder: Path, config: ModelConfig, needed: Sequence[str]) -> None:
    """What can be said of a Fisher by the headers of its files, before a model's weights are read.

    Raises:
        InputError: if files are missing or damaged, or parameters of the model among `needed` missing or misshapen.
    """
    if not folder.is_dir():
        raise InputError(f"--fisher {folder}: no such directory; compute one with `e2wm fisher`")
    tensors, table = open_tensors(folder), weight_table(config)
    for path in needed:
        for name in _hf_names(table[path], config):
            _check_tensor(tensors, name, table[path].shape, ("U8", *_FLOATS), f"--fisher {folder}")


def _hf_names(spec: WeightSpec, config: ModelConfig) -> list[str]:
    return [spec.hf.format(layer) for layer in range(config.num_layers)] if spec.stacked else [spec.hf]


def read_fisher(folder: Path, model: Model, needed: Sequence[str]) -> dict[str, StoredFisher]:
    """F of the parameters `needed` (paths such as "layers.q.weight"), stacked over layers.

    In memory as `fisher.json` says: float32 arrays, `Bfloat16Bits` or `SquareRootCodes`; in the official form, float32.

    Raises:
        InputError: if files are missing, F belongs to another model by fingerprint, names or shapes, or it holds
            something that is no Fisher: another type, negative numbers, infinities or NaN.
    """
    if not folder.is_dir():
        raise InputError(f"--fisher {folder}: no such directory; compute one with `e2wm fisher`")
    dtype = _checked_dtype(folder, model)
    tensors, where = open_tensors(folder), f"--fisher {folder}"
    table = weight_table(model.config)
    values: dict[str, StoredFisher] = {}
    for path in needed:
        spec = table[path]
        layers = [_read(tensors, name, spec.shape, dtype, where) for name in _hf_names(spec, model.config)]
        values[path] = jax.tree.map(
            lambda *parts, stacked=spec.stacked: jnp.asarray(np.stack(parts) if stacked else parts[0]), *layers
        )
    if dtype is None and any(tensors.headers[name].dtype == "float16" for name in tensors.names):
        zeros = sum(int(jnp.sum(decode(value) == 0)) for value in values.values())
        lost = zeros / max(sum(math.prod(value.shape) for value in values.values()), 1)
        warnings.warn(f"{folder}: float16 has made entries below 3e-8 zero; {lost:.0%} of F are", stacklevel=2)
    return values


def stored_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of F by its name, in float32, one at a time in memory; the model is not asked for.

    Raises:
        InputError: if there are no tensors, or one holds something that is no Fisher.
    """
    tensors = open_tensors(folder)
    for name in tensors.headers:
        if name.endswith(SCALE) and name.removesuffix(SCALE) in tensors.headers:
            continue
        yield name, stored_tensor(tensors, name, f"{folder}")


def stored_tensor(tensors: TensorFiles, name: str, where: str) -> np.ndarray:
    """F of one tensor in float32, of whatever type it is written in.

    Raises:
        InputError: starting with `where`, if it holds something that is no Fisher.
    """
    shape = tensors.headers[name].shape
    dtype: FisherDType | None = "uint8" if shape and name + SCALE in tensors.headers else None
    value = _read(tensors, name, shape, dtype, where)
    return np.asarray(decode(value)) if isinstance(value, SquareRootCodes) else value


def _checked_dtype(folder: Path, model: Model) -> FisherDType | None:
    """The type by `fisher.json`; None without one, with a warning."""
    if not (folder / METADATA_FILE).is_file():
        warnings.warn(f"{folder} has no {METADATA_FILE}: checked by names and shapes only", stacklevel=3)
        return None
    metadata = read_json(folder / METADATA_FILE)
    found, dtype = metadata.get("fingerprint"), metadata.get("dtype", "float32")
    if found != model.fingerprint:
        raise InputError(
            f"--fisher {folder}: computed for another model (fingerprint {str(found)[:12]}, this model "
            f"{model.fingerprint[:12]}); run `e2wm fisher --model {model.name}`"
        )
    if dtype not in get_args(FisherDType):
        raise InputError(
            f"--fisher {folder}: {METADATA_FILE} says dtype {dtype!r}, known are {', '.join(get_args(FisherDType))}; "
            "a newer e2wm may have written it"
        )
    return dtype


def _by_hf_name(
    config: ModelConfig, values: dict[str, jax.Array], keep: re.Pattern[str] | None, dtype: FisherDType
) -> dict[str, np.ndarray]:
    table = weight_table(config)
    tensors: dict[str, np.ndarray] = {}
    for path, value in values.items():
        spec, host = table[path], np.asarray(value)
        for layer in range(config.num_layers) if spec.stacked else (0,):
            name = spec.hf.format(layer)
            if keep is None or keep.fullmatch(name):
                tensors |= _stored_tensors(name, host[layer] if spec.stacked else host, dtype)
    return tensors


def _stored_tensors(name: str, value: np.ndarray, dtype: FisherDType) -> dict[str, np.ndarray]:
    stored = encode(value, dtype)
    if isinstance(stored, SquareRootCodes):
        return {name: np.asarray(stored.codes), name + SCALE: np.asarray(stored.scales)}
    if isinstance(stored, Bfloat16Bits):
        return {name: np.asarray(stored.bits).view(jnp.bfloat16)}
    return {name: np.ascontiguousarray(stored)}


def _read(tensors: TensorFiles, name: str, shape: tuple[int, ...], dtype: FisherDType | None, where: str) -> Any:
    """F of one parameter as numpy arrays in the structure that `dtype` has in memory."""
    if dtype == "uint8":
        codes = _tensor(tensors, name, shape, ("U8",), where)
        blocks = (*shape[:-1], -(-shape[-1] // BLOCK))
        scales = _tensor(tensors, name + SCALE, blocks, ("float32",), where)
        _check_squares(scales, tensors, name + SCALE, _LARGEST_SCALE, where)
        return SquareRootCodes(cast(Any, codes), cast(Any, scales))
    with np.errstate(over="ignore"):  # of float64: infinite, and said so
        value = _tensor(tensors, name, shape, _FLOATS, where).astype(np.float32, copy=False)
    _check_squares(value, tensors, name, _LARGEST, where)
    return Bfloat16Bits(cast(Any, value.astype(jnp.bfloat16).view(np.uint16))) if dtype == "bfloat16" else value


def _tensor(tensors: TensorFiles, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...], where: str) -> np.ndarray:
    _check_tensor(tensors, name, shape, dtypes, where)
    return tensors.read(name)


def _check_tensor(tensors: TensorFiles, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...], where: str) -> None:
    if name not in tensors.names:
        raise InputError(
            f"{where}: has no {name}; compute it with `e2wm fisher --params all` or a pattern that matches it"
        )
    header = tensors.headers[name]
    if header.dtype not in dtypes:
        raise InputError(
            f"{where}: {name} is of type {header.dtype}, not {' or '.join(dtypes)}; "
            "codes without their scales are no Fisher, compute it with `e2wm fisher`"
        )
    if header.shape != shape:
        raise InputError(
            f"{where}: {name} has shape {list(header.shape)}, this model's is {list(shape)}; "
            "give the Fisher of this model"
        )


def _check_squares(value: np.ndarray, tensors: TensorFiles, name: str, most: float, where: str) -> None:
    if value.min(initial=0) >= 0 and value.max(initial=0) <= most:  # a NaN fails both
        return
    wrong = value[~((value >= 0) & (value <= most))]
    raise InputError(
        f"{where}: {name} of {tensors.headers[name].file.name} holds {wrong[0]}, one of {wrong.size} entries that are "
        "negative, infinite or NaN, in float32 too; a Fisher is a mean of squares, compute it anew"
    )
