"""Weights in: Hugging Face directories (safetensors, .bin) and GGUF files -> the parameter tree.

Each source is a mapping from Hugging Face names to arrays read on demand, so that one tensor (one stack of layers) is
in host memory at a time.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.config import DType, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json
from e2wm_jax.model_files import ModelFiles, locate, open_gguf
from e2wm_jax.models.layers import Params
from e2wm_jax.models.llama import WeightSpec, weight_table
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
    config, source = _open_gguf(files) if files.format == "gguf" else _open_directory(files)
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


def _expected(config: ModelConfig, table: dict[str, WeightSpec]) -> Iterable[tuple[str, tuple[int, ...]]]:
    for spec in table.values():
        for layer in range(config.num_layers) if spec.stacked else (0,):
            yield spec.hf.format(layer), spec.shape


def _check(files: ModelFiles, config: ModelConfig, table: dict[str, WeightSpec], source: TensorFiles) -> None:
    """The tensors are exactly those that the configuration asks for."""
    expected = dict(_expected(config, table))
    if missing := sorted(expected.keys() - source.names):
        raise InputError(f"{files.path}: {len(missing)} weights are missing, the first is {missing[0]}")
    ignored = {name for name in source.names if name.endswith("rotary_emb.inv_freq")}
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


# ---------------------------------------------------------------------------------------------- Hugging Face directory


def _open_directory(files: ModelFiles) -> tuple[ModelConfig, TensorFiles]:
    config = config_from_hf(read_json(files.path / "config.json"), files.path / "config.json")
    return config, open_tensors(files.path)


def config_from_hf(raw: dict[str, Any], path: Path) -> ModelConfig:
    """Our configuration from a Hugging Face `config.json`.

    Raises:
        InputError: for another architecture or an option that the forward pass does not implement.
    """
    if raw.get("model_type") != "llama":
        raise InputError(f"{path}: model_type is {raw.get('model_type')!r}; supported: 'llama'")
    rope = {"rope_theta": 10000.0, **(raw.get("rope_parameters") or {})}
    scaling = raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", rope.get("rope_type", "default")))
    if kind not in ("default", None):
        raise InputError(f"{path}: rotary scaling {kind!r} is not supported; supported: none")
    if raw.get("hidden_act", "silu") != "silu":
        raise InputError(f"{path}: hidden_act is {raw['hidden_act']!r}; supported: 'silu'")
    try:
        config = ModelConfig(
            vocab_size=int(raw["vocab_size"]),
            hidden_size=int(raw["hidden_size"]),
            intermediate_size=int(raw["intermediate_size"]),
            num_layers=int(raw["num_hidden_layers"]),
            num_heads=(heads := int(raw["num_attention_heads"])),
            num_kv_heads=int(raw.get("num_key_value_heads") or heads),
            head_dim=int(raw.get("head_dim") or int(raw["hidden_size"]) // max(heads, 1)),
            max_positions=int(raw.get("max_position_embeddings", 2048)),
            rope_theta=float(raw.get("rope_theta", rope["rope_theta"])),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            initializer_range=float(raw.get("initializer_range", 0.02)),
        )
    except KeyError as error:
        raise InputError(f"{path}: the key {error.args[0]!r} is missing") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a size or constant is no number ({error})") from error
    if min(config.num_heads, config.num_kv_heads) < 1 or config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise InputError(
            f"{path}: {config.num_heads} heads, {config.num_kv_heads} key/value heads of size {config.head_dim}: heads "
            "must be a multiple of key/value heads, and their size even"
        )
    return config


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Inverse of `config_from_hf`: what transformers needs to build the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": "silu",
        "initializer_range": config.initializer_range,
    }


# ---------------------------------------------------------------------------------------------------------------- GGUF


def _open_gguf(files: ModelFiles) -> tuple[ModelConfig, TensorFiles]:
    import gguf

    reader = open_gguf(files.path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config_from_gguf(fields, tied="output.weight" not in tensors, path=files.path)
    names = {}
    for spec in weight_table(config).values():
        for layer in range(config.num_layers) if spec.stacked else (0,):
            if spec.gguf.format(layer) in tensors:
                names[spec.hf.format(layer)] = spec.gguf.format(layer)
    if unknown := sorted(tensors.keys() - set(names.values())):
        raise InputError(f"{files.path}: unexpected tensor {unknown[0]}; this variant is not supported")

    def read(name: str) -> np.ndarray:
        tensor = tensors[names[name]]
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if ".q_proj." in name or ".k_proj." in name:
            return _unpermute(value, config.head_dim)
        return value

    return config, TensorFiles(
        frozenset(names), lambda name: tuple(int(n) for n in reversed(tensors[names[name]].shape)), read
    )


def _unpermute(value: np.ndarray, head_dim: int) -> np.ndarray:
    """GGUF interleaves the two halves of each rotary head (2i, 2i + 1), Hugging Face side by side (i, i + K/2)."""
    return value.reshape(-1, head_dim // 2, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def _config_from_gguf(fields: dict[str, Any], *, tied: bool, path: Path) -> ModelConfig:
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise InputError(f"{path}: architecture is {architecture!r}; supported: 'llama'")
    if fields.get("llama.rope.scaling.type", "none") != "none":
        raise InputError(f"{path}: rotary scaling {fields['llama.rope.scaling.type']!r} is not supported")
    try:
        hidden, heads = int(fields["llama.embedding_length"]), int(fields["llama.attention.head_count"])
        return ModelConfig(
            vocab_size=len(fields["tokenizer.ggml.tokens"]),
            hidden_size=hidden,
            intermediate_size=int(fields["llama.feed_forward_length"]),
            num_layers=int(fields["llama.block_count"]),
            num_heads=heads,
            num_kv_heads=int(fields.get("llama.attention.head_count_kv", heads)),
            head_dim=int(fields.get("llama.rope.dimension_count", hidden // heads)),
            max_positions=int(fields["llama.context_length"]),
            rope_theta=float(fields.get("llama.rope.freq_base", 10000.0)),
            norm_eps=float(np.float32(fields["llama.attention.layer_norm_rms_epsilon"])),
            tied=tied,
        )
    except KeyError as error:
        raise InputError(f"{path}: the metadata key {error.args[0]!r} is missing") from error
