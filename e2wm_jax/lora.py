"""LoRA: low-rank adapters as their own pytree, put where a weight stands.

Letters: L layers, N outputs, D inputs, R rank.  W' = W + s B A with A [R, D] Kaiming-uniform, B [N, R] zero and
s = alpha / R (Hu et al. 2021), or alpha / sqrt(R) (rsLoRA, Kalajdzievski 2023).

    adapters = {"layers.q": {"a": [L, R, D], "b": [L, N, R]}, ...}        trained, float32
    spec     = (TargetSpec("layers.q", ranks=(8, 8, ...), alphas=(32.0, 32.0, ...)), ...)   frozen, hashable
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float

from e2wm_jax.config import LoraConfig, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.layers import Matrix, Params, matmul
from e2wm_jax.models.quantized import dense
from e2wm_jax.models.weights import flatten, unflatten
from e2wm_jax.options.choices import Implementation, Remat

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


class Scope(NamedTuple):
    """What is fixed for a run: the model, what is adapted, the mesh; hashable, so that it may be static in a compiled
    step."""

    config: ModelConfig
    spec: AdapterSpec
    mesh: Mesh | None = None
    kernel: Implementation = "xla"  # of the quadratic penalty with a full F
    remat: Remat = "none"  # of forward passes that are differentiated


def adapter_spec(config: ModelConfig, lora: LoraConfig) -> AdapterSpec:
    """Which matrices `lora` adapts, with their ranks and scales.

    Raises:
        InputError: for a bad value, or if the targets, or a pattern, match no linear map of the model.
    """
    wanted, ranks_of, alphas_of = check_lora(lora)
    modules = linear_modules(config)
    everything = [module for names in modules.values() for module in names]
    for one in wanted:
        if not any(one.matches(module) for module in everything):
            examples = ", ".join(sorted({names[0] for names in modules.values()}))
            rule = "the whole name must match" if one.regex else "give a module's name or the end of one"
            raise InputError(f"--lora.targets {one.text!r} matches no linear map; {rule}, e.g. {examples}")
    adapted = {module for module in everything if any(one.matches(module) for one in wanted)}
    for flag, patterns in (("--lora.rank-pattern", ranks_of), ("--lora.alpha-pattern", alphas_of)):
        for key, _ in patterns:
            if not any(ends_with(key, module) for module in adapted):
                raise InputError(f"{flag}: {key!r} matches the end of no adapted module, e.g. {min(adapted)}")
    targets = []
    for path, names in modules.items():
        ranks = tuple(int(_first(ranks_of, name, lora.rank)) if name in adapted else 0 for name in names)
        if any(ranks):
            alphas = tuple(_first(alphas_of, name, lora.alpha) if name in adapted else 0.0 for name in names)
            targets.append(TargetSpec(path, ranks, alphas, lora.rslora))
    return tuple(targets)


@dataclass(frozen=True)
class _Wanted:
    """One name or regular expression of `LoraConfig.targets`."""

    text: str
    regex: bool

    def matches(self, module: str) -> bool:
        if self.regex:
            return re.fullmatch(self.text, module) is not None
        return module == self.text or module.endswith(f".{self.text}")


_Patterns = list[tuple[str, float]]


_MOST_RANK = 1 << 17  # more than any matrix has rows or columns


def check_lora(lora: LoraConfig) -> tuple[list[_Wanted], _Patterns, _Patterns]:
    """What can be judged without a model; returns targets, rank and alpha patterns.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    if lora.rank < 1:
        raise InputError(f"--lora.rank {lora.rank}: must be at least 1")
    if lora.rank > _MOST_RANK:
        raise InputError(f"--lora.rank {lora.rank}: must be at most {_MOST_RANK}")
    if not math.isfinite(lora.alpha):
        raise InputError(f"--lora.alpha {lora.alpha}: must be a finite number")
    ranks = _patterns("--lora.rank-pattern", lora.rank_pattern, "RANK", int, least=1)
    alphas = _patterns("--lora.alpha-pattern", lora.alpha_pattern, "ALPHA", float, least=-math.inf)
    if lora.targets == "all-linear":
        return [_Wanted(".*", True)], ranks, alphas
    # Letters, digits, "_", ".", "," and blanks only: as a regular expression on whole names they match nothing more.
    if re.fullmatch(r"[\w.]+([, ]+[\w.]+)*", lora.targets):
        return [_Wanted(name, False) for name in re.split("[, ]+", lora.targets)], ranks, alphas
    _compiled("--lora.targets", lora.targets)
    return [_Wanted(lora.targets, True)], ranks, alphas


def _patterns(flag: str, text: str, unit: str, number: Callable[[str], float], *, least: float) -> _Patterns:
    """[("q_proj", 4), ...] of "q_proj=4,..."; a pattern may itself hold "," and "="."""
    found, at = [], 0
    while at < len(text):
        pair = re.compile(r"(.+?)=([^=,]+)(?:,|$)").match(text, at)
        if pair is None:
            raise InputError(f"{flag} {text!r}: {text[at:]!r} is not PATTERN={unit}, e.g. q_proj=4,layers.0.*=16")
        _compiled(flag, pair[1], ends_with)
        try:
            value = number(pair[2])
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            rule = "a whole number, 1 or more" if number is int else "a finite number"
            raise InputError(f"{flag} {pair[0]!r}: {unit} must be {rule}")
        found.append((pair[1], value))
        at = pair.end()
    return found


def _compiled(flag: str, pattern: str, matches: Callable[[str, str], object] = re.fullmatch) -> None:
    try:
        matches(pattern, "")
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{flag} {pattern!r}: not a regular expression ({error})") from error


def ends_with(pattern: str, module: str) -> bool:
    """PEFT's rule for keys of rank and alpha patterns: the expression matches the name, or its end from a dot on."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _first(patterns: _Patterns, module: str, default: float) -> float:
    return next((value for key, value in patterns if ends_with(key, module)), default)


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
    dropout_keys: jax.Array | None  # [B], one for each row of x; None: no dropout
    dropout: float = struct.field(pytree_node=False)

    def matmul(self, x: jax.Array) -> jax.Array:
        """x W^T + s (dropout(x) A^T) B^T, the factors in float32."""
        keep = None if self.dropout_keys is None else _kept(self.dropout_keys, self.dropout, x.shape[1:])
        update = _low_rank(x.astype(jnp.float32), self.a, self.b, self.scale, keep, self.dropout)
        return matmul(x, self.base) + update.astype(x.dtype)

    def dense(self) -> jax.Array:
        """W + s B A of one layer or a stack, in float32, without dropout."""
        scale = self.scale[..., None, None]
        return dense(self.base).astype(jnp.float32) + scale * jnp.einsum("...nr,...rd->...nd", self.b, self.a)


def _kept(keys: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Which inputs dropout leaves, [B, *shape] from keys [B].  A row's depend on its key alone: it is treated alike
    wherever it lies on a mesh.

    Two 16-bit draws are cut from each 32 random bits, which on a CPU take longer than the adapter's own products; the
    rate is met to 1 / 131072.
    """
    words = -(-shape[-1] // 2)
    bits = jax.vmap(lambda key: jax.random.bits(key, (*shape[:-1], words), jnp.uint32))(keys)
    halves = jax.lax.bitcast_convert_type(bits, jnp.uint16).reshape(*bits.shape[:-1], 2 * words)
    return halves[..., : shape[-1]] >= round(rate * 2**16)


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
    dropout_keys: jax.Array | None = None,
) -> Params:
    """The parameter tree with a `LoraWeight` in place of every adapted matrix.

    With `dropout_keys`, one for each row [B] of a batch, every matrix and layer drops its own inputs.  Attaching to
    what already has an adapter adds to it; `combine` makes one adapter of several, which costs less.
    """
    flat: dict[str, Any] = flatten(params)
    for index, target in enumerate(spec):
        path = f"{target.path}.weight"
        keys = None
        if dropout_keys is not None and dropout > 0:
            numbers = index * len(target.ranks) + np.arange(len(target.ranks))
            keys = jax.vmap(lambda number: jax.vmap(lambda key: jax.random.fold_in(key, number))(dropout_keys))(numbers)
        factors = adapters[target.path]
        flat[path] = LoraWeight(flat[path], factors["a"], factors["b"], jnp.asarray(target.scales), keys, dropout)
    return unflatten(flat)


def merge(params: Params, adapters: Adapters, spec: AdapterSpec) -> Params:
    """The parameter tree with W + s B A computed in float32, in the dtype of W; in float32 where W is no array, but
    quantized or adapted already."""
    return _shifted(params, adapters, spec, 1.0)


def unmerge(params: Params, adapters: Adapters, spec: AdapterSpec) -> Params:
    """Inverse of `merge` up to the rounding of its sums in the dtype of W; to have W exactly, keep it."""
    return _shifted(params, adapters, spec, -1.0)


def _shifted(params: Params, adapters: Adapters, spec: AdapterSpec, sign: float) -> Params:
    flat = flatten(params)
    for target in spec:
        path = f"{target.path}.weight"
        base = dense(flat[path])
        flat[path] = (base.astype(jnp.float32) + sign * delta(adapters, target)).astype(base.dtype)
    return unflatten(flat)


def combine(
    parts: Sequence[tuple[Adapters, AdapterSpec]], weights: Sequence[float] | None = None
) -> tuple[Adapters, AdapterSpec]:
    """One adapter whose change is the weighted sum of several: sum_k weight_k s_k B_k A_k.

    Exact: the factors stand side by side, so ranks add up, and weights and scales go into A, so that s is 1 (PEFT's
    combination type "cat").  Not for tracing.
    """
    weights = [1.0] * len(parts) if weights is None else weights
    found: dict[str, list[tuple[dict[str, np.ndarray], TargetSpec, float]]] = {}
    for (adapters, spec), weight in zip(parts, weights, strict=True):
        for target in spec:
            found.setdefault(target.path, []).append((jax.tree.map(np.asarray, adapters[target.path]), target, weight))
    combined, targets = {}, []
    for path, members in found.items():
        ranks = tuple(sum(column) for column in zip(*(target.ranks for _, target, _ in members), strict=True))
        layers, inputs = len(ranks), members[0][0]["a"].shape[2]
        a = np.zeros((layers, max(ranks), inputs), np.float32)
        b = np.zeros((layers, members[0][0]["b"].shape[1], max(ranks)), np.float32)
        for layer in range(layers):
            at = 0
            for factors, target, weight in members:
                rank = target.ranks[layer]
                a[layer, at : at + rank] = weight * target.scales[layer] * factors["a"][layer, :rank]
                b[layer, :, at : at + rank] = factors["b"][layer, :, :rank]
                at += rank
        combined[path] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        targets.append(TargetSpec(path, ranks, tuple(map(float, ranks))))
    return combined, tuple(targets)


def difference(adapters: Adapters, anchor: Adapters | None) -> Adapters:
    """s B A - s B* A* as adapters of twice the rank and the same scales; what they change since ``anchor`` (A*, B*).

    ([A; A - A*], [B - B*, B*]) rather than ([A; A*], [B, -B*]): where nothing has changed yet it is exactly zero, and
    a small change is not the difference of two large sums.  Without an anchor, the adapters themselves.
    """
    if anchor is None:
        return adapters
    found = {}
    for path, now in adapters.items():
        then = anchor[path]
        found[path] = {
            "a": jnp.concatenate([now["a"], now["a"] - then["a"]], axis=1),
            "b": jnp.concatenate([now["b"] - then["b"], then["b"]], axis=2),
        }
    return found


def delta(adapters: Adapters, target: TargetSpec) -> Float[Array, "L N D"]:
    """s B A of one stack of matrices."""
    factors = adapters[target.path]
    return jnp.einsum("l,lnr,lrd->lnd", target.scales, factors["b"], factors["a"])
