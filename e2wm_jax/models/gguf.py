"""Weights in from llama.cpp's GGUF files."""

from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.config import LlamaConfig
from e2wm_jax.errors import InputError
from e2wm_jax.model_files import open_gguf
from e2wm_jax.models.llama import weight_table
from e2wm_jax.tensor_files import TensorFiles


def open_gguf_model(path: Path) -> tuple[LlamaConfig, TensorFiles]:
    """Configuration and weights of a GGUF file, the weights under their Hugging Face names and dequantized.

    Raises:
        InputError: if the file is damaged, or of an architecture or variant that is not supported.
    """
    import gguf

    reader = open_gguf(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config_from_gguf(fields, tied="output.weight" not in tensors, path=path)
    names = {}
    for spec in weight_table(config).values():
        for layer in range(config.num_layers) if spec.stacked else (0,):
            if spec.gguf.format(layer) in tensors:
                names[spec.hf.format(layer)] = spec.gguf.format(layer)
    if unknown := sorted(tensors.keys() - set(names.values())):
        raise InputError(f"{path}: unexpected tensor {unknown[0]}; this variant is not supported")

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


def _config_from_gguf(fields: dict[str, Any], *, tied: bool, path: Path) -> LlamaConfig:
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise InputError(f"{path}: architecture is {architecture!r}; supported: 'llama'")
    if fields.get("llama.rope.scaling.type", "none") != "none":
        raise InputError(f"{path}: rotary scaling {fields['llama.rope.scaling.type']!r} is not supported")
    try:
        hidden, heads = int(fields["llama.embedding_length"]), int(fields["llama.attention.head_count"])
        return LlamaConfig(
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
