"""GPT-J decoder (Wang & Komatsuzaki 2021).  Letters as in `layers`; what the functions are for: `family`."""

from pathlib import Path
from typing import Any

import jax

from e2wm_jax.config import GPTJConfig
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

MODEL_TYPES = ("gptj",)
IGNORED = r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"  # causal masks


def weight_table(config: GPTJConfig) -> WeightTable:
    """Every weight of the model."""
    c, width = config, config.hidden_size
    to_heads, to_mlp = ("heads", "embed"), ("mlp", "embed")
    linears = (
        LinearSpec("q", "attn.q_proj", "", width, width, to_heads, False),
        LinearSpec("k", "attn.k_proj", "", width, width, to_heads, False),
        LinearSpec("v", "attn.v_proj", "", width, width, to_heads, False),
        LinearSpec("o", "attn.out_proj", "", width, width, to_heads[::-1], False),
        LinearSpec("up", "mlp.fc_in", "", c.intermediate_size, width, to_mlp, True),
        LinearSpec("down", "mlp.fc_out", "", width, c.intermediate_size, to_mlp[::-1], True),
    )
    rows = (c.vocab_size, width)
    table = {"embed.weight": WeightSpec("transformer.wte.weight", "", rows, ("vocab", "embed"))}
    table |= linear_weights("transformer.h.{}.", linears)
    table |= layer_norm_weights("layers.norm", "transformer.h.{}.ln_1", width)
    table |= layer_norm_weights("norm", "transformer.ln_f", width)
    if not c.tied:
        table["head.weight"] = WeightSpec("lm_head.weight", "", rows, ("vocab", "embed"))
    # The output head has a bias, which stands with the matrix that it follows: the embedding table where that is it.
    table["embed.bias" if c.tied else "head.bias"] = WeightSpec("lm_head.bias", "", (c.vocab_size,), ("vocab",))
    return table


def embed(config: GPTJConfig, params: Params, ids: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, T, D]."""
    del config, positions
    return lookup(ids, params["embed"]["weight"])


def context(config: GPTJConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary positions."""
    return rope.rotary(positions, config.rotary_dim, 10000.0)


def layer(
    config: GPTJConfig, x: jax.Array, p: Params, angles: tuple[jax.Array, jax.Array], attend: Attend
) -> tuple[jax.Array, Any]:
    """x + attention + feed-forward, both of the same normed x."""
    normed = layer_norm(x, p["norm"], config.norm_eps)
    with jax.named_scope("attention"):
        heads = (*x.shape[:2], config.num_heads, config.head_dim)
        q, k, v = (linear(normed, p[name]).reshape(heads) for name in ("q", "k", "v"))
        mixed, kept = attend(rope.rotate_interleaved(q, *angles), rope.rotate_interleaved(k, *angles), v)
        attended = linear(mixed.reshape(x.shape), p["o"])
    with jax.named_scope("mlp"):
        return x + attended + linear(ACTIVATIONS[config.activation](linear(normed, p["up"])), p["down"]), kept


def finish(config: GPTJConfig, params: Params, x: jax.Array) -> jax.Array:
    """The last norm."""
    return layer_norm(x, params["norm"], config.norm_eps)


def from_hf(raw: dict[str, Any], path: Path) -> GPTJConfig:
    """Our configuration from a Hugging Face `config.json`."""
    values = hf_config.Values(raw, path)
    width, heads = values.size("n_embd"), values.size("n_head")
    head_dim, rotary_dim = hf_config.head_size(width, heads, path), raw.get("rotary_dim", 64)
    # transformers has no working meaning for null, 0, odd or larger numbers either.
    if type(rotary_dim) is not int or rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise InputError(
            f"{path}: rotary_dim is {rotary_dim!r}; it must be an even number from 2 to the size of a head, {head_dim}"
        )
    return GPTJConfig(
        vocab_size=values.size("vocab_size"),
        hidden_size=width,
        intermediate_size=values.size_or("n_inner", 4 * width),
        num_layers=values.size("n_layer", most=hf_config.MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        max_positions=values.size("n_positions"),
        tied=values.flag("tie_word_embeddings", False),
        initializer_range=values.number("initializer_range", 0.02),
        rotary_dim=rotary_dim,
        activation=hf_config.activation(raw, "activation_function", "gelu_new", path),
        norm_eps=values.number("layer_norm_epsilon", 1e-5),
    )


def to_hf(config: GPTJConfig) -> dict[str, Any]:
    """Inverse of `from_hf`."""
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_positions,
        "rotary_dim": config.rotary_dim,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "initializer_range": config.initializer_range,
    }
