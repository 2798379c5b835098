"""sum F (s B A)^2 with its gradients, from one read of F and without ever holding B A.

With P = s^2 F * (B A):   value = sum P * (B A),   dB = 2 P A^T,   dA = 2 B^T P.

All three follow from P, tile by tile, so nothing larger than a tile is stored.  Autodiff of the plain expression reads
and writes matrices of F's size eight times.

Letters: L layers, N outputs, D inputs, R rank.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.storage import StoredFisher, decode
from e2wm_jax.options.choices import Implementation

Products = tuple[jax.Array, jax.Array]  # B^T (F * B A), (F * B A) A^T

# Elements of a tile: half a core's second-level cache; elsewhere enough to keep the device busy.
_CPU_TILE, _TILE = 2**17, 2**21


def weighted_square(
    a: jax.Array, b: jax.Array, fisher: StoredFisher, scales: jax.Array, *, implementation: Implementation = "xla"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """sum over layers of F * (s B A)^2, and its gradients with respect to A and B.

    Args:
        a: [L, R, D] float32.
        b: [L, N, R] float32.
        fisher: [L, N, D] in any storage type; read where it is, never converted as a whole.
        scales: [L], the s of each layer.
        implementation: "xla" runs everywhere and is what the others are tested against; "pallas_tpu" and "mosaic_gpu"
            (Hopper) are kernels that have been lowered and interpreted, not yet measured on their devices.

    Returns:
        The value [], dA [L, R, D] and dB [L, N, R], float32.
    """
    a, b, scales = (x.astype(jnp.float32) for x in (a, b, scales))
    da, db = _implementation(implementation)(a, b, fisher)
    factor = jnp.square(scales)[:, None, None]
    value = jnp.sum(factor[..., 0] * jnp.einsum("lnr,lnr->ln", db, b))
    return value, 2 * factor * da, 2 * factor * db


def check_implementation(flag: str, name: Implementation) -> None:
    """Refuse a kernel whose device is not here.

    Raises:
        InputError: naming the flag, the kernel, its device and the one there is.
    """
    needed, here = {"pallas_tpu": "tpu", "mosaic_gpu": "gpu"}.get(name), jax.default_backend()
    if needed is not None and needed != here:
        raise InputError(f"{flag} {name}: is a kernel for a {needed.upper()}, and this runs on {here}; use xla")


def _implementation(name: Implementation) -> Callable[[jax.Array, jax.Array, StoredFisher], Products]:
    # Imported when asked for: Pallas takes half a second, and not every installation has all of its backends.
    if name == "pallas_tpu":
        from e2wm_jax.kernels.weighted_square_tpu import products as on_tpu

        return on_tpu
    if name == "mosaic_gpu":
        from e2wm_jax.kernels.weighted_square_hopper import products as on_hopper

        return on_hopper
    return _products


def _products(a: jax.Array, b: jax.Array, fisher: StoredFisher) -> Products:
    """B^T (F * B A) [L, R, D] and (F * B A) A^T [L, N, R]: the gradients without 2 s^2."""
    return jax.lax.platform_dependent(
        a, b, fisher, cpu=partial(_tiled, tile=_CPU_TILE), default=partial(_tiled, tile=_TILE)
    )


def _tiled(a: jax.Array, b: jax.Array, fisher: StoredFisher, *, tile: int) -> Products:
    layers, outputs, rank = b.shape
    inputs = a.shape[2]
    rows = min(outputs, max(8, tile // inputs // 8 * 8))
    whole = outputs - outputs % rows

    def part(layer: jax.Array, start: jax.Array | int, count: int) -> tuple[jax.Array, jax.Array]:
        def cut(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(x, (layer, start, 0), (1, count, x.shape[2]))[0]

        a_layer, b_part = jax.lax.dynamic_index_in_dim(a, layer, keepdims=False), cut(b)
        pull = decode(jax.tree.map(cut, fisher)) * _dot("nr,rd->nd", b_part, a_layer)
        return _dot("nr,nd->rd", b_part, pull), _dot("nd,rd->nr", pull, a_layer)

    # Indices are scanned, not F itself: a slice that a scan hands over is copied before it is used.
    def one_layer(_: None, layer: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array]]:
        def one_part(da: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
            more, db = part(layer, start, rows)
            return da + more, db

        da, db = jax.lax.scan(one_part, jnp.zeros((rank, inputs)), jnp.arange(0, whole, rows))
        db = db.reshape(whole, rank)
        if whole < outputs:
            more, rest = part(layer, whole, outputs - whole)
            da, db = da + more, jnp.concatenate([db, rest])
        return None, (da, db)

    return jax.lax.scan(one_layer, None, jnp.arange(layers))[1]


def _dot(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """In full float32: GPUs and TPUs would round to fewer bits by default."""
    return jnp.einsum(subscripts, x, y, precision=jax.lax.Precision.HIGHEST)
