"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023).

Letters as in `layers`; what the functions are for: `family`.
"""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from e2wm_jax.config import DynamicScaling, GPTNeoXConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.families import hf_config, rope
from e2wm_jax.models.families.family import Attend
from e2wm_jax.models.families.weight_table import (
    LinearSpec,
    WeightSpec,
    WeightTable,
    layer_norm_weights,
    linear_weights,
)
from e2wm_jax.models.layers import ACTIVATIONS, Params, layer_norm, linear, lookup

MODEL_TYPES = ("gpt_neox",)
IGNORED = r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"  # causal masks and rotary frequencies of old files


def weight_table(config: GPTNeoXConfig) -> WeightTable:
    """Every weight of the model.

    "layers.qkv" keeps the order of Hugging Face's files: q, k and v [K, D] of the first head, then of the second.
    """
    # No GGUF names: llama.cpp's files have another order in there.
    c, width = config, config.hidden_size
    to_heads, to_mlp = ("heads", "embed"), ("mlp", "embed")
    linears = (
        LinearSpec("qkv", "attention.query_key_value", "", 3 * width, width, to_heads, c.attention_bias),
        LinearSpec("o", "attention.dense", "", width, width, to_heads[::-1], c.attention_bias),
        LinearSpec("up", "mlp.dense_h_to_4h", "", c.intermediate_size, width, to_mlp, True),
        LinearSpec("down", "mlp.dense_4h_to_h", "", width, c.intermediate_size, to_mlp[::-1], True),
    )
    rows, axes = (c.vocab_size, width), ("vocab", "embed")
    table = {"embed.weight": WeightSpec("gpt_neox.embed_in.weight", "", rows, axes)}
    table |= linear_weights("gpt_neox.layers.{}.", linears)
    table |= layer_norm_weights("layers.attention_norm", "gpt_neox.layers.{}.input_layernorm", width)
    table |= layer_norm_weights("layers.mlp_norm", "gpt_neox.layers.{}.post_attention_layernorm", width)
    table |= layer_norm_weights("norm", "gpt_neox.final_layer_norm", width)
    if not c.tied:
        table["head.weight"] = WeightSpec("embed_out.weight", "", rows, axes)
    return table


def embed(config: GPTNeoXConfig, params: Params, ids: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, T, D]."""
    del config, positions
    return lookup(ids, params["embed"]["weight"])


def context(config: GPTNeoXConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary positions."""
    return rope.rotary(positions, config.rotary_dim, config.rope_theta, config.rope_scaling, config.max_positions)


def layer(
    config: GPTNeoXConfig, x: jax.Array, p: Params, angles: tuple[jax.Array, jax.Array], attend: Attend
) -> tuple[jax.Array, Any]:
    """x + attention(norm(x)) + feed-forward(other norm(x)), or the feed-forward behind the attention."""
    with jax.named_scope("attention"):
        fused = linear(layer_norm(x, p["attention_norm"], config.norm_eps), p["qkv"])
        q, k, v = jnp.split(fused.reshape(*x.shape[:2], config.num_heads, -1), 3, axis=-1)
        mixed, kept = attend(rope.rotate(q, *angles), rope.rotate(k, *angles), v)
        attended = x + linear(mixed.reshape(x.shape), p["o"])
    with jax.named_scope("mlp"):
        normed = layer_norm(x if config.parallel else attended, p["mlp_norm"], config.norm_eps)
        return attended + linear(ACTIVATIONS[config.activation](linear(normed, p["up"])), p["down"]), kept


def finish(config: GPTNeoXConfig, params: Params, x: jax.Array) -> jax.Array:
    """The last norm."""
    return layer_norm(x, params["norm"], config.norm_eps)


def from_hf(raw: dict[str, Any], path: Path) -> GPTNeoXConfig:
    """Our configuration from a Hugging Face `config.json`."""
    values = hf_config.Values(raw, path)
    width, heads = values.size("hidden_size"), values.size("num_attention_heads")
    head_dim, max_positions = hf_config.head_size(width, heads, path), values.size("max_position_embeddings", 2048)
    rotary = rope.from_hf(
        raw, path, max_positions=max_positions, theta_key="rotary_emb_base", share_key="rotary_pct", share=0.25
    )
    rotary_dim = int(head_dim * rotary.share)
    least = 4 if isinstance(rotary.scaling, DynamicScaling) else 2
    if rotary_dim % 2 or not least <= rotary_dim <= head_dim:
        raise InputError(
            f"{path}: rotary_pct is {rotary.share:g}, so {rotary_dim} of {head_dim} dimensions of a head are rotated; "
            f"it must be an even number from {least} to {head_dim}"
        )
    return GPTNeoXConfig(
        vocab_size=values.size("vocab_size"),
        hidden_size=width,
        intermediate_size=values.size("intermediate_size"),
        num_layers=values.size("num_hidden_layers", most=hf_config.MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        max_positions=max_positions,
        tied=values.flag("tie_word_embeddings", False),
        initializer_range=values.number("initializer_range", 0.02),
        rotary_dim=rotary_dim,
        rope_theta=rotary.theta,
        rope_scaling=rotary.scaling,
        parallel=values.flag("use_parallel_residual", True),
        attention_bias=values.flag("attention_bias", True),
        activation=hf_config.activation(raw, "hidden_act", "gelu", path),
        norm_eps=values.number("layer_norm_eps", 1e-5),
    )


def to_hf(config: GPTNeoXConfig) -> dict[str, Any]:
    """Inverse of `from_hf`."""
    share = config.rotary_dim / config.head_dim
    if int(config.head_dim * share) < config.rotary_dim:  # readers round down
        share = math.nextafter(share, 1)
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "rotary_pct": share,
        "rotary_emb_base": config.rope_theta,
        "rope_scaling": rope.scaling_to_hf(config.rope_scaling),
        "use_parallel_residual": config.parallel,
        "attention_bias": config.attention_bias,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.initializer_range,
    }
