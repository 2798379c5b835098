"""LLaMA-family decoder (Touvron et al. 2023): one weight table, one forward pass.

Letters as in `layers`.  The table is the single statement of every weight's name, shape and axes; initialization,
import, export, adapters and Fisher files follow from it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.config import ModelConfig
from e2wm_jax.models.layers import (
    Params,
    attention,
    attention_mask,
    linear,
    lookup,
    matmul,
    rms_norm,
    rotary,
    rotate,
)


class WeightSpec(NamedTuple):
    """One weight: `{}` in a name stands for the layer index, and then the array has a leading layer axis."""

    hf: str
    gguf: str
    shape: tuple[int, ...]  # of one layer, in Hugging Face layout
    axes: tuple[str, ...]

    @property
    def stacked(self) -> bool:
        return "{}" in self.hf


def weight_table(config: ModelConfig) -> dict[str, WeightSpec]:
    """Every weight of the model: path in our tree (dots separate levels) -> its specification."""
    c = config
    queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    linears = {
        # path: (HF module, GGUF name, outputs, inputs, output axis, input axis, has bias)
        "q": ("self_attn.q_proj", "attn_q", queries, c.hidden_size, "heads", "embed", c.attention_bias),
        "k": ("self_attn.k_proj", "attn_k", keys, c.hidden_size, "heads", "embed", c.attention_bias),
        "v": ("self_attn.v_proj", "attn_v", keys, c.hidden_size, "heads", "embed", c.attention_bias),
        "o": ("self_attn.o_proj", "attn_output", c.hidden_size, queries, "embed", "heads", c.attention_bias),
        "gate": ("mlp.gate_proj", "ffn_gate", c.intermediate_size, c.hidden_size, "mlp", "embed", c.mlp_bias),
        "up": ("mlp.up_proj", "ffn_up", c.intermediate_size, c.hidden_size, "mlp", "embed", c.mlp_bias),
        "down": ("mlp.down_proj", "ffn_down", c.hidden_size, c.intermediate_size, "embed", "mlp", c.mlp_bias),
    }
    table = {
        "embed.weight": WeightSpec(
            "model.embed_tokens.weight", "token_embd.weight", (c.vocab_size, c.hidden_size), ("vocab", "embed")
        )
    }
    for name, (hf, gguf, outputs, inputs, out_axis, in_axis, bias) in linears.items():
        table[f"layers.{name}.weight"] = WeightSpec(
            f"model.layers.{{}}.{hf}.weight", f"blk.{{}}.{gguf}.weight", (outputs, inputs), (out_axis, in_axis)
        )
        if bias:
            table[f"layers.{name}.bias"] = WeightSpec(
                f"model.layers.{{}}.{hf}.bias", f"blk.{{}}.{gguf}.bias", (outputs,), (out_axis,)
            )
    for name, hf, gguf in (
        ("attention_norm", "input_layernorm", "attn_norm"),
        ("mlp_norm", "post_attention_layernorm", "ffn_norm"),
    ):
        table[f"layers.{name}.weight"] = WeightSpec(
            f"model.layers.{{}}.{hf}.weight", f"blk.{{}}.{gguf}.weight", (c.hidden_size,), ("embed",)
        )
    table["norm.weight"] = WeightSpec("model.norm.weight", "output_norm.weight", (c.hidden_size,), ("embed",))
    if not c.tied:
        table["head.weight"] = WeightSpec(
            "lm_head.weight", "output.weight", (c.vocab_size, c.hidden_size), ("vocab", "embed")
        )
    return table


class _Context(NamedTuple):
    """What every layer needs besides its own weights."""

    cos: jax.Array  # [B, T, 1, K/2]
    sin: jax.Array
    mask: jax.Array  # [B, 1, T, T]


def _attention_block(config: ModelConfig, x: jax.Array, p: Params, context: _Context) -> jax.Array:
    heads = (*x.shape[:2], -1, config.head_dim)
    q, k, v = (linear(x, p[name]).reshape(heads) for name in ("q", "k", "v"))
    q, k = (rotate(y, context.cos, context.sin) for y in (q, k))
    mixed = attention(q, k, v, context.mask)
    return linear(mixed.reshape(*x.shape[:2], -1), p["o"])


def _mlp_block(x: jax.Array, p: Params) -> jax.Array:
    return linear(jax.nn.silu(linear(x, p["gate"])) * linear(x, p["up"]), p["down"])


def _layer(config: ModelConfig, x: jax.Array, p: Params, context: _Context) -> jax.Array:
    with jax.named_scope("attention"):
        x = x + _attention_block(config, rms_norm(x, p["attention_norm"]["weight"], config.norm_eps), p, context)
    with jax.named_scope("mlp"):
        return x + _mlp_block(rms_norm(x, p["mlp_norm"]["weight"], config.norm_eps), p)


def hidden_states(
    config: ModelConfig,
    params: Params,
    ids: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    *,
    remat: bool = False,
) -> jax.Array:
    """Final normed hidden states [B, T, D] of ids, positions and segments, each [B, T] (`attention_mask`).

    With `remat` the backward pass recomputes each layer from its input instead of keeping its activations.
    """
    x = lookup(ids, params["embed"]["weight"])
    context = _Context(*rotary(positions, config.head_dim, config.rope_theta), attention_mask(segments))

    def body(x: jax.Array, p: Params) -> tuple[jax.Array, None]:
        return _layer(config, x, p, context), None

    x, _ = jax.lax.scan(jax.checkpoint(body) if remat else body, x, params["layers"])
    return rms_norm(x, params["norm"]["weight"], config.norm_eps)


def logits(config: ModelConfig, params: Params, hidden: jax.Array) -> jax.Array:
    """Output scores [..., V] of hidden states [..., D]."""
    with jax.named_scope("head"):
        return matmul(hidden, params["embed" if config.tied else "head"]["weight"])


def initialize(config: ModelConfig, key: jax.Array, dtype: jnp.dtype | str = jnp.float32) -> Params:
    """Random weights: norms 1, biases 0, everything else normal with `initializer_range`."""
    tree: Params = {}
    for index, (path, spec) in enumerate(weight_table(config).items()):
        shape = (config.num_layers, *spec.shape) if spec.stacked else spec.shape
        if path.endswith(".bias"):
            value = jnp.zeros(shape, dtype)
        elif len(spec.shape) == 1:
            value = jnp.ones(shape, dtype)
        else:
            noise = jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
            value = (noise * config.initializer_range).astype(dtype)
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree
