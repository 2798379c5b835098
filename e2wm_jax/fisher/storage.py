"""F in less memory: as it is, in 16 bits, or in 8.

    float32    4 bytes      exact
    bfloat16   2 bytes      each entry rounded to 8 significant bits: relative error of an entry up to 2^-9
    uint8      1.06 bytes   codes of sqrt(F): F = (scale c)^2 with c in 0..255 and one scale per block of 64 inputs

F spans many orders of magnitude, and an entry matters by its size: codes of the square root spend the 8 bits where the
penalty feels them.  An entry is off by at most scale^2 (c + 1/4), so below (max F of its block) / 260000 it is 0.
The penalty's gradient with random adapters is off by 3e-4 to 1e-3 in uint8, by 1e-3 in bfloat16 (SmolLM2's q and v).
Adapters trained under a strong penalty avoid the large entries, and what is left of the penalty comes from those that
8 bits know less well: where it is a fortieth of what it would be for an indifferent change, uint8 is off by 1e-2.
bfloat16 is not affected.

`encode` runs once, on the host, before F is written. `decode` works on any part of F that holds whole rows: the penalty
decodes tile by tile inside its loop.

Letters: N outputs, D inputs.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from e2wm_jax.options.choices import FisherDType

BLOCK = 64  # inputs that share a scale
_LARGEST = 255


@struct.dataclass
class SquareRootCodes:
    """F = (scale * code)^2; every block of `BLOCK` inputs has its scale, the last block of a row may be shorter."""

    codes: jax.Array  # [..., N, D] uint8
    scales: jax.Array  # [..., N, ceil(D / BLOCK)] float32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape


@struct.dataclass
class Bfloat16Bits:
    """bfloat16 numbers as their bits.

    XLA's CPU backend has no bfloat16 slices: it would convert the whole of F to float32 before a loop that reads it
    in tiles, three times the memory that the format saves.  Bits are sliced as they are.
    """

    bits: jax.Array  # [..., N, D] uint16

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape


StoredFisher = jax.Array | Bfloat16Bits | SquareRootCodes
Fisher = Mapping[str, StoredFisher]  # "layers.q.weight" -> [L, N, D]


def encode(fisher: jax.Array | np.ndarray, dtype: FisherDType) -> StoredFisher:
    """F in the given type, computed on the host: arrays of numpy.

    Args:
        fisher: [..., D] float32, finite and not negative.
    """
    values: Any = np.asarray(fisher, np.float32)
    if dtype == "float32":
        return values
    if dtype == "bfloat16":
        return Bfloat16Bits(values.astype(jnp.bfloat16).view(np.uint16))
    inputs = values.shape[-1]
    root = np.pad(np.sqrt(values), [(0, 0)] * (values.ndim - 1) + [(0, -inputs % BLOCK)])
    root = root.reshape(*root.shape[:-1], -1, BLOCK)
    scales = root.max(axis=-1) / np.float32(_LARGEST)
    codes: Any = np.rint(root / np.where(scales > 0, scales, np.float32(1))[..., None]).astype(np.uint8)
    codes = np.ascontiguousarray(codes.reshape(*codes.shape[:-2], -1)[..., :inputs])
    return SquareRootCodes(codes, scales)


def decode(fisher: StoredFisher) -> jax.Array:
    """F in float32, [..., D]; a plain array of another float type is converted."""
    if isinstance(fisher, Bfloat16Bits):
        return jax.lax.bitcast_convert_type(fisher.bits.astype(jnp.uint32) << 16, jnp.float32)
    if isinstance(fisher, SquareRootCodes):
        scales = jnp.broadcast_to(fisher.scales[..., None], (*fisher.scales.shape, BLOCK))
        scales = scales.reshape(*fisher.scales.shape[:-1], -1)[..., : fisher.codes.shape[-1]]
        return jnp.square(fisher.codes.astype(jnp.float32) * scales)
    return jnp.asarray(fisher, jnp.float32)


def stored_bytes(fisher: StoredFisher) -> int:
    """Bytes that F takes in memory."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(fisher))
