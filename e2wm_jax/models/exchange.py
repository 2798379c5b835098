"""What an all-gather and a reduce-scatter do, by pairwise exchanges, for use beside an axis left to the compiler.

Inside `jax.shard_map` over some axes of a mesh, an all-gather of an array that the compiler splits over another axis
(tensor) first gathers it over that axis too: XLA's partitioner splits no collective of a manual axis.  Pairwise
exchanges it leaves alone.  There are log2 S of them for S devices, which move as many bytes.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh


def exchangeable(mesh: Mesh, axis_name: str) -> bool:
    """Whether parts over ``axis_name`` are to be exchanged in pairs: beside a tensor axis, if pairs come out even."""
    return mesh.shape["tensor"] > 1 and mesh.shape[axis_name].bit_count() == 1


def all_gather(part: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """`jax.lax.all_gather(part, axis_name, axis=axis, tiled=True)` for a power of two of devices: in each turn every
    device swaps all it has with the one whose number differs in one bit."""
    have, distance = part, 1
    while distance < jax.lax.axis_size(axis_name):
        other, upper = _swapped(have, axis_name, distance), _upper(axis_name, distance)
        low, high = jnp.where(upper, other, have), jnp.where(upper, have, other)
        have = jnp.concatenate([low, high], axis=axis)
        distance *= 2
    return have


def scatter_sum(whole: jax.Array, axis_name: str, axis: int) -> jax.Array:
    """`jax.lax.psum_scatter(whole, axis_name, scatter_dimension=axis, tiled=True)` for a power of two of devices: in
    each turn every device gives away the half that is not its own and adds the half that it is given."""
    have, distance = whole, jax.lax.axis_size(axis_name) // 2
    while distance:
        low, high = jnp.split(have, 2, axis=axis)
        upper = _upper(axis_name, distance)
        mine, others = jnp.where(upper, high, low), jnp.where(upper, low, high)
        have = mine + _swapped(others, axis_name, distance)
        distance //= 2
    return have


def _swapped(x: jax.Array, axis_name: str, distance: int) -> jax.Array:
    pairs = [(device, device ^ distance) for device in range(jax.lax.axis_size(axis_name))]
    return jax.lax.ppermute(x, axis_name, pairs)


def _upper(axis_name: str, distance: int) -> jax.Array:
    return (jax.lax.axis_index(axis_name) & distance) > 0
