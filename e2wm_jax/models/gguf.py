"""Weights in from llama.cpp's GGUF files: LLaMA and Mistral (which it calls llama), Qwen2, Qwen3, GPT-NeoX.

Names, the order of rows and what the metadata mean: llama.cpp's convert_hf_to_gguf.py.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np

from e2wm_jax.config import GPTNeoXConfig, LinearScaling, Llama3Scaling, LlamaConfig, ModelConfig, RopeScaling
from e2wm_jax.errors import InputError
from e2wm_jax.gguf_file import GgufFile
from e2wm_jax.model_files import open_gguf
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.tensor_files import Index, TensorFiles, TensorHeader

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gptneox")
TENSOR_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
_DTYPES = {"F16": "float16", "BF16": "bfloat16"}  # of the others: float32, which holds their values exactly
_ROPE_FACTORS = "rope_freqs.weight"
_NEOX = {
    "embed": "token_embd",
    "layers.qkv": "blk.{}.attn_qkv",
    "layers.o": "blk.{}.attn_output",
    "layers.up": "blk.{}.ffn_up",
    "layers.down": "blk.{}.ffn_down",
    "layers.attention_norm": "blk.{}.attn_norm",
    "layers.mlp_norm": "blk.{}.ffn_norm",
    "norm": "output_norm",
    "head": "output",
}
_AT_ONCE = 2**17  # values that dequantize gets: its own loop over 16 rows takes twice as long, all at once twice too


def open_gguf_model(path: Path) -> tuple[ModelConfig, TensorFiles]:
    """Configuration and weights of a GGUF file, the weights under their Hugging Face names and dequantized.

    Raises:
        InputError: if the file is damaged, or of an architecture, variant or tensor type that is not supported.
    """
    import gguf

    file = open_gguf(path)
    config = _config(file)
    names = {hf: name for hf, name in _names(config).items() if name in file.tensors}
    known = {*names.values()} | ({_ROPE_FACTORS} if isinstance(config, LlamaConfig) else set())
    if unknown := sorted(file.tensors.keys() - known):
        raise InputError(f"{path}: unexpected tensor {unknown[0]}; this variant is not supported")
    kinds = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
    for name, tensor in file.tensors.items():
        if (kind := kinds.get(tensor.kind, f"number {tensor.kind}")) not in TENSOR_TYPES:
            raise InputError(
                f"{path}: {name} is of type {kind}; supported: {', '.join(TENSOR_TYPES)}; "
                "give a file of one of these, or the Hugging Face directory"
            )

    def read(name: str, index: Index) -> np.ndarray:
        tensor, stored = file.tensors[names[name]], file.data(names[name])
        rows: slice | np.ndarray = index[0] if index else slice(None)
        if (order := _row_order(name, config, tensor.shape[0])) is not None:
            rows = order[rows]
        if len(tensor.shape) == 1:
            return _dequantized(stored, tensor.kind)[rows]
        value = _dequantized(stored[rows], tensor.kind)
        return value[:, *index[1:]] if len(index) > 1 else value

    headers = {
        hf: TensorHeader(file.tensors[name].shape, _DTYPES.get(kinds[file.tensors[name].kind], "float32"), path)
        for hf, name in names.items()
    }
    return config, TensorFiles(headers, read)


def _names(config: ModelConfig) -> dict[str, str]:
    """Hugging Face name -> name in a GGUF file, of every tensor."""
    names = {}
    for path, spec in weight_table(config).items():
        module, _, kind = path.rpartition(".")
        name = f"{_NEOX[module]}.{kind}" if isinstance(config, GPTNeoXConfig) else spec.gguf
        for layer in range(config.num_layers if spec.stacked else 1):
            names[spec.hf.format(layer)] = name.format(layer)
    return names


def _row_order(name: str, config: ModelConfig, rows: int) -> np.ndarray | None:
    """Which stored row each row of a Hugging Face tensor is; None if they are the same.

    LLaMA's q and k: the two halves of a head, side by side at Hugging Face (i, i + K/2), alternate (2i, 2i + 1).
    GPT-NeoX's fused map: q, k and v of each head at Hugging Face; all heads' q, then their k, then their v.
    """
    order = np.arange(rows)
    if isinstance(config, GPTNeoXConfig) and ".query_key_value." in name:
        return order.reshape(3, config.num_heads, -1).swapaxes(0, 1).reshape(-1)
    if isinstance(config, LlamaConfig) and config.model_type == "llama" and (".q_proj." in name or ".k_proj." in name):
        return order.reshape(-1, config.head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
    return None


def _dequantized(stored: np.ndarray, kind: int) -> np.ndarray:
    """float32 values [..., columns] of the bytes [..., bytes of a row] of a tensor type."""
    import gguf

    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    shape = (*stored.shape[:-1], stored.shape[-1] // block_bytes * block)
    if kind == gguf.GGMLQuantizationType.F32:
        return np.array(stored.view(np.float32)).reshape(shape)
    blocks = np.asarray(stored).reshape(-1, block_bytes)
    values, step = np.empty((len(blocks), block), np.float32), max(1, _AT_ONCE // block)
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step].reshape(1, -1)
        part = part.view(np.float16) if kind == gguf.GGMLQuantizationType.F16 else part
        values[start : start + step] = gguf.quants.dequantize(part, gguf.GGMLQuantizationType(kind)).reshape(-1, block)
    return values.reshape(shape)


def _config(file: GgufFile) -> ModelConfig:
    path, fields = file.path, {name: field.value for name, field in file.fields.items()}
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(f"{path}: architecture is {architecture!r}; supported: {', '.join(ARCHITECTURES)}")
    own = {name.removeprefix(f"{architecture}."): value for name, value in fields.items()}
    try:
        sizes = _sizes(own, file)
        if architecture == "gptneox":
            return _neox(own, sizes, file)
        return _llama(own, sizes, file, architecture)
    except KeyError as error:
        known = error.args[0] in fields or error.args[0].startswith("tokenizer.")
        key = error.args[0] if known else f"{architecture}.{error.args[0]}"
        raise InputError(f"{path}: the metadata key {key!r} is missing") from error
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: a size or constant in its metadata is no number ({error})") from error


def _sizes(own: dict[str, Any], file: GgufFile) -> dict[str, Any]:
    """What `ModelConfig` holds, and the rotary positions, from the metadata (names without the architecture's)."""
    hidden, heads = int(own["embedding_length"]), int(own["attention.head_count"])
    if hidden < 1 or heads < 1:
        raise InputError(f"{file.path}: embedding_length {hidden} and head_count {heads} must be at least 1")
    theta = float(own.get("rope.freq_base", 10000.0))
    return {
        "vocab_size": len(own["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": int(own["feed_forward_length"]),
        "num_layers": int(own["block_count"]),
        "num_heads": heads,
        "num_kv_heads": int(own.get("attention.head_count_kv", heads)),
        "max_positions": int(own["context_length"]),
        "tied": "output.weight" not in file.tensors,
        "rope_theta": theta,
        "rope_scaling": _linear_scaling(own, file.path),
    }


def _llama(own: dict[str, Any], sizes: dict[str, Any], file: GgufFile, architecture: str) -> LlamaConfig:
    rotated = own.get("rope.dimension_count")
    head_dim = int(own.get("attention.key_length", rotated or sizes["hidden_size"] // sizes["num_heads"]))
    if int(rotated or head_dim) != head_dim or int(own.get("attention.value_length", head_dim)) != head_dim:
        raise InputError(
            f"{file.path}: heads of {head_dim} dimensions for keys, {own.get('attention.value_length', head_dim)} for "
            f"values and {rotated or head_dim} rotated; these must be the same"
        )
    if head_dim < 2 or head_dim % 2 or sizes["num_kv_heads"] < 1 or sizes["num_heads"] % sizes["num_kv_heads"]:
        raise InputError(
            f"{file.path}: {sizes['num_heads']} heads, {sizes['num_kv_heads']} key/value heads of size {head_dim}: "
            "heads must be a multiple of key/value heads, and their size even"
        )
    if own.get("attention.sliding_window"):
        raise InputError(f"{file.path}: a sliding window is not supported in GGUF; give the Hugging Face directory")
    if _ROPE_FACTORS in file.tensors:
        sizes["rope_scaling"] = _llama3_scaling(file, head_dim, sizes["rope_theta"])
    return LlamaConfig(
        **sizes,
        model_type=cast(Any, architecture),
        head_dim=head_dim,
        norm_eps=float(own["attention.layer_norm_rms_epsilon"]),
        attention_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in file.tensors,
        mlp_bias=architecture == "llama" and "blk.0.ffn_gate.bias" in file.tensors,
    )


def _neox(own: dict[str, Any], sizes: dict[str, Any], file: GgufFile) -> GPTNeoXConfig:
    head_dim, rotary_dim = sizes["hidden_size"] // sizes["num_heads"], int(own["rope.dimension_count"])
    if rotary_dim % 2 or not 2 <= rotary_dim <= head_dim:
        raise InputError(
            f"{file.path}: {rotary_dim} of {head_dim} dimensions of a head are rotated; it must be an even number"
        )
    return GPTNeoXConfig(
        **sizes,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        parallel=bool(own.get("use_parallel_residual", True)),
        attention_bias="blk.0.attn_qkv.bias" in file.tensors,
        norm_eps=float(own["attention.layer_norm_epsilon"]),
    )


def _linear_scaling(own: dict[str, Any], path: Path) -> RopeScaling | None:
    kind = own.get("rope.scaling.type", "linear" if "rope.scale_linear" in own else "none")  # the latter: old files
    if kind == "none":
        return None
    if kind != "linear":
        raise InputError(f"{path}: rotary scaling {kind!r} is not supported in GGUF; supported: 'linear', LLaMA 3's")
    factor = float(own["rope.scaling.factor"] if "rope.scaling.type" in own else own["rope.scale_linear"])
    if not factor >= 1:
        raise InputError(f"{path}: rotary scaling by the factor {factor:g}; it must be at least 1")
    return LinearScaling(factor)


def _llama3_scaling(file: GgufFile, head_dim: int, theta: float) -> RopeScaling | None:
    """The file holds what each frequency is divided by; the configuration wants the constants behind it.

    All of LLaMA 3.1, 3.2 and 3.3 share theirs but for the factor, which the slowest frequencies show.
    """
    tensor = file.tensors[_ROPE_FACTORS]
    divisors = _dequantized(file.data(_ROPE_FACTORS), tensor.kind).reshape(-1)
    if np.array_equal(divisors, np.ones_like(divisors)):
        return None
    scaling = Llama3Scaling(float(divisors.max()), low_cycles=1.0, high_cycles=4.0, original_positions=8192)
    cycles = theta ** (-np.arange(0, head_dim, 2) / head_dim) * scaling.original_positions / (2 * np.pi)
    kept = np.clip((cycles - scaling.low_cycles) / (scaling.high_cycles - scaling.low_cycles), 0, 1)
    expected = 1 / (kept + (1 - kept) / scaling.factor)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise InputError(f"{file.path}: {_ROPE_FACTORS} is not LLaMA 3's scaling; give the Hugging Face directory")
    return scaling
