"""Rotary position embedding (Su et al. 2021), its scalings beyond the trained length, and how configurations name them.

Letters as in `layers`; R of a head's K dimensions are rotated.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from e2wm_jax.config import DynamicScaling, LinearScaling, Llama3Scaling, RopeScaling
from e2wm_jax.errors import InputError
from e2wm_jax.models.families.hf_config import Values


def rotary(
    positions: jax.Array, size: int, theta: float, scaling: RopeScaling | None = None, max_positions: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, T, 1, R/2] of ``positions`` [B, T], for R = ``size``.

    ``max_positions`` is where dynamic scaling begins. It looks at the longest position of the whole call, padding and
    other rows included, as transformers does; keys in a cache stay as the call that wrote them rotated them.
    """
    if isinstance(scaling, DynamicScaling):
        frequencies = _base_frequencies(size, _dynamic_theta(positions, size, theta, scaling, max_positions))
    else:
        frequencies = _base_frequencies(size, theta)
        if isinstance(scaling, LinearScaling):
            frequencies = frequencies / scaling.factor
        elif isinstance(scaling, Llama3Scaling):
            frequencies = _llama3_frequencies(frequencies, scaling)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn the first R dimensions of x [B, T, heads, K] by the angles of `rotary`; the rest of K passes.

    Dimension i is paired with i + R/2, as Hugging Face stores q and k.
    """
    size = 2 * cos.shape[-1]
    left, right = jnp.split(x[..., :size].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
    return turned if size == x.shape[-1] else jnp.concatenate([turned, x[..., size:]], axis=-1)


def rotate_interleaved(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """`rotate`, but dimension 2i is paired with 2i + 1, as GPT-J does."""
    size = 2 * cos.shape[-1]
    turned = x[..., :size].astype(jnp.float32)
    even, odd = turned[..., ::2], turned[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(turned.shape)
    return jnp.concatenate([turned.astype(x.dtype), x[..., size:]], axis=-1)


def _base_frequencies(size: int, theta: float | jax.Array) -> jax.Array:
    """[R/2], in radians per position."""
    return theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)


def _dynamic_theta(
    positions: jax.Array, size: int, theta: float, scaling: DynamicScaling, max_positions: int
) -> jax.Array:
    """The base that turns the slowest dimension `scaling.factor` times slower per further `max_positions`."""
    length = jnp.maximum(jnp.max(positions) + 1, max_positions).astype(jnp.float32)
    stretch = scaling.factor * length / max_positions - (scaling.factor - 1)
    return theta * stretch ** (size / (size - 2))


def _llama3_frequencies(frequencies: jax.Array, scaling: Llama3Scaling) -> jax.Array:
    """[R/2]."""
    cycles = frequencies * scaling.original_positions / (2 * jnp.pi)
    kept = jnp.clip((cycles - scaling.low_cycles) / (scaling.high_cycles - scaling.low_cycles), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


class Rope(NamedTuple):
    """What a configuration says of rotary positions."""

    theta: float
    scaling: RopeScaling | None
    share: float  # of each head's dimensions that is rotated


def from_hf(
    raw: dict[str, Any],
    path: Path,
    *,
    max_positions: int,
    theta_key: str = "rope_theta",
    share_key: str = "partial_rotary_factor",
    share: float = 1.0,
) -> Rope:
    """Read a Hugging Face configuration, with the precedence of transformers.

    The dictionary `rope_parameters` (transformers 5) or `rope_scaling` (before) comes first, then the keys
    ``theta_key`` and ``share_key`` beside it, then base 10000 and ``share``.

    Raises:
        InputError: for a scaling that is not implemented, or constants for which it has no meaning.
        KeyError, TypeError, ValueError: for a missing constant or one that is no number.
    """
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise InputError(
            f"{path}: rotary parameters {given!r} are not one dictionary of numbers; "
            "different ones for different kinds of layers are not supported"
        )
    theta = given.get("rope_theta", raw.get(theta_key, 10000.0))
    share = given.get("partial_rotary_factor", raw.get(share_key, share))
    values = Values({theta_key: theta, share_key: share}, path)
    return Rope(
        theta=values.number(theta_key, least=1.0),
        scaling=_scaling_from_hf(given, raw, path, max_positions),
        share=values.number(share_key),
    )


def _scaling_from_hf(given: dict[str, Any], raw: dict[str, Any], path: Path, max_positions: int) -> RopeScaling | None:
    kind = given.get("rope_type", given.get("type"))
    if kind in (None, "default"):
        return None
    if kind not in ("linear", "dynamic", "llama3"):
        raise InputError(f"{path}: rotary scaling {kind!r} is not supported; supported: 'linear', 'dynamic', 'llama3'")
    key = "original_max_position_embeddings"
    values = Values({**given, key: raw.get(key, given.get(key, max_positions))}, path)
    factor = values.number("factor", least=-math.inf)
    if not factor >= 1:
        raise InputError(f"{path}: rotary scaling by the factor {factor:g}; it must be at least 1")
    if kind == "linear":
        return LinearScaling(factor)
    if kind == "dynamic":
        return DynamicScaling(factor)
    scaling = Llama3Scaling(
        factor,
        values.number("low_freq_factor"),
        values.number("high_freq_factor"),
        values.size(key),
    )
    if not scaling.low_cycles < scaling.high_cycles:
        raise InputError(
            f"{path}: low_freq_factor is {scaling.low_cycles:g}; it must be below high_freq_factor, "
            f"{scaling.high_cycles:g}"
        )
    return scaling


def scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The value of `rope_scaling`, the spelling that transformers of every age reads."""
    if scaling is None:
        return None
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_cycles,
            "high_freq_factor": scaling.high_cycles,
            "original_max_position_embeddings": scaling.original_positions,
        }
    return {"rope_type": "linear" if isinstance(scaling, LinearScaling) else "dynamic", "factor": scaling.factor}
