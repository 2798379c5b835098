"""Weights in from llama.cpp's GGUF files: LLaMA and Mistral (which it calls llama), Qwen2, Qwen3, GPT-NeoX.

Names, the order of rows and what the metadata mean: llama.cpp's convert_hf_to_gguf.py.
"""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np

from e2wm_jax.config import GPTNeoXConfig, LinearScaling, Llama3Scaling, LlamaConfig, ModelConfig, RopeScaling
from e2wm_jax.errors import InputError
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.families.hf_config import MOST_LAYERS, Values, head_size
from e2wm_jax.storage.gguf_file import GgufFile
from e2wm_jax.storage.model_files import open_gguf
from e2wm_jax.storage.tensor_files import Index, TensorFiles, TensorHeader

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
# Metadata that changes what a model computes, and the values that do not.
_PLAIN = {
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (0, 1),
    **dict.fromkeys(("attention.scale", "attn_logit_softcapping", "final_logit_softcapping", "logit_scale"), (0,)),
    **dict.fromkeys(("embedding_scale", "residual_scale", "expert_count"), (0,)),
}
_AT_ONCE = 2**17  # values that dequantize gets: its own loop over 16 rows takes twice as long, all at once twice too


def open_gguf_model(path: Path) -> tuple[ModelConfig, TensorFiles]:
    """Configuration and weights of a GGUF file, the weights under their Hugging Face names and dequantized.

    Raises:
        InputError: if the file is damaged, or of an architecture, variant or tensor type that is not supported.
    """
    import gguf

    file = open_gguf(path)
    kinds = {int(kind): kind.name for kind in gguf.GGMLQuantizationType}
    for name, tensor in file.tensors.items():
        if (kind := kinds.get(tensor.kind, f"number {tensor.kind}")) not in TENSOR_TYPES:
            raise InputError(
                f"{tensor.path}: {name} is of type {kind}; supported: {', '.join(TENSOR_TYPES)}; "
                "give a file of one of these, or the Hugging Face directory"
            )
    config = _config(file)
    table = file.tensors.get("token_embd.weight")
    if table is not None and table.shape[0] != config.vocab_size:
        raise InputError(
            f"{path}: token_embd.weight has {table.shape[0]} rows, tokenizer.ggml.tokens {config.vocab_size} tokens; "
            "these must be the same, convert the model again"
        )
    names = {hf: name for hf, name in _names(config).items() if name in file.tensors}
    known = {*names.values()} | ({_ROPE_FACTORS} if isinstance(config, LlamaConfig) else set())
    if unknown := sorted(file.tensors.keys() - known):
        raise InputError(
            f"{file.tensors[unknown[0]].path}: unexpected tensor {unknown[0]}; this variant is not supported"
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
        hf: TensorHeader(
            file.tensors[name].shape, _DTYPES.get(kinds[file.tensors[name].kind], "float32"), file.tensors[name].path
        )
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
    own = Values({name.removeprefix(f"{architecture}."): value for name, value in fields.items()}, path)
    try:
        sizes = _sizes(own, file)
        if architecture == "gptneox":
            return _neox(own, sizes, file)
        return _llama(own, sizes, file, architecture)
    except KeyError as error:
        known = error.args[0] in fields or error.args[0].startswith("tokenizer.")
        key = error.args[0] if known else f"{architecture}.{error.args[0]}"
        raise InputError(f"{path}: the metadata key {key!r} is missing") from error
    except InputError:  # a ValueError too
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: a value in its metadata is of the wrong kind ({error})") from error


def _sizes(own: Values, file: GgufFile) -> dict[str, Any]:
    """What `ModelConfig` holds, and the rotary positions, from the metadata (names without the architecture's)."""
    if not isinstance(tokens := own.raw["tokenizer.ggml.tokens"], list) or not tokens:
        raise InputError(f"{file.path}: tokenizer.ggml.tokens is no list of tokens")
    for key, plain in _PLAIN.items():
        if (value := own.raw.get(key, plain[0])) not in plain:
            raise InputError(
                f"{file.path}: {key} is {value!r}, which is not supported; give the Hugging Face directory"
            )
    heads = own.size("attention.head_count")
    return {
        "vocab_size": len(tokens),
        "hidden_size": own.size("embedding_length"),
        "intermediate_size": own.size("feed_forward_length"),
        "num_layers": own.size("block_count", most=MOST_LAYERS),
        "num_heads": heads,
        "num_kv_heads": own.size("attention.head_count_kv", heads),
        "max_positions": own.size("context_length"),
        "tied": "output.weight" not in file.tensors,
        "rope_theta": own.number("rope.freq_base", 10000.0, least=1.0),
        "rope_scaling": _linear_scaling(own),
    }


def _llama(own: Values, sizes: dict[str, Any], file: GgufFile, architecture: str) -> LlamaConfig:
    rotated = own.size("rope.dimension_count", sizes["hidden_size"] // sizes["num_heads"], least=0)
    head_dim = own.size("attention.key_length", rotated, least=0)
    value_dim = own.size("attention.value_length", head_dim)
    if (rotated if "rope.dimension_count" in own.raw else head_dim) != head_dim or value_dim != head_dim:
        raise InputError(
            f"{file.path}: heads of {head_dim} dimensions for keys, {value_dim} for "
            f"values and {rotated} rotated; these must be the same"
        )
    if head_dim < 2 or head_dim % 2 or sizes["num_heads"] % sizes["num_kv_heads"]:
        raise InputError(
            f"{file.path}: {sizes['num_heads']} heads, {sizes['num_kv_heads']} key/value heads of size {head_dim}: "
            "heads must be a multiple of key/value heads, and their size even"
        )
    if own.raw.get("attention.sliding_window"):
        raise InputError(f"{file.path}: a sliding window is not supported in GGUF; give the Hugging Face directory")
    if _ROPE_FACTORS in file.tensors:
        if sizes["rope_scaling"] is not None:
            raise InputError(f"{file.path}: both {_ROPE_FACTORS} and a linear rotary scaling, which is not supported")
        sizes["rope_scaling"] = _llama3_scaling(file, head_dim, sizes["rope_theta"])
    return LlamaConfig(
        **sizes,
        model_type=cast(Any, architecture),
        head_dim=head_dim,
        norm_eps=own.number("attention.layer_norm_rms_epsilon"),
        attention_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in file.tensors,
        mlp_bias=architecture == "llama" and "blk.0.ffn_gate.bias" in file.tensors,
    )


def _neox(own: Values, sizes: dict[str, Any], file: GgufFile) -> GPTNeoXConfig:
    head_dim = head_size(sizes["hidden_size"], sizes["num_heads"], file.path)
    rotary_dim = own.size("rope.dimension_count")
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise InputError(
            f"{file.path}: {rotary_dim} of {head_dim} dimensions of a head are rotated; it must be an even number"
        )
    if sizes["num_kv_heads"] != sizes["num_heads"]:
        raise InputError(f"{file.path}: {sizes['num_kv_heads']} key/value heads of {sizes['num_heads']} in gptneox")
    return GPTNeoXConfig(
        **sizes,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        parallel=own.flag("use_parallel_residual", True),
        attention_bias="blk.0.attn_qkv.bias" in file.tensors,
        norm_eps=own.number("attention.layer_norm_epsilon"),
    )


def _linear_scaling(own: Values) -> RopeScaling | None:
    # As in llama.cpp: linear unless another type is named; the second key is that of old files.
    key = next((key for key in ("rope.scaling.factor", "rope.scale_linear") if own.raw.get(key)), None)
    kind = own.raw.get("rope.scaling.type", "linear" if key else "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise InputError(
            f"{own.path}: rotary scaling {kind!r} is not supported in GGUF; supported: 'linear', LLaMA 3's"
        )
    factor = own.number(key or "rope.scaling.factor", least=-math.inf)
    if factor < 1:
        raise InputError(f"{own.path}: rotary scaling by the factor {factor:g}; it must be at least 1")
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
