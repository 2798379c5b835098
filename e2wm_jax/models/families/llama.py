"""LLaMA (Touvron et al. 2023) and the decoders of its build: Mistral, Qwen2, Qwen3.

Letters as in `layers`; what the functions are for: `family`. What sets the four apart: Mistral's layers see a window;
Qwen2 has biases on q, k and v, and some layers may see a window; Qwen3 too, and it norms each head of q and k.
"""

from pathlib import Path
from typing import Any

import jax

from e2wm_jax.config import DynamicScaling, LlamaConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.families import hf_config, rope
from e2wm_jax.models.families.family import Attend
from e2wm_jax.models.families.weight_table import LinearSpec, WeightSpec, WeightTable, linear_weights
from e2wm_jax.models.layers import Params, linear, lookup, rms_norm, swiglu

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
IGNORED = r".*rotary_emb\.inv_freq"


def weight_table(config: LlamaConfig) -> WeightTable:
    """Every weight of the model."""
    c = config
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    to_heads, to_mlp = ("heads", "embed"), ("mlp", "embed")
    output_bias = c.attention_bias and c.model_type != "qwen2"
    linears = (
        LinearSpec("q", "self_attn.q_proj", "attn_q", queries, c.hidden_size, to_heads, c.attention_bias),
        LinearSpec("k", "self_attn.k_proj", "attn_k", keys, c.hidden_size, to_heads, c.attention_bias),
        LinearSpec("v", "self_attn.v_proj", "attn_v", keys, c.hidden_size, to_heads, c.attention_bias),
        LinearSpec("o", "self_attn.o_proj", "attn_output", c.hidden_size, queries, to_heads[::-1], output_bias),
        LinearSpec("gate", "mlp.gate_proj", "ffn_gate", c.intermediate_size, c.hidden_size, to_mlp, c.mlp_bias),
        LinearSpec("up", "mlp.up_proj", "ffn_up", c.intermediate_size, c.hidden_size, to_mlp, c.mlp_bias),
        LinearSpec("down", "mlp.down_proj", "ffn_down", c.hidden_size, c.intermediate_size, to_mlp[::-1], c.mlp_bias),
    )
    norms = {
        "attention_norm": ("input_layernorm", "attn_norm", c.hidden_size, "embed"),
        "mlp_norm": ("post_attention_layernorm", "ffn_norm", c.hidden_size, "embed"),
    }
    if c.model_type == "qwen3":
        norms["q_norm"] = ("self_attn.q_norm", "attn_q_norm", c.head_dim, "head")
        norms["k_norm"] = ("self_attn.k_norm", "attn_k_norm", c.head_dim, "head")
    rows = (c.vocab_size, c.hidden_size)
    table = {"embed.weight": WeightSpec("model.embed_tokens.weight", "token_embd.weight", rows, ("vocab", "embed"))}
    table |= linear_weights("model.layers.{}.", linears)
    for name, (hf, gguf, width, axis) in norms.items():
        table[f"layers.{name}.weight"] = WeightSpec(
            f"model.layers.{{}}.{hf}.weight", f"blk.{{}}.{gguf}.weight", (width,), (axis,)
        )
    table["norm.weight"] = WeightSpec("model.norm.weight", "output_norm.weight", (c.hidden_size,), ("embed",))
    if not c.tied:
        table["head.weight"] = WeightSpec("lm_head.weight", "output.weight", rows, ("vocab", "embed"))
    return table


def embed(config: LlamaConfig, params: Params, ids: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, T, D]."""
    del config, positions
    return lookup(ids, params["embed"]["weight"])


def context(config: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary positions."""
    return rope.rotary(positions, config.head_dim, config.rope_theta, config.rope_scaling, config.max_positions)


def layer(
    config: LlamaConfig, x: jax.Array, p: Params, angles: tuple[jax.Array, jax.Array], attend: Attend
) -> tuple[jax.Array, Any]:
    """x + attention, then x + SwiGLU, each of the normed x."""
    with jax.named_scope("attention"):
        normed = rms_norm(x, p["attention_norm"]["weight"], config.norm_eps)
        heads = (*x.shape[:2], -1, config.head_dim)
        q, k, v = (linear(normed, p[name]).reshape(heads) for name in ("q", "k", "v"))
        if config.model_type == "qwen3":
            q, k = (rms_norm(h, p[name]["weight"], config.norm_eps) for h, name in ((q, "q_norm"), (k, "k_norm")))
        mixed, kept = attend(rope.rotate(q, *angles), rope.rotate(k, *angles), v)
        x = x + linear(mixed.reshape(*x.shape[:2], -1), p["o"])
    with jax.named_scope("mlp"):
        normed = rms_norm(x, p["mlp_norm"]["weight"], config.norm_eps)
        return x + linear(swiglu(linear(normed, p["gate"]), linear(normed, p["up"])), p["down"]), kept


def finish(config: LlamaConfig, params: Params, x: jax.Array) -> jax.Array:
    """The last norm."""
    return rms_norm(x, params["norm"]["weight"], config.norm_eps)


def from_hf(raw: dict[str, Any], path: Path) -> LlamaConfig:
    """Our configuration from a Hugging Face `config.json`; what it leaves out is what transformers takes it for."""
    values = hf_config.Values(raw, path)
    kind = raw["model_type"]
    if raw.get("hidden_act", "silu") != "silu":
        raise InputError(f"{path}: hidden_act is {raw['hidden_act']!r}; supported: 'silu'")
    width, heads = values.size("hidden_size"), values.size("num_attention_heads")
    layers = values.size("num_hidden_layers", most=hf_config.MOST_LAYERS)
    key_heads = {"llama": heads, "mistral": 8, "qwen2": 32, "qwen3": 32}[kind]
    max_positions = values.size(
        "max_position_embeddings", {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}[kind]
    )
    rotary = rope.from_hf(raw, path, max_positions=max_positions)
    if rotary.share != 1:
        raise InputError(f"{path}: partial_rotary_factor is {rotary.share:g}; supported in {kind}: 1")
    config = LlamaConfig(
        model_type=kind,
        vocab_size=values.size("vocab_size"),
        hidden_size=width,
        intermediate_size=values.size("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=values.size_or("num_key_value_heads", heads if "num_key_value_heads" in raw else key_heads),
        head_dim=values.size_or("head_dim", 128 if kind == "qwen3" and "head_dim" not in raw else width // heads),
        max_positions=max_positions,
        tied=values.flag("tie_word_embeddings", False),
        windows=_windows(raw, path, layers),
        initializer_range=values.number("initializer_range", 0.02),
        rope_theta=rotary.theta,
        rope_scaling=rotary.scaling,
        norm_eps=values.number("rms_norm_eps", 1e-6),
        attention_bias=kind == "qwen2" or (kind != "mistral" and values.flag("attention_bias", False)),
        mlp_bias=kind == "llama" and values.flag("mlp_bias", False),
    )
    if config.num_heads % config.num_kv_heads or config.head_dim % 2 or config.head_dim < 2:
        raise InputError(
            f"{path}: {config.num_heads} heads, {config.num_kv_heads} key/value heads of size {config.head_dim}: heads "
            "must be a multiple of key/value heads, and their size even"
        )
    if isinstance(rotary.scaling, DynamicScaling) and config.head_dim < 4:
        raise InputError(f"{path}: rotary scaling 'dynamic' needs heads of at least 4 dimensions")
    return config


def _windows(raw: dict[str, Any], path: Path, layers: int) -> tuple[int, ...]:
    """How many tokens each layer sees (`ModelConfig.windows`)."""
    if raw["model_type"] == "llama":
        return ()
    window = raw.get("sliding_window", 4096)
    if raw["model_type"] != "mistral" and not raw.get("use_sliding_window", False):
        window = None
    if window is not None and (type(window) is not int or window < 1):
        raise InputError(f"{path}: sliding_window is {window}; it must be at least 1, or null for none")
    kinds = raw.get("layer_types")
    if kinds is None:
        first = (
            0 if raw["model_type"] == "mistral" else hf_config.Values(raw, path).size("max_window_layers", 28, least=0)
        )
        kinds = ["sliding_attention" if window and i >= first else "full_attention" for i in range(layers)]
    if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise InputError(
            f"{path}: layer_types is {kinds}; supported: {layers} of 'full_attention', 'sliding_attention'"
        )
    if "sliding_attention" in kinds and not window:
        raise InputError(f"{path}: layer_types has 'sliding_attention', but there is no sliding_window in use")
    if raw["model_type"] == "mistral" and window and "full_attention" in kinds:
        raise InputError(f"{path}: layer_types has 'full_attention' beside a sliding_window, which Mistral has not")
    windows = tuple(window or 0 if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Inverse of `from_hf`.

    Raises:
        InputError: if transformers has no such model under the configuration's `model_type`.
    """
    raw: dict[str, Any] = {
        "architectures": [f"{config.model_type.capitalize()}ForCausalLM"],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope.scaling_to_hf(config.rope_scaling),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "initializer_range": config.initializer_range,
    }
    own: dict[str, dict[str, Any]] = {
        "llama": {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias},
        "mistral": {"sliding_window": max(config.windows, default=None)},
        "qwen2": _windows_to_hf(config),
        "qwen3": {"attention_bias": config.attention_bias, **_windows_to_hf(config)},
    }
    raw |= own[config.model_type]
    if from_hf(raw, Path("config.json")) != config:
        raise InputError(f"no {config.model_type} model of transformers has this combination of options: {config}")
    return raw


def _windows_to_hf(config: LlamaConfig) -> dict[str, Any]:
    windows = config.windows or (0,) * config.num_layers
    return {
        "use_sliding_window": any(windows),
        "sliding_window": max(windows) or None,
        "max_window_layers": next((index for index, window in enumerate(windows) if window), config.num_layers),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }
