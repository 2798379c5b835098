"""LoRA: low-rank adapters as their own pytree, put where a weight stands.

Letters: L layers, N outputs, D inputs, R rank.  W' = W + s B A with A [R, D] Kaiming-uniform, B [N, R] zero and
s = alpha / R (Hu et al. 2021), or alpha / sqrt(R) (rsLoRA, Kalajdzievski 2023).

    adapters = {"layers.q": {"a": [L, R, D], "b": [L, N, R]}, ...}        trained, float32
    spec     = (TargetSpec("layers.q", ranks=(8, 8, ...), alphas=(32.0, 32.0, ...)), ...)   frozen, hashable
"""

import math
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from e2wm_jax.config import LoraConfig, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.layers import Matrix, Params, matmul
from e2wm_jax.models.weights import flatten, unflatten

Adapters = dict[str, dict[str, jax.Array]]


@dataclass(frozen=True)
class TargetSpec:
    """One adapted stack of matrices: rank and alpha of each layer; both 0 where a layer has no adapter.

    Layers of lower rank than the stack's are padded with zeros, which stay zero: where A and B are both zero, so are
    their gradients.
    """

    path: str  # "layers.q"
    ranks: tuple[int, ...]  # [L]
    alphas: tuple[float, ...]  # [L]
    rslora: bool = False

    @property
    def rank(self) -> int:
        """Rank of the padded stack."""
        return max(self.ranks)

    @property
    def scales(self) -> np.ndarray:
        """s of each layer, [L] float32."""
        denominators = [math.sqrt(rank) if self.rslora else rank for rank in self.ranks]
        return np.array([a / d if d else 0.0 for a, d in zip(self.alphas, denominators, strict=True)], np.float32)


AdapterSpec = tuple[TargetSpec, ...]


def adapter_spec(config: ModelConfig, lora: LoraConfig) -> AdapterSpec:
    """Which matrices `lora` adapts, with their ranks and scales.

    Raises:
        InputError: if the pattern is no regular expression or matches no linear map of the model.
    """
    pattern = ".*" if lora.targets == "all-linear" else lora.targets
    try:
        matcher = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--lora.targets {pattern!r}: not a regular expression ({error})") from error
    if lora.rank < 1:
        raise InputError(f"--lora.rank {lora.rank}: must be at least 1")
    targets = []
    for path, modules in linear_modules(config).items():
        ranks = tuple(lora.rank if matcher.fullmatch(module) else 0 for module in modules)
        if any(ranks):
            alphas = tuple(lora.alpha if rank else 0.0 for rank in ranks)
            targets.append(TargetSpec(path, ranks, alphas, lora.rslora))
    if not targets:
        names = ", ".join(sorted({modules[0] for modules in linear_modules(config).values()}))
        raise InputError(f"--lora.targets {pattern!r} matches no linear map; the whole name must match, e.g. {names}")
    return tuple(targets)


def linear_modules(config: ModelConfig) -> dict[str, list[str]]:
    """Path of each stack of linear maps -> the Hugging Face module name of every layer."""
    return {
        path.removesuffix(".weight"): [
            spec.hf.removesuffix(".weight").format(layer) for layer in range(config.num_layers)
        ]
        for path, spec in weight_table(config).items()
        if spec.stacked and len(spec.shape) == 2
    }


def initialize(config: ModelConfig, spec: AdapterSpec, key: jax.Array) -> Adapters:
    """Fresh adapters: A uniform in +-1/sqrt(D) (Kaiming with a = sqrt 5, as PEFT and torch.nn.Linear), B zero."""
    table, adapters = weight_table(config), {}
    for index, target in enumerate(spec):
        outputs, inputs = table[f"{target.path}.weight"].shape
        bound = 1.0 / math.sqrt(inputs)
        shape = (config.num_layers, target.rank, inputs)
        a = jax.random.uniform(jax.random.fold_in(key, index), shape, jnp.float32, -bound, bound)
        active = np.arange(target.rank)[None, :] < np.asarray(target.ranks)[:, None]
        b = jnp.zeros((config.num_layers, outputs, target.rank), jnp.float32)
        adapters[target.path] = {"a": a * active[..., None], "b": b}
    return adapters


@struct.dataclass
class LoraWeight:
    """W + s B A where a weight matrix stands (models.layers.Matrix); W may itself be any kind of matrix."""

    base: jax.Array | Matrix
    a: jax.Array  # [R, D]
    b: jax.Array  # [N, R]
    scale: jax.Array  # []
    dropout_key: jax.Array | None  # None: no dropout
    dropout: float = struct.field(pytree_node=False)

    def matmul(self, x: jax.Array) -> jax.Array:
        """x W^T + s (dropout(x) A^T) B^T, the factors in float32."""
        keep = None
        if self.dropout_key is not None:
            keep = jax.random.bernoulli(self.dropout_key, 1 - self.dropout, x.shape)
        update = _low_rank(x.astype(jnp.float32), self.a, self.b, self.scale, keep, self.dropout)
        return matmul(x, self.base) + update.astype(x.dtype)


def _drop(x: jax.Array, keep: jax.Array | None, rate: float) -> jax.Array:
    return x if keep is None else jnp.where(keep, x / (1 - rate), 0)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _low_rank(
    x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, keep: jax.Array | None, rate: float
) -> jax.Array:
    """s (dropout(x) A^T) B^T; `keep` marks the inputs that dropout leaves.

    The backward pass is written out because autodiff's order of the product for dB transposes the cotangent [T, N],
    a copy that costs as much as the matrix product of the frozen weight; here only [R, N] is transposed.
    """
    return matmul(scale * matmul(_drop(x, keep, rate), a), b)


def _low_rank_forward(
    x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, keep: jax.Array | None, rate: float
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    inner = scale * matmul(_drop(x, keep, rate), a)
    return matmul(inner, b), (x, inner, a, b, scale, keep)


def _low_rank_backward(
    rate: float, saved: tuple[Any, ...], g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None]:
    x, inner, a, b, scale, keep = saved
    inner_g = scale * jnp.einsum("...n,nr->...r", g, b)
    dx = _drop(jnp.einsum("...r,rd->...d", inner_g, a), keep, rate)
    da = jnp.einsum("...r,...d->rd", inner_g, _drop(x, keep, rate))
    db = jnp.einsum("...r,...n->rn", inner, g).T
    return dx, da, db, None, None


_low_rank.defvjp(_low_rank_forward, _low_rank_backward)


def attach(
    params: Params,
    adapters: Adapters,
    spec: AdapterSpec,
    *,
    dropout: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Params:
    """The parameter tree with a `LoraWeight` in place of every adapted matrix.

    With a `dropout_key`, each matrix and layer drops its own inputs.
    """
    flat: dict[str, Any] = flatten(params)
    for index, target in enumerate(spec):
        path = f"{target.path}.weight"
        layers = len(target.ranks)
        keys = None
        if dropout_key is not None and dropout > 0:
            keys = jax.random.split(jax.random.fold_in(dropout_key, index), layers)
        factors = adapters[target.path]
        flat[path] = LoraWeight(flat[path], factors["a"], factors["b"], jnp.asarray(target.scales), keys, dropout)
    return unflatten(flat)


def merge(params: Params, adapters: Adapters, spec: AdapterSpec) -> Params:
    """The parameter tree with W + s B A multiplied out in float32, in the dtype of W."""
    flat = flatten(params)
    for target in spec:
        path = f"{target.path}.weight"
        flat[path] = (flat[path].astype(jnp.float32) + delta(adapters, target)).astype(flat[path].dtype)
    return unflatten(flat)


def delta(adapters: Adapters, target: TargetSpec) -> jax.Array:
    """s B A of one stack of matrices, [L, N, D]."""
    factors = adapters[target.path]
    return jnp.einsum("l,lnr,lrd->lnd", target.scales, factors["b"], factors["a"])
