"""Weights in: Hugging Face directories (safetensors, .bin) and GGUF files -> the parameter tree.

Each source is a mapping from Hugging Face names to arrays read on demand, so that one tensor (one stack of layers) is
in host memory at a time.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.config import DType, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json
from e2wm_jax.model_files import ModelFiles, locate
from e2wm_jax.models.decoder import FAMILIES, family_of, weight_table
from e2wm_jax.models.gguf import open_gguf_model
from e2wm_jax.models.layers import Params
from e2wm_jax.models.weight_table import WeightSpec, WeightTable
from e2wm_jax.tensor_files import TensorFiles, open_tensors

_FINGERPRINT_SAMPLES = 4096  # values hashed per parameter


@dataclass(frozen=True)
class Model:
    """A loaded model: configuration, parameter tree and where it came from."""

    name: str
    config: ModelConfig
    params: Params
    fingerprint: str


def load(model: str | ModelFiles, dtype: DType = "float32") -> Model:
    """Load a model's configuration and weights.

    Raises:
        InputError: if the files are missing, of another architecture, or do not fit their own configuration.
    """
    files = locate(model) if isinstance(model, str) else model
    config, source = open_gguf_model(files.path) if files.format == "gguf" else _open_directory(files)
    table = weight_table(config)
    _check(files, config, table, source)
    flat = {path: jnp.asarray(_gather(spec, config, source), dtype) for path, spec in table.items()}
    params = flax.traverse_util.unflatten_dict(flat, sep=".")
    return Model(files.name, config, params, fingerprint(config, params))


def flatten(params: Params) -> dict[str, jax.Array]:
    """The parameter tree as {"layers.q.weight": array}, the keys of `weight_table`."""
    return flax.traverse_util.flatten_dict(params, sep=".")


def unflatten(flat: dict[str, Any]) -> Params:
    """Inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(flat, sep=".")


def fingerprint(config: ModelConfig, params: Params) -> str:
    """Identity of a model: SHA-256 over names, shapes and evenly spaced values of every parameter.

    The values are rounded to bfloat16 first, so that a model loaded in float32 and in bfloat16 is the same model.
    """
    digest = hashlib.sha256()
    table = weight_table(config)
    for path, value in sorted(flatten(params).items()):
        digest.update(f"{table[path].hf} {value.shape}\n".encode())
        samples = min(_FINGERPRINT_SAMPLES, value.size)
        where = np.unravel_index(np.linspace(0, value.size - 1, samples, dtype=np.int64), value.shape)
        digest.update(np.asarray(value[where].astype(jnp.bfloat16)).tobytes())
    return digest.hexdigest()


def _gather(spec: WeightSpec, config: ModelConfig, source: TensorFiles) -> np.ndarray:
    if not spec.stacked:
        return source.read(spec.hf)
    return np.stack([source.read(spec.hf.format(layer)) for layer in range(config.num_layers)])


def _expected(config: ModelConfig, table: WeightTable) -> Iterable[tuple[str, tuple[int, ...]]]:
    for spec in table.values():
        for layer in range(config.num_layers) if spec.stacked else (0,):
            yield spec.hf.format(layer), spec.shape


def _check(files: ModelFiles, config: ModelConfig, table: WeightTable, source: TensorFiles) -> None:
    """The tensors are exactly those that the configuration asks for."""
    expected = dict(_expected(config, table))
    if missing := sorted(expected.keys() - source.names):
        raise InputError(f"{files.path}: {len(missing)} weights are missing, the first is {missing[0]}")
    ignored = {name for name in source.names if re.fullmatch(family_of(config).IGNORED, name)}
    ignored |= {"lm_head.weight"} if config.tied else set()
    if extra := sorted(source.names - expected.keys() - ignored):
        raise InputError(
            f"{files.path}: unexpected weight {extra[0]} ({len(extra)} in all); "
            "its config.json does not describe these weights, or this variant is not supported"
        )
    for name, shape in expected.items():
        if source.shape(name) != shape:
            raise InputError(
                f"{files.path}: {name} has shape {list(source.shape(name))}, config.json says {list(shape)}"
            )


def _open_directory(files: ModelFiles) -> tuple[ModelConfig, TensorFiles]:
    path = files.path / "config.json"
    return config_from_hf(read_json(path), path), open_tensors(files.path)


def config_from_hf(raw: dict[str, Any], path: Path) -> ModelConfig:
    """Our configuration from a Hugging Face `config.json`.

    Raises:
        InputError: for another architecture or an option that the forward pass does not implement.
    """
    known = {name: family for family in FAMILIES.values() for name in family.MODEL_TYPES}
    if raw.get("model_type") not in known:
        raise InputError(f"{path}: model_type is {raw.get('model_type')!r}; supported: {', '.join(sorted(known))}")
    try:
        return cast(ModelConfig, known[raw["model_type"]].from_hf(raw, path))
    except KeyError as error:
        raise InputError(f"{path}: the key {error.args[0]!r} is missing") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a size or constant is no number ({error})") from error


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Inverse of `config_from_hf`: what transformers needs to build the model."""
    return family_of(config).to_hf(config)
