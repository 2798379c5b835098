"""OPT decoder (Zhang et al. 2022), the post-norm 350m form too.

Letters as in `layers`, and E the width of the embedding table; what the functions are for: `family`.
"""

from pathlib import Path
from typing import Any, Literal

import jax

from e2wm_jax.config import OPTConfig
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

MODEL_TYPES = ("opt",)
IGNORED = r"(model\.)?decoder\.version"

_NORM_EPS = 1e-5
_FIRST_POSITION = 2  # the table's first two rows are left from fairseq's padding; position 0 is its third row


def weight_table(config: OPTConfig) -> WeightTable:
    """Every weight of the model."""
    c, width, narrow = config, config.hidden_size, config.embedding_size
    to_heads, to_mlp = ("heads", "embed"), ("mlp", "embed")
    linears = (
        LinearSpec("q", "self_attn.q_proj", "", width, width, to_heads, c.bias),
        LinearSpec("k", "self_attn.k_proj", "", width, width, to_heads, c.bias),
        LinearSpec("v", "self_attn.v_proj", "", width, width, to_heads, c.bias),
        LinearSpec("o", "self_attn.out_proj", "", width, width, to_heads[::-1], c.bias),
        LinearSpec("up", "fc1", "", c.intermediate_size, width, to_mlp, c.bias),
        LinearSpec("down", "fc2", "", width, c.intermediate_size, to_mlp[::-1], c.bias),
    )
    rows, positions = (c.vocab_size, narrow), (c.max_positions + _FIRST_POSITION, width)
    decoder = "model.decoder"
    table = {
        "embed.weight": WeightSpec(f"{decoder}.embed_tokens.weight", "", rows, ("vocab", "embed")),
        "positions.weight": WeightSpec(f"{decoder}.embed_positions.weight", "", positions, ("positions", "embed")),
    }
    table |= linear_weights(f"{decoder}.layers.{{}}.", linears)
    if narrow != width:
        table["project_in.weight"] = WeightSpec(f"{decoder}.project_in.weight", "", (width, narrow), ("embed", "embed"))
        table["project_out.weight"] = WeightSpec(
            f"{decoder}.project_out.weight", "", (narrow, width), ("embed", "embed")
        )
    if c.norm_weights:
        table |= layer_norm_weights("layers.attention_norm", f"{decoder}.layers.{{}}.self_attn_layer_norm", width)
        table |= layer_norm_weights("layers.mlp_norm", f"{decoder}.layers.{{}}.final_layer_norm", width)
        if c.norms == "pre":
            table |= layer_norm_weights("norm", f"{decoder}.final_layer_norm", width)
    if not c.tied:
        table["head.weight"] = WeightSpec("lm_head.weight", "", rows, ("vocab", "embed"))
    return table


def embed(config: OPTConfig, params: Params, ids: jax.Array, positions: jax.Array) -> jax.Array:
    """[B, T, D]."""
    x = lookup(ids, params["embed"]["weight"])
    if config.embedding_size != config.hidden_size:
        x = linear(x, params["project_in"])
    return x + lookup(positions + _FIRST_POSITION, params["positions"]["weight"])


def context(config: OPTConfig, positions: jax.Array) -> None:
    """Nothing: positions are in the input."""
    del config, positions


def layer(config: OPTConfig, x: jax.Array, p: Params, context: None, attend: Attend) -> tuple[jax.Array, Any]:
    """x + attention, then x + feed-forward: each of the normed x, or each normed afterwards."""
    del context

    def before(x: jax.Array, norm: str) -> jax.Array:
        return x if config.norms == "post" else layer_norm(x, p.get(norm, {}), _NORM_EPS)

    def after(x: jax.Array, norm: str) -> jax.Array:
        return layer_norm(x, p.get(norm, {}), _NORM_EPS) if config.norms == "post" else x

    with jax.named_scope("attention"):
        normed = before(x, "attention_norm")
        heads = (*x.shape[:2], config.num_heads, config.head_dim)
        q, k, v = (linear(normed, p[name]).reshape(heads) for name in ("q", "k", "v"))
        mixed, kept = attend(q, k, v)
        x = after(x + linear(mixed.reshape(x.shape), p["o"]), "attention_norm")
    with jax.named_scope("mlp"):
        inner = ACTIVATIONS[config.activation](linear(before(x, "mlp_norm"), p["up"]))
        return after(x + linear(inner, p["down"]), "mlp_norm"), kept


def finish(config: OPTConfig, params: Params, x: jax.Array) -> jax.Array:
    """The last norm and the projection to the table's width: [B, T, E]."""
    if config.norms == "pre":
        x = layer_norm(x, params.get("norm", {}), _NORM_EPS)
    return linear(x, params["project_out"]) if config.embedding_size != config.hidden_size else x


def from_hf(raw: dict[str, Any], path: Path) -> OPTConfig:
    """Our configuration from a Hugging Face `config.json`."""
    values = hf_config.Values(raw, path)
    width, heads = values.size("hidden_size"), values.size("num_attention_heads")
    return OPTConfig(
        vocab_size=values.size("vocab_size"),
        hidden_size=width,
        intermediate_size=values.size("ffn_dim"),
        num_layers=values.size("num_hidden_layers", most=hf_config.MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hf_config.head_size(width, heads, path),
        max_positions=values.size("max_position_embeddings"),
        tied=values.flag("tie_word_embeddings", True),
        initializer_range=values.number("init_std", 0.02),
        embedding_size=values.size_or("word_embed_proj_dim", width),
        norms=_norms(raw),
        bias=values.flag("enable_bias", True),
        norm_weights=values.flag("layer_norm_elementwise_affine", True),
        activation=hf_config.activation(raw, "activation_function", "relu", path),
    )


def _norms(raw: dict[str, Any]) -> Literal["pre", "pre-without-last", "post"]:
    if not raw.get("do_layer_norm_before", True):
        return "post"
    return "pre-without-last" if raw.get("_remove_final_layer_norm", False) else "pre"


def to_hf(config: OPTConfig) -> dict[str, Any]:
    """Inverse of `from_hf`."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "ffn_dim": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_positions,
        "word_embed_proj_dim": config.embedding_size,
        "do_layer_norm_before": config.norms != "post",
        "_remove_final_layer_norm": config.norms == "pre-without-last",
        "enable_bias": config.bias,
        "layer_norm_elementwise_affine": config.norm_weights,
        "activation_function": config.activation,
        "tie_word_embeddings": config.tied,
        "init_std": config.initializer_range,
    }
