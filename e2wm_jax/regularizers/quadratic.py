"""Quadratic penalties on the weight change s B A, without the factor one half.

    none  0
    l2    sum (s B A)^2                    L2-SP (Li et al. 2018), computed as s^2 tr((B^T B)(A A^T))
    ewc   sum F (s B A)^2                  EWC-LoRA (Xiang et al. 2023); F is the Fisher diagonal of the frozen weight

Each is a pure function (adapters, spec, fisher) -> float32 scalar; the strength multiplies it outside.

Letters: L layers, N outputs, D inputs, R rank.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from e2wm_jax.lora import Adapters, AdapterSpec

Fisher = Mapping[str, jax.Array]  # "layers.q.weight" -> [L, N, D] float32
Penalty = Callable[[Adapters, AdapterSpec, Fisher], jax.Array]
RegularizerName = Literal["none", "l2", "ewc"]


def no_penalty(adapters: Adapters, spec: AdapterSpec, fisher: Fisher) -> jax.Array:
    """0: plain LoRA."""
    del adapters, spec, fisher
    return jnp.float32(0)


def l2_penalty(adapters: Adapters, spec: AdapterSpec, fisher: Fisher) -> jax.Array:
    """Squared Frobenius norm of all s B A, from R x R products only."""
    del fisher
    total = jnp.float32(0)
    for target in spec:
        a, b = adapters[target.path]["a"], adapters[target.path]["b"]
        rows = jnp.einsum("lrd,lqd->lrq", a, a)
        columns = jnp.einsum("lnr,lnq->lrq", b, b)
        total += jnp.einsum("l,lrq,lrq->", target.scales**2, rows, columns)
    return total


def ewc_penalty(adapters: Adapters, spec: AdapterSpec, fisher: Fisher) -> jax.Array:
    """sum over adapted matrices of F * (s B A)^2; F holds "<target>.weight" for every target of `spec`."""
    total = jnp.float32(0)
    for target in spec:
        factors = adapters[target.path]
        weighted = _weighted_square(factors["a"], factors["b"], fisher[f"{target.path}.weight"], target.scales)
        total += weighted
    return total


PENALTIES: dict[str, Penalty] = {"none": no_penalty, "l2": l2_penalty, "ewc": ewc_penalty}


def rowmax127(fisher: jax.Array) -> jax.Array:
    """round(127 F / max of F over each row): the int8 codes that the official run multiplies by.

    It loads F in 8 bits and reads the codes without their scales, so its published strengths belong to this F.
    F [L, N, D] -> [L, N, D] float32.
    """
    row_maximum = jnp.max(fisher, axis=-1, keepdims=True)
    return jnp.round(127 * fisher / jnp.where(row_maximum > 0, row_maximum, 1))


@jax.custom_vjp
def _weighted_square(a: jax.Array, b: jax.Array, fisher: jax.Array, scales: jax.Array) -> jax.Array:
    return _value_and_gradients(a, b, fisher, scales)[0]


def _value_and_gradients(
    a: jax.Array, b: jax.Array, fisher: jax.Array, scales: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Value, dA and dB of sum F (s B A)^2 in one pass over F, layer by layer: s B A of all layers is never stored.

    With P = s^2 F * (B A):  value = sum P * (B A),  dB = 2 P A^T,  dA = 2 B^T P.
    """

    def body(total: jax.Array, layer: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        a, b, fisher, scale = layer
        change = b @ a
        pull = scale**2 * fisher * change
        return total + jnp.sum(pull * change), (2 * b.T @ pull, 2 * pull @ a.T)

    value, (da, db) = jax.lax.scan(body, jnp.float32(0), (a, b, fisher, scales))
    return value, da, db


def _forward(
    a: jax.Array, b: jax.Array, fisher: jax.Array, scales: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    value, da, db = _value_and_gradients(a, b, fisher, scales)
    return value, (da, db)


def _backward(gradients: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
    da, db = gradients
    return cotangent * da, cotangent * db, None, None


_weighted_square.defvjp(_forward, _backward)
