"""The Fisher on disk: F under Hugging Face names, shapes and layouts, and `fisher.json` about it.

The directory is also a Hugging Face model whose weights are F: the form in which the official code reads it.
"""

import re
import warnings
from dataclasses import asdict
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import e2wm_jax
from e2wm_jax.config import ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json, write_json
from e2wm_jax.fisher.diagonal import Estimator, FisherResult, Flat
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import Model, config_to_hf
from e2wm_jax.tensor_files import TensorFiles, open_tensors, write_safetensors

METADATA_FILE, CONFIG_FILE = "fisher.json", "config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_SHARD_BYTES = 5 * 2**30


def write_fisher(
    folder: Path,
    model: Model,
    result: FisherResult,
    *,
    keep: re.Pattern[str] | None,
    estimator: Estimator,
    method: str,
    max_length: int,
    data: list[dict[str, str]],
) -> None:
    """Write F of every parameter whose Hugging Face name matches `keep` (None: all).

    `fisher.json` comes last: a directory that has one is complete.
    """
    tensors = _by_hf_name(model.config, result.values, keep)
    _write_shards(folder, tensors)
    write_json(folder / CONFIG_FILE, config_to_hf(model.config))  # for transformers' from_pretrained
    write_json(
        folder / METADATA_FILE,
        {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "estimator": asdict(estimator),
            "samples": result.samples,
            "tokens": result.tokens,
            "max_length": max_length,
            "data": data,
            "dtype": "float32",
            "method": method,
            "version": e2wm_jax.__version__,
        },
    )


def read_fisher(folder: Path, model: Model, needed: list[str]) -> Flat:
    """F of the parameters `needed` (paths such as "layers.q.weight"), stacked over layers, float32.

    Raises:
        InputError: if files are missing, or F belongs to another model by fingerprint, names or shapes.
    """
    if not folder.is_dir():
        raise InputError(f"--fisher {folder}: no such directory; compute one with `e2wm fisher`")
    if (folder / METADATA_FILE).is_file():
        found = read_json(folder / METADATA_FILE).get("fingerprint")
        if found != model.fingerprint:
            raise InputError(
                f"--fisher {folder}: computed for another model (fingerprint {str(found)[:12]}, this model "
                f"{model.fingerprint[:12]}); run `e2wm fisher --model {model.name}`"
            )
    else:
        warnings.warn(f"{folder} has no {METADATA_FILE}: checked by names and shapes only", stacklevel=2)
    tensors = open_tensors(folder)
    table = weight_table(model.config)
    values = {}
    for path in needed:
        spec = table[path]
        names = [spec.hf.format(layer) for layer in range(model.config.num_layers)] if spec.stacked else [spec.hf]
        stack = np.stack([_read(tensors, name, spec.shape, folder) for name in names])
        values[path] = jnp.asarray(stack if spec.stacked else stack[0])
    return values


def _by_hf_name(config: ModelConfig, values: Flat, keep: re.Pattern[str] | None) -> dict[str, np.ndarray]:
    table, tensors = weight_table(config), {}
    for path, value in values.items():
        spec, host = table[path], np.asarray(value)
        for layer in range(config.num_layers) if spec.stacked else (0,):
            name = spec.hf.format(layer)
            if keep is None or keep.fullmatch(name):
                tensors[name] = np.ascontiguousarray(host[layer] if spec.stacked else host)
    return tensors


def _write_shards(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """One file, or several of at most 5 GiB with an index, as transformers names and reads them."""
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, value in tensors.items():
        if shards[-1] and sum(v.nbytes for v in shards[-1].values()) + value.nbytes > _SHARD_BYTES:
            shards.append({})
        shards[-1][name] = value
    files = (
        [WEIGHTS_FILE]
        if len(shards) == 1
        else [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    )
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(folder / file, shard)
    if len(shards) > 1:
        total = sum(value.nbytes for value in tensors.values())
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _read(tensors: TensorFiles, name: str, shape: tuple[int, ...], folder: Path) -> np.ndarray:
    if name not in tensors.names:
        raise InputError(
            f"--fisher {folder}: has no {name}; compute it with `e2wm fisher --params all` or a pattern that matches it"
        )
    if tensors.shape(name) != shape:
        raise InputError(
            f"--fisher {folder}: {name} has shape {list(tensors.shape(name))}, this model's is {list(shape)}"
        )
    return tensors.read(name).astype(np.float32)
