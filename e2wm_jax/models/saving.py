"""Weights out: a Hugging Face directory that transformers loads."""

import contextlib
import math
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.layers import Params
from e2wm_jax.models.weights import config_to_hf, flatten, hf_names
from e2wm_jax.options.choices import FileDType
from e2wm_jax.storage.files import write_json
from e2wm_jax.storage.model_files import CONFIG_FILE
from e2wm_jax.storage.tensor_files import MAX_SHARD_BYTES, write_shards


def save(
    folder: Path,
    config: ModelConfig,
    params: Params,
    *,
    dtype: FileDType | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write a model as a new directory, config.json and safetensors: all of it, or nothing.

    Args:
        folder: must not exist yet, or be empty.
        config: of the model.
        params: its parameters, with stacked layers, wherever they live.
        dtype: of the files; default: that of each parameter.
        max_shard_bytes: of one file; larger models are several files and an index.

    Returns:
        The bytes of the weights.

    Raises:
        InputError: if the folder holds something already or cannot be written, or a value is not finite.
    """
    dtypes = None if dtype is None else dict.fromkeys(parameter_sizes(config), dtype)
    with new_folder(folder) as temporary:
        return write_model(temporary, config, params, dtypes=dtypes, max_shard_bytes=max_shard_bytes)


def parameter_sizes(config: ModelConfig) -> dict[str, int]:
    """Hugging Face name -> number of values, of every tensor of the model."""
    return {name: math.prod(spec.shape) for spec in weight_table(config).values() for name in hf_names(spec, config)}


def write_model(
    folder: Path,
    config: ModelConfig,
    params: Params,
    *,
    dtypes: Mapping[str, str] | None = None,
    hf_config: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write config.json and safetensors into an existing directory; returns the bytes of the weights.

    Args:
        folder: an existing directory.
        config: of the model.
        params: its parameters.
        dtypes: of the files, by Hugging Face name; default: that of each parameter.
        hf_config: what config.json says, but for the dtype; default: `config_to_hf`.
        max_shard_bytes: of one file.

    Raises:
        InputError: for values that are not finite, or not in the dtype of the file.
    """
    flat, where = flatten(params), {}
    for path, spec in weight_table(config).items():
        for layer, name in enumerate(hf_names(spec, config)):
            dtype = flat[path].dtype if dtypes is None else jnp.dtype(dtypes[name])
            where[name] = (path, (layer,) if spec.stacked else (), dtype)
    sizes = {name: size * where[name][2].itemsize for name, size in parameter_sizes(config).items()}

    def read(name: str) -> np.ndarray:
        path, index, dtype = where[name]
        value = flat[path][index]
        if not jnp.isfinite(value).all():
            raise InputError(f"{name} has values that are not finite; an adapter that was merged into it is too large")
        if not jnp.isfinite(stored := value.astype(dtype)).all():
            others = "float32" if dtype == jnp.bfloat16 else "float32 or bfloat16"
            raise InputError(f"{name} has values that are not finite in {dtype}; give --dtype {others}")
        return np.asarray(stored)

    total = write_shards(folder, sizes, read, max_shard_bytes=max_shard_bytes)
    most: Counter[str] = Counter()
    for name, (_, _, dtype) in where.items():
        most[dtype.name] += sizes[name]
    record = dict(hf_config or config_to_hf(config))
    record.pop("dtype", None)  # its name since transformers 4.56, which reads the old one too
    write_json(folder / CONFIG_FILE, {**record, "torch_dtype": most.most_common(1)[0][0]})
    return total


def check_new(folder: Path) -> None:
    """Refuse a directory that holds something.

    Raises:
        InputError: naming it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder}: already holds something; give a new or empty directory")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary directory to fill, beside ``folder``; it takes that name in the end, and is removed on failure.

    Raises:
        InputError: if ``folder`` holds something, or writing fails (a full disk, no permission).
    """
    check_new(folder)
    folder = folder.resolve()
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, folder)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be written ({error}); nothing is left there") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
