"""LLaMA-family decoder (Touvron et al. 2023).  Letters as in `layers`; what the functions are for: `family`."""

from pathlib import Path
from typing import Any

import jax

from e2wm_jax.config import LlamaConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.family import Attend
from e2wm_jax.models.layers import Params, linear, lookup, rms_norm, rotary, rotate
from e2wm_jax.models.weight_table import LinearSpec, WeightSpec, WeightTable, linear_weights

MODEL_TYPES = ("llama",)
IGNORED = r".*rotary_emb\.inv_freq"


def weight_table(config: LlamaConfig) -> WeightTable:
    """Every weight of the model."""
    c = config
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    to_heads, to_mlp = ("heads", "embed"), ("mlp", "embed")
    linears = (
        LinearSpec("q", "self_attn.q_proj", "attn_q", queries, c.hidden_size, to_heads, c.attention_bias),
        LinearSpec("k", "self_attn.k_proj", "attn_k", keys, c.hidden_size, to_heads, c.attention_bias),
        LinearSpec("v", "self_attn.v_proj", "attn_v", keys, c.hidden_size, to_heads, c.attention_bias),
        LinearSpec("o", "self_attn.o_proj", "attn_output", c.hidden_size, queries, to_heads[::-1], c.attention_bias),
        LinearSpec("gate", "mlp.gate_proj", "ffn_gate", c.intermediate_size, c.hidden_size, to_mlp, c.mlp_bias),
        LinearSpec("up", "mlp.up_proj", "ffn_up", c.intermediate_size, c.hidden_size, to_mlp, c.mlp_bias),
        LinearSpec("down", "mlp.down_proj", "ffn_down", c.hidden_size, c.intermediate_size, to_mlp[::-1], c.mlp_bias),
    )
    norms = {
        "attention_norm": ("input_layernorm", "attn_norm"),
        "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    }
    width, rows = (c.hidden_size,), (c.vocab_size, c.hidden_size)
    table = {"embed.weight": WeightSpec("model.embed_tokens.weight", "token_embd.weight", rows, ("vocab", "embed"))}
    table |= linear_weights("model.layers.{}.", linears)
    for name, (hf, gguf) in norms.items():
        table[f"layers.{name}.weight"] = WeightSpec(
            f"model.layers.{{}}.{hf}.weight", f"blk.{{}}.{gguf}.weight", width, ("embed",)
        )
    table["norm.weight"] = WeightSpec("model.norm.weight", "output_norm.weight", width, ("embed",))
    if not c.tied:
        table["head.weight"] = WeightSpec("lm_head.weight", "output.weight", rows, ("vocab", "embed"))
    return table


def embed(config: LlamaConfig, params: Params, ids: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, T, D]."""
    del config, positions
    return lookup(ids, params["embed"]["weight"])


def context(config: LlamaConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary positions."""
    return rotary(positions, config.head_dim, config.rope_theta)


def layer(
    config: LlamaConfig, x: jax.Array, p: Params, angles: tuple[jax.Array, jax.Array], attend: Attend
) -> tuple[jax.Array, Any]:
    """x + attention, then x + SwiGLU, each of the normed x."""
    with jax.named_scope("attention"):
        normed = rms_norm(x, p["attention_norm"]["weight"], config.norm_eps)
        heads = (*x.shape[:2], -1, config.head_dim)
        q, k, v = (linear(normed, p[name]).reshape(heads) for name in ("q", "k", "v"))
        mixed, kept = attend(rotate(q, *angles), rotate(k, *angles), v)
        x = x + linear(mixed.reshape(*x.shape[:2], -1), p["o"])
    with jax.named_scope("mlp"):
        normed = rms_norm(x, p["mlp_norm"]["weight"], config.norm_eps)
        return x + linear(jax.nn.silu(linear(normed, p["gate"])) * linear(normed, p["up"]), p["down"]), kept


def finish(config: LlamaConfig, params: Params, x: jax.Array) -> jax.Array:
    """The last norm."""
    return rms_norm(x, params["norm"]["weight"], config.norm_eps)


def from_hf(raw: dict[str, Any], path: Path) -> LlamaConfig:
    """Our configuration from a Hugging Face `config.json`."""
    rope = {"rope_theta": 10000.0, **(raw.get("rope_parameters") or {})}
    scaling = raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", rope.get("rope_type", "default")))
    if kind not in ("default", None):
        raise InputError(f"{path}: rotary scaling {kind!r} is not supported; supported: none")
    if raw.get("hidden_act", "silu") != "silu":
        raise InputError(f"{path}: hidden_act is {raw['hidden_act']!r}; supported: 'silu'")
    heads = int(raw["num_attention_heads"])
    config = LlamaConfig(
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=heads,
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
    if min(config.num_heads, config.num_kv_heads) < 1 or config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise InputError(
            f"{path}: {config.num_heads} heads, {config.num_kv_heads} key/value heads of size {config.head_dim}: heads "
            "must be a multiple of key/value heads, and their size even"
        )
    return config


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """Inverse of `from_hf`."""
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
