"""Quadratic penalties on the adapters' own entries phi = (A, B), as opposed to the weight change s B A.

    sum Omega (phi - phi*)^2        Omega and phi* have the adapters' shapes; no one half

An entry of a padded rank (`lora.TargetSpec`) stays 0, as does its gradient, so that it adds 0 whatever its Omega.
"""

import jax
import jax.numpy as jnp

from e2wm_jax.lora import Adapters


def distance(importance: Adapters, adapters: Adapters, anchor: Adapters) -> jax.Array:
    """sum importance * (adapters - anchor)^2, float32 scalar."""
    squares = jax.tree.map(lambda w, now, then: jnp.sum(w * jnp.square(now - then)), importance, adapters, anchor)
    return jax.tree.reduce(jnp.add, squares, jnp.float32(0))


def zeros(adapters: Adapters) -> Adapters:
    """Zeros in the adapters' shapes."""
    return jax.tree.map(jnp.zeros_like, adapters)
