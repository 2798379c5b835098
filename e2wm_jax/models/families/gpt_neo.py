"""GPT-Neo decoder (Black et al. 2021).  Letters as in `layers`; what the functions are for: `family`."""

from pathlib import Path
from typing import Any

import jax

from e2wm_jax.config import GPTNeoConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.families import hf_config
from e2wm_jax.models.families.family import Attend
from e2wm_jax.models.families.weight_table import (
    LinearSpec,
    WeightSpec,
    WeightTable,
    layer_norm_weights,
    linear_weights,
)
from e2wm_jax.models.layers import ACTIVATIONS, Params, layer_norm, linear, lookup

MODEL_TYPES = ("gpt_neo",)
IGNORED = r"transformer\.h\.\d+\.attn\.attention\.(bias|masked_bias)"  # causal masks


def weight_table(config: GPTNeoConfig) -> WeightTable:
    """Every weight of the model."""
    c, width = config, config.hidden_size
    to_heads, to_mlp = ("heads", "embed"), ("mlp", "embed")
    linears = (
        LinearSpec("q", "attn.attention.q_proj", "", width, width, to_heads, False),
        LinearSpec("k", "attn.attention.k_proj", "", width, width, to_heads, False),
        LinearSpec("v", "attn.attention.v_proj", "", width, width, to_heads, False),
        LinearSpec("o", "attn.attention.out_proj", "", width, width, to_heads[::-1], True),
        LinearSpec("up", "mlp.c_fc", "", c.intermediate_size, width, to_mlp, True),
        LinearSpec("down", "mlp.c_proj", "", width, c.intermediate_size, to_mlp[::-1], True),
    )
    rows = (c.vocab_size, width)
    table = {
        "embed.weight": WeightSpec("transformer.wte.weight", "", rows, ("vocab", "embed")),
        "positions.weight": WeightSpec("transformer.wpe.weight", "", (c.max_positions, width), ("positions", "embed")),
    }
    table |= linear_weights("transformer.h.{}.", linears)
    table |= layer_norm_weights("layers.attention_norm", "transformer.h.{}.ln_1", width)
    table |= layer_norm_weights("layers.mlp_norm", "transformer.h.{}.ln_2", width)
    table |= layer_norm_weights("norm", "transformer.ln_f", width)
    if not c.tied:
        table["head.weight"] = WeightSpec("lm_head.weight", "", rows, ("vocab", "embed"))
    return table


def embed(config: GPTNeoConfig, params: Params, ids: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, T, D]."""
    del config
    return lookup(ids, params["embed"]["weight"]) + lookup(positions, params["positions"]["weight"])


def context(config: GPTNeoConfig, positions: jax.Array) -> None:
    """Nothing: positions are in the input."""
    del config, positions


def layer(config: GPTNeoConfig, x: jax.Array, p: Params, context: None, attend: Attend) -> tuple[jax.Array, Any]:
    """x + attention, then x + feed-forward, each of the normed x."""
    del context
    with jax.named_scope("attention"):
        normed = layer_norm(x, p["attention_norm"], config.norm_eps)
        heads = (*x.shape[:2], config.num_heads, config.head_dim)
        q, k, v = (linear(normed, p[name]).reshape(heads) for name in ("q", "k", "v"))
        mixed, kept = attend(q, k, v, scale=1.0)  # the published weights were trained without 1 / sqrt(K)
        x = x + linear(mixed.reshape(x.shape), p["o"])
    with jax.named_scope("mlp"):
        normed = layer_norm(x, p["mlp_norm"], config.norm_eps)
        return x + linear(ACTIVATIONS[config.activation](linear(normed, p["up"])), p["down"]), kept


def finish(config: GPTNeoConfig, params: Params, x: jax.Array) -> jax.Array:
    """The last norm."""
    return layer_norm(x, params["norm"], config.norm_eps)


def from_hf(raw: dict[str, Any], path: Path) -> GPTNeoConfig:
    """Our configuration from a Hugging Face `config.json`."""
    values = hf_config.Values(raw, path)
    width, heads = values.size("hidden_size"), values.size("num_heads")
    layers = values.size("num_layers", most=hf_config.MOST_LAYERS)
    return GPTNeoConfig(
        vocab_size=values.size("vocab_size"),
        hidden_size=width,
        intermediate_size=values.size_or("intermediate_size", 4 * width),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hf_config.head_size(width, heads, path),
        max_positions=values.size("max_position_embeddings"),
        tied=values.flag("tie_word_embeddings", True),
        windows=_windows(raw, layers, path),
        initializer_range=values.number("initializer_range", 0.02),
        activation=hf_config.activation(raw, "activation_function", "gelu_new", path),
        norm_eps=values.number("layer_norm_epsilon", 1e-5),
    )


def _windows(raw: dict[str, Any], layers: int, path: Path) -> tuple[int, ...]:
    # Where a file has the expanded list too, transformers goes by that one.
    key = "attention_layers" if raw.get("attention_layers") else "attention_types"
    kinds = raw.get("attention_layers") or [
        kind
        for kinds, times in raw[key]
        for _ in range(min(times, layers + 1))
        for kind in kinds  # [[["global", "local"], 12]]
    ]
    if len(kinds) != layers or set(kinds) - {"global", "local"}:
        raise InputError(f"{path}: {key} is {raw[key]!r}; it must give {layers} layers as 'global' or 'local'")
    window = hf_config.Values(raw, path).size("window_size", 256, least=-1)
    if window < 1 and "local" in kinds:
        raise InputError(f"{path}: window_size is {window}; local layers must see at least 1 token")
    return tuple(window if kind == "local" else 0 for kind in kinds)


def to_hf(config: GPTNeoConfig) -> dict[str, Any]:
    """Inverse of `from_hf`.

    Raises:
        InputError: for windows of several sizes, which the format cannot say.
    """
    windows = config.windows or (0,) * config.num_layers
    sizes = {window for window in windows if window} or {256}
    if len(sizes) > 1:
        raise InputError(f"windows of {sorted(sizes)} tokens: a gpt_neo config.json can only give one size")
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "attention_types": [[["local" if window else "global" for window in windows], 1]],
        "window_size": sizes.pop(),
        "activation_function": config.activation,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.initializer_range,
    }
