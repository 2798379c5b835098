"""Frozen weights in 8 or 4 bits, where a matrix or a table stands; arithmetic in the activations' dtype.

    int8   w ~ s_n c          one scale per row, c in -127..127 (Dettmers et al. 2022, rows only)
    nf4    w ~ s_nb level[c]  one scale per block of 32 inputs, 16 levels, two codes per byte (Dettmers et al. 2023)

Quantized are the matrices of the layers, by qwix, layer by layer; the embedding table and the output head are int8 in
either kind, for they are few and their rows matter; norms, biases and positions stay as they are.  A product reads
the codes of one layer and makes that layer's matrix; no float copy of a stack exists, backwards neither.

Letters as in `layers`; E inputs per scale (32, or the largest power of two that divides D).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol, cast, get_args

import jax
import jax.numpy as jnp
from flax import struct

from e2wm_jax.config import BaseDType, DType, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models import weights
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.families.weight_table import WeightSpec
from e2wm_jax.models.layers import Matrix, Params
from e2wm_jax.models.weights import Model, flatten, unflatten
from e2wm_jax.storage.model_files import ModelFiles

Kind = Literal["int8", "nf4"]
_BLOCK, _SMALLEST_BLOCK = 32, 8
_FEW_ROWS = 64  # at most so many are those of a decoding step

# The 16 levels: quantiles of a normal distribution scaled to [-1, 1] (Dettmers et al. 2023, appendix E).
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class Dense(Protocol):
    """A matrix that can be written out."""

    def dense(self) -> jax.Array:
        """The whole stack of matrices in float32."""
        ...


def dense(w: jax.Array | Matrix) -> jax.Array:
    """An array as it is; anything else that stands for a matrix written out in float32."""
    return w if isinstance(w, jax.Array) else cast(Dense, w).dense()


class _Quantized(Protocol):
    def matmul_inference(self, x: jax.Array) -> jax.Array: ...
    def matmul_forward(self, x: jax.Array) -> jax.Array: ...
    def matmul_backward(self, g: jax.Array) -> jax.Array: ...


@jax.custom_vjp
def _product(x: jax.Array, w: _Quantized) -> jax.Array:
    """x W^T.  Autodiff would keep every layer's float matrix for the backward pass; here it is made again.

    Where nothing is differentiated, a product may round x (`matmul_inference`); gradients are those of exact products.
    """
    return w.matmul_inference(x)


def _product_forward(x: jax.Array, w: _Quantized) -> tuple[jax.Array, _Quantized]:
    return w.matmul_forward(x), w


def _product_backward(w: _Quantized, g: jax.Array) -> tuple[jax.Array, None]:
    return w.matmul_backward(g), None  # the weight is frozen


_product.defvjp(_product_forward, _product_backward)


@struct.dataclass
class Int8Matrix:
    """Rows of int8 codes with a scale each; also a table of rows to look up."""

    codes: jax.Array  # [N, D] int8
    scales: jax.Array  # [N] float32
    activations: DType = struct.field(pytree_node=False, default="float32")  # dtype of the rows that `lookup` gives

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Of what it gives, not of the codes."""
        return jnp.dtype(self.activations)

    def matmul(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> x W^T [..., N]."""
        return _product(x, self)

    def lookup(self, ids: jax.Array) -> jax.Array:
        """ids [B, T] -> rows [B, T, D]."""
        rows = jnp.take(self.codes, ids, axis=0) * jnp.take(self.scales, ids, axis=0)[..., None]
        return rows.astype(self.activations)

    def dense(self) -> jax.Array:
        """W in float32."""
        return self.codes * self.scales[..., None]

    def matmul_inference(self, x: jax.Array) -> jax.Array:
        if x.size <= _FEW_ROWS * x.shape[-1]:
            return jax.lax.platform_dependent(x, cpu=self._few_rows, default=self.matmul_forward)
        return self.matmul_forward(x)

    def matmul_forward(self, x: jax.Array) -> jax.Array:
        y = jnp.einsum("...d,nd->...n", x, self.codes.astype(x.dtype), preferred_element_type=jnp.float32)
        return (y * self.scales).astype(x.dtype)

    def matmul_backward(self, g: jax.Array) -> jax.Array:
        return jnp.einsum("...n,nd->...d", g * self.scales.astype(g.dtype), self.codes.astype(g.dtype))

    def _few_rows(self, x: jax.Array) -> jax.Array:
        """The same in integers, with 16 bits for each number of x: two int8 parts, the second 254 times finer.

        Reading the codes is what a few rows cost, and in integers XLA on a CPU reads them as they are; otherwise it
        makes a float copy of them first.  Error: 1 / 64516 of the largest number of a row of x, at most.
        """
        rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        step = jnp.maximum(jnp.max(jnp.abs(rows), axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny) / 127
        coarse = jnp.round(rows / step)
        fine = jnp.round((rows / step - coarse) * 254)
        parts = jnp.concatenate([coarse, fine]).astype(jnp.int8)
        y = jnp.einsum("md,nd->mn", parts, self.codes, preferred_element_type=jnp.int32).astype(jnp.float32)
        total = (y[: len(rows)] + y[len(rows) :] / 254) * step * self.scales
        return total.astype(x.dtype).reshape(*x.shape[:-1], -1)


@struct.dataclass
class Nf4Matrix:
    """Blocks of 4-bit codes with a scale each."""

    codes: jax.Array  # [N, D / 2] uint8: the even input in the low four bits, the odd one in the high four
    scales: jax.Array  # [N, D / E] bfloat16: with blocks of 32, 4.5 bits per weight in all

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.codes.shape[:-1], 2 * self.codes.shape[-1])

    def matmul(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> x W^T [..., N]."""
        return _product(x, self)

    def dense(self) -> jax.Array:
        """W in float32."""
        codes = jnp.stack([self.codes & 15, self.codes >> 4], axis=-1)
        levels = jnp.asarray(NF4_LEVELS, jnp.float32)[codes.astype(jnp.int32)]
        return (levels.reshape(*self.scales.shape, -1) * self.scales[..., None]).reshape(self.shape)

    def matmul_inference(self, x: jax.Array) -> jax.Array:
        return self.matmul_forward(x)

    def matmul_forward(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("...d,nd->...n", x, self.dense().astype(x.dtype))

    def matmul_backward(self, g: jax.Array) -> jax.Array:
        return jnp.einsum("...n,nd->...d", g, self.dense().astype(g.dtype))


def compute_dtype(base: BaseDType) -> DType:
    """What a base of this kind computes in: its own dtype; where quantized, bfloat16 on accelerators, float32 on CPU
    (which has no fast bfloat16 products)."""
    if base == "float32" or base == "bfloat16":
        return base
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def load(model: str | ModelFiles, base: BaseDType) -> Model:
    """`weights.load` as a base of this kind; the fingerprint is that of the weights before they are quantized.

    Raises:
        InputError: as `weights.load` and `quantize`.
    """
    return weights.load(model, compute_dtype(base), transform=quantizer(base))


def quantizer(base: BaseDType) -> Callable[[str, WeightSpec, Any], Any]:
    """(path, specification, array) -> what stands for it in a base of this kind: the last step of loading a weight.

    The array ([L, N, D] where stacked) may be a numpy array: one layer is on the device at a time.
    """
    activations = compute_dtype(base)

    def transform(path: str, spec: WeightSpec, array: Any) -> Any:
        kind = _kind(spec, base)
        return jnp.asarray(array, activations) if kind is None else quantize(array, kind, activations, name=path)

    return transform


def quantize_params(params: Params, config: ModelConfig, base: BaseDType) -> Params:
    """The parameters as a base of this kind; weights are taken out of ``params``, which is empty afterwards, so that
    each float array goes when its codes are there."""
    flat, table, transform = flatten(params), weight_table(config), quantizer(base)
    params.clear()
    return unflatten({path: transform(path, table[path], flat.pop(path)) for path in list(flat)})


def quantize(array: Any, kind: Kind, activations: DType = "float32", *, name: str = "") -> Int8Matrix | Nf4Matrix:
    """array [N, D] or [L, N, D] -> its codes and scales.

    Raises:
        InputError: if qwix is not installed, or for nf4, if D has no block size.
    """
    block = math.gcd(array.shape[-1], _BLOCK)
    if kind == "nf4" and block < _SMALLEST_BLOCK:
        raise InputError(
            f"--base-dtype nf4: {name} has {array.shape[-1]} inputs, no multiple of {_SMALLEST_BLOCK}; use int8"
        )
    layers = array if array.ndim == 3 else array[None]
    pairs = [_quantize(jnp.asarray(layer), kind, block, _qwix()) for layer in layers]
    codes, scales = (jnp.stack(parts) if array.ndim == 3 else parts[0] for parts in zip(*pairs, strict=True))
    return Int8Matrix(codes, scales, activations) if kind == "int8" else Nf4Matrix(codes, scales)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _quantize(w: jax.Array, kind: Kind, block: int, qwix_quantize: Callable[..., Any]) -> tuple[jax.Array, jax.Array]:
    w = w.astype(jnp.float32)
    if kind == "int8":
        found = qwix_quantize(w, jnp.int8, channelwise_axes=[0])
        return found.qvalue, found.scale[:, 0]
    found = qwix_quantize(w, "nf4", channelwise_axes=[0], tiled_axes={1: block}, scale_dtype=jnp.bfloat16)
    # qwix's uint4 takes a whole byte on CPU.
    codes = found.qvalue.astype(jnp.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4, found.scale


def _kind(spec: WeightSpec, base: BaseDType) -> Kind | None:
    if base not in get_args(Kind) or len(spec.shape) != 2:
        return None
    if spec.stacked:
        return cast(Kind, base)
    return "int8" if spec.axes[0] == "vocab" else None


def _qwix() -> Callable[..., Any]:
    """Imported on use: it brings all of flax, which nothing else here needs."""
    try:
        import qwix
    except ImportError as error:
        raise InputError(f"--base-dtype int8 and nf4 need qwix ({error}); `pip install qwix`") from error
    return cast(Callable[..., Any], qwix.quantize)
