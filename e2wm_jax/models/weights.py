"""Weights in: Hugging Face directories (safetensors, .bin) and GGUF files -> the parameter tree.

Each source is a mapping from Hugging Face names to arrays read on demand.  A tensor of one layer is read, put into its
place in the stack of layers on the device or the mesh, and forgotten, so that the host holds one at a time.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from e2wm_jax.config import DType, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.decoder import FAMILIES, family_of, weight_table
from e2wm_jax.models.families.weight_table import WeightSpec
from e2wm_jax.models.gguf import open_gguf_model
from e2wm_jax.models.layers import Params
from e2wm_jax.sharding import stacked, weight_sharding
from e2wm_jax.storage.files import read_json
from e2wm_jax.storage.model_files import ModelFiles, locate
from e2wm_jax.storage.tensor_files import READABLE, WEIGHT_NAMES, Index, TensorFiles, largest_magnitude, open_tensors

_FINGERPRINT_SAMPLES = 4096  # values hashed per parameter
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Model:
    """A loaded model: configuration, parameter tree and where it came from."""

    name: str
    config: ModelConfig
    params: Params
    fingerprint: str


def load(
    model: str | ModelFiles,
    dtype: DType = "float32",
    *,
    mesh: Mesh | None = None,
    transform: Callable[[str, WeightSpec, jax.Array], Any] = lambda path, spec, value: value,
) -> Model:
    """Load a model's configuration and weights.

    Args:
        model: what `locate` finds, or what it has found.
        dtype: of the parameters; the files' own is converted on the device.
        mesh: where the parameters go (`shardings`); each device reads only its part of a matrix. Default: the default
            device.
        transform: (path, specification, array) -> what is to stand for the array, which is then forgotten
            (`quantized.quantizer`). The fingerprint is that of the arrays.

    Raises:
        InputError: if the files are missing, of another architecture, do not fit their own configuration, or hold a
            value that is not finite.
    """
    files = locate(model) if isinstance(model, str) else model
    config, source = open_model(files)
    flat, samples = {}, {}
    for path, spec in weight_table(config).items():
        value = _load_one(source, config, spec, dtype, mesh)
        samples[path] = (value.shape, _sampled(value))
        flat[path] = transform(path, spec, value)
    return Model(files.name, config, unflatten(flat), _digest(config, samples))


def _load_one(source: TensorFiles, config: ModelConfig, spec: WeightSpec, dtype: DType, mesh: Mesh | None) -> jax.Array:
    """One parameter, read layer by layer."""
    home = None if mesh is None else weight_sharding(mesh, spec.shape, spec.axes)
    if not spec.stacked:
        return jnp.asarray(_read(source, spec.hf, dtype, home), dtype)
    shape = (config.num_layers, *spec.shape)
    stack = jnp.zeros(shape, dtype, device=None if home is None else stacked(home))
    for layer, name in enumerate(hf_names(spec, config)):
        stack = _put(stack, _read(source, name, dtype, home), layer)
        # Else the reading would run ahead of the copies, and many tensors wait on the host.
        stack.block_until_ready()
    return stack


def shardings(config: ModelConfig, mesh: Mesh) -> dict[str, NamedSharding]:
    """Where each parameter lives on a mesh (`sharding.partition`): the keys of `weight_table`."""
    homes = {path: weight_sharding(mesh, spec.shape, spec.axes) for path, spec in weight_table(config).items()}
    return {path: stacked(home) if weight_table(config)[path].stacked else home for path, home in homes.items()}


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
    return _digest(config, {path: (value.shape, _sampled(value)) for path, value in flatten(params).items()})


def _digest(config: ModelConfig, samples: dict[str, tuple[tuple[int, ...], jax.Array]]) -> str:
    digest = hashlib.sha256()
    table = weight_table(config)
    for path, (shape, values) in sorted(samples.items()):
        digest.update(f"{table[path].hf} {shape}\n".encode())
        digest.update(np.asarray(values).tobytes())
    return digest.hexdigest()


def _sampled(value: jax.Array) -> jax.Array:
    """Evenly spaced values, in bfloat16."""
    at = np.linspace(0, value.size - 1, min(_FINGERPRINT_SAMPLES, value.size), dtype=np.int64)
    places = tuple(index.astype(np.int32) for index in np.unravel_index(at, value.shape))
    return _pick(value, places)


@jax.jit
def _pick(value: jax.Array, places: tuple[jax.Array, ...]) -> jax.Array:
    return value[places].astype(jnp.bfloat16)


def hf_names(spec: WeightSpec, config: ModelConfig) -> list[str]:
    """The Hugging Face names of a weight, one per layer if it is a stack."""
    return [spec.hf.format(layer) for layer in range(config.num_layers if spec.stacked else 1)]


def _read(source: TensorFiles, name: str, dtype: DType, home: NamedSharding | None) -> np.ndarray | jax.Array:
    """One tensor in the dtype of its file, on the host or in its parts on a mesh; finite in `dtype`."""
    if home is None:
        return _finite(source.read(name), source, name, dtype)
    parts: dict[str, np.ndarray] = {}  # devices may hold the same part

    def part(index: Index | None) -> np.ndarray:
        if str(index) not in parts:
            parts[str(index)] = _finite(source.read(name, index or ()), source, name, dtype)
        return parts[str(index)]

    return jax.make_array_from_callback(source.shape(name), home, part)


def _finite(value: np.ndarray, source: TensorFiles, name: str, dtype: DType) -> np.ndarray:
    """The value, if it is finite.

    Raises:
        InputError: naming file and tensor where it is not, or would not be in `dtype`.
    """
    largest = largest_magnitude(value)
    if np.isfinite(largest) and np.isfinite(largest.astype(jnp.dtype(dtype))):
        return value
    file = source.headers[name].file
    if np.isfinite(largest):
        raise InputError(f"{file}: {name} has values beyond {dtype}; load it in float32")
    raise InputError(
        f"{file}: {name} has values that are not finite (NaN, infinite or beyond float32), as after a training that "
        "diverged; give a checkpoint from before"
    )


@partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, value: np.ndarray | jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, value.astype(stack.dtype), layer, axis=0)


def read_config(files: ModelFiles) -> ModelConfig:
    """A model's configuration alone.

    Raises:
        InputError: if it is missing, of another architecture, or makes no sense.
    """
    if files.format == "gguf":
        return open_gguf_model(files.path)[0]
    path = files.path / "config.json"
    return config_from_hf(read_json(path), path)


def open_model(files: ModelFiles) -> tuple[ModelConfig, TensorFiles]:
    """A model's configuration and its weights under their Hugging Face names, all of them checked and none read.

    Raises:
        InputError: as `load`.
    """
    if files.format == "gguf":
        config, source = open_gguf_model(files.path)
    else:
        path = files.path / "config.json"
        raw = read_json(path)
        config = config_from_hf(raw, path)
        if raw.get("transformers_weights"):
            raise InputError(f"{path}: transformers_weights is not supported; name the weights {WEIGHT_NAMES[0]}")
        if quantized := raw.get("quantization_config"):
            kind = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
            raise InputError(
                f"{path}: quantized weights ({kind}) are not supported; give the original model "
                "(--base-dtype int8 or nf4 quantizes it when it is loaded)"
            )
        config, source = _untied(config, _with_prefix(config, open_tensors(files.path)))
    _check(files, config, source)
    return config, source


def _untied(config: ModelConfig, source: TensorFiles) -> tuple[ModelConfig, TensorFiles]:
    """As transformers reads a tied model whose file holds an output head: a head with other values than the table
    stays its own, and a head without a table is the table too."""
    head = "" if not config.tied else weight_table(replace(config, tied=False))["head.weight"].hf
    if head not in source.names:
        return config, source
    if (table := weight_table(config)["embed.weight"].hf) in source.names:
        return (config if _same(source, table, head) else replace(config, tied=False)), source
    headers = {table if name == head else name: header for name, header in source.headers.items()}
    return config, TensorFiles(headers, lambda name, index: source.read(head if name == table else name, index))


def _same(source: TensorFiles, name: str, other: str) -> bool:
    """Whether two matrices hold the same values, compared a part of the rows at a time."""
    headers = source.headers[name], source.headers[other]
    if headers[0].shape != headers[1].shape or any(len(h.shape) != 2 or h.dtype not in READABLE for h in headers):
        return False
    rows = headers[0].shape[0]
    parts = [(slice(at, min(at + _ROWS_AT_ONCE, rows)),) for at in range(0, rows, _ROWS_AT_ONCE)]
    return all(np.array_equal(source.read(name, part), source.read(other, part)) for part in parts)


def _with_prefix(config: ModelConfig, source: TensorFiles) -> TensorFiles:
    """The same tensors under the names of a model with a head, where they were saved from one without.

    As in transformers: "decoder.layers..." of such a file is "model.decoder.layers...".
    """
    expected = dict(_expected(config))
    prefix = next(iter(expected)).split(".")[0] + "."
    if any(name.startswith(prefix) for name in source.names):
        return source
    own = {prefix + name if prefix + name in expected else name: name for name in source.names}
    headers = {name: source.headers[at] for name, at in own.items()}
    return TensorFiles(headers, lambda name, index: source.read(own[name], index))


def _expected(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    for spec in weight_table(config).values():
        for name in hf_names(spec, config):
            yield name, spec.shape


def _check(files: ModelFiles, config: ModelConfig, source: TensorFiles) -> None:
    """The tensors are exactly those that the configuration asks for."""
    expected = dict(_expected(config))
    if missing := sorted(expected.keys() - source.names):
        inside = min((name for name in source.names if name.endswith(f".{missing[0]}")), default=None)
        hint = f"; it is there as {inside}: save the weights without what their trainer put in front" if inside else ""
        raise InputError(f"{files.path}: {len(missing)} weights are missing, the first is {missing[0]}{hint}")
    ignored = {name for name in source.names if re.fullmatch(family_of(config).IGNORED, name)}
    if config.tied:  # a second copy of the table
        ignored.add(weight_table(replace(config, tied=False))["head.weight"].hf)
    if extra := sorted(source.names - expected.keys() - ignored):
        raise InputError(
            f"{files.path}: unexpected weight {extra[0]} ({len(extra)} in all); "
            "its config.json does not describe these weights, or this variant is not supported"
        )
    for name, shape in expected.items():
        found, dtype, _ = source.headers[name]
        if found != shape:
            said = "config.json says" if files.format == "hf" else "its metadata say"
            raise InputError(f"{files.path}: {name} has shape {list(found)}, {said} {list(shape)}")
        if dtype not in READABLE:
            raise InputError(
                f"{files.path}: {name} is of type {dtype}; supported: {', '.join(READABLE)}; give the original model"
            )


def config_from_hf(raw: dict[str, Any], path: Path) -> ModelConfig:
    """Our configuration from a Hugging Face `config.json`.

    Raises:
        InputError: for another architecture or an option that the forward pass does not implement.
    """
    if raw.get("is_causal", True) is not True:
        raise InputError(
            f"{path}: is_causal is {raw['is_causal']!r}; only models that read from left to right can be read"
        )
    known = {name: family for family in FAMILIES.values() for name in family.MODEL_TYPES}
    if not isinstance(raw.get("model_type"), str) or raw["model_type"] not in known:
        raise InputError(f"{path}: model_type is {raw.get('model_type')!r}; supported: {', '.join(sorted(known))}")
    try:
        return cast(ModelConfig, known[raw["model_type"]].from_hf(raw, path))
    except InputError:  # a ValueError too
        raise
    except KeyError as error:
        raise InputError(f"{path}: the key {error.args[0]!r} is missing") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: a value is of the wrong kind ({error})") from error


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Inverse of `config_from_hf`: what transformers needs to build the model."""
    return family_of(config).to_hf(config)
