"""What a weight is called, here and in files: each family states its weights once, as a table of these.

Initialization, sharding, import, export, adapters and Fisher files follow from the table. Letters as in `layers`.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from e2wm_jax.models.layers import Params


class WeightSpec(NamedTuple):
    """One weight: `{}` in a name stands for the layer index, and then the array has a leading layer axis."""

    hf: str
    gguf: str  # "" where llama.cpp has no such model
    shape: tuple[int, ...]  # of one layer, in Hugging Face layout
    axes: tuple[str, ...]  # names for sharding: "vocab", "embed", "heads", "head", "mlp", "positions"

    @property
    def stacked(self) -> bool:
        return "{}" in self.hf


WeightTable = dict[str, WeightSpec]  # path in our tree (dots separate levels) -> what it is


class LinearSpec(NamedTuple):
    """A linear map of every layer: its name here, its names in files, sizes, axes, and whether it has a bias."""

    name: str
    hf: str
    gguf: str
    outputs: int
    inputs: int
    axes: tuple[str, str]
    bias: bool


def linear_weights(prefix: str, linears: Iterable[LinearSpec]) -> WeightTable:
    """The weights "layers.<name>.weight" and, if they have one, ".bias" of linear maps; ``prefix`` "model.layers.{}."
    stands before their Hugging Face names."""
    table = {}
    for name, hf, gguf, outputs, inputs, axes, bias in linears:
        at = gguf and f"blk.{{}}.{gguf}"
        table[f"layers.{name}.weight"] = WeightSpec(
            f"{prefix}{hf}.weight", at and f"{at}.weight", (outputs, inputs), axes
        )
        if bias:
            table[f"layers.{name}.bias"] = WeightSpec(f"{prefix}{hf}.bias", at and f"{at}.bias", (outputs,), axes[:1])
    return table


def layer_norm_weights(name: str, hf: str, width: int, gguf: str = "") -> WeightTable:
    """The weights "<name>.weight" and ".bias" of a layer norm, in files ``hf`` and ``gguf`` with the same endings."""
    return {
        f"{name}.{part}": WeightSpec(f"{hf}.{part}", gguf and f"{gguf}.{part}", (width,), ("embed",))
        for part in ("weight", "bias")
    }


def initialize(
    table: WeightTable,
    num_layers: int,
    key: jax.Array,
    *,
    initializer_range: float,
    dtype: jnp.dtype | str = jnp.float32,
) -> Params:
    """Random weights: norms 1, biases 0, everything else normal with `initializer_range`."""
    flat = {}
    for index, (path, spec) in enumerate(table.items()):
        shape = (num_layers, *spec.shape) if spec.stacked else spec.shape
        if path.endswith(".bias"):
            flat[path] = jnp.zeros(shape, dtype)
        elif len(spec.shape) == 1:
            flat[path] = jnp.ones(shape, dtype)
        else:
            noise = jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32)
            flat[path] = (noise * initializer_range).astype(dtype)
    return unflatten_dict(flat, sep=".")
