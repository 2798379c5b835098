"""The vocabulary in chunks: how an output head is read without an array of tokens times vocabulary.

Letters: V vocabulary, C words of a chunk.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from e2wm_jax.models.layers import Params

CHUNK = 4096  # words
Chunk = tuple[Params, jax.Array, jax.Array]  # rows of the head, their words [C], which of them came before [C]


def over_chunks(head: Params, add_chunk: Callable[[Any, Chunk], Any], state: Any, size: int) -> Any:
    """state after ``state = add_chunk(state, chunk)`` for all chunks of ``size`` words of ``head``, whose leaves have
    the vocabulary first.

    The last chunk begins early enough to be whole: padding the head would copy it.
    """
    vocabulary = head["weight"].shape[0]
    chunk = min(size, vocabulary)

    def body(index: jax.Array, state: Any) -> Any:
        start = jnp.minimum(index * chunk, vocabulary - chunk)
        words = start + jnp.arange(chunk, dtype=jnp.int32)
        part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, chunk), head)
        return add_chunk(state, (part, words, words < index * chunk))

    return jax.lax.fori_loop(0, -(-vocabulary // chunk), body, state)
