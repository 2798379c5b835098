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
from e2wm_jax.config import BaseDType, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json, write_json
from e2wm_jax.fisher.diagonal import Estimator, FisherResult, Flat
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import Model, config_to_hf
from e2wm_jax.tensor_files import MAX_SHARD_BYTES, TensorFiles, open_tensors, write_shards

METADATA_FILE, CONFIG_FILE = "fisher.json", "config.json"


def write_fisher(
    folder: Path,
    model: Model,
    result: FisherResult,
    *,
    keep: re.Pattern[str] | None,
    estimator: Estimator,
    method: str,
    base_dtype: BaseDType,
    max_length: int,
    data: list[dict[str, str]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write F of every parameter whose Hugging Face name matches `keep` (None: all).

    `fisher.json` comes last: a directory that has one is complete.
    """
    tensors = _by_hf_name(model.config, result.values, keep)
    sizes = {name: value.nbytes for name, value in tensors.items()}
    write_shards(folder, sizes, tensors.__getitem__, max_shard_bytes=max_shard_bytes)
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
            "base_dtype": base_dtype,
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
