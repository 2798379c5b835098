"""What a family of decoders must say of itself; a module such as `llama` is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

from e2wm_jax.models.families.weight_table import WeightTable
from e2wm_jax.models.layers import Params

# attend(q [B, T, H, K], k [B, T, G, K], v [B, T, G, K], scale=None) -> (mixed [B, T, H, K], what to keep of k and v).
# The decoder decides who sees whom, and whether there is a cache; `scale` is 1 / sqrt(K) unless the family has another.
Attend = Callable[..., tuple[jax.Array, Any]]


class Family(Protocol):
    """One decoder architecture. ``config`` is of its own dataclass throughout (`config.ModelConfig`)."""

    @property
    def MODEL_TYPES(self) -> tuple[str, ...]:
        """`model_type` of the Hugging Face configurations that it reads."""
        ...

    @property
    def IGNORED(self) -> str:
        """Regular expression of the Hugging Face names that old checkpoints hold and nobody needs; "" for none."""
        ...

    def weight_table(self, config: Any, /) -> WeightTable:
        """Every weight of the model."""
        ...

    def from_hf(self, raw: dict[str, Any], path: Path, /) -> Any:
        """Our configuration from a Hugging Face `config.json` (``path`` for messages).

        Raises:
            InputError: for an option that the forward pass does not implement.
            KeyError, TypeError, ValueError: for a missing key or one that is no number; the caller names it.
        """
        ...

    def to_hf(self, config: Any, /) -> dict[str, Any]:
        """Inverse of `from_hf`: what transformers needs to build the model."""
        ...

    def embed(self, config: Any, params: Params, ids: jax.Array, positions: jax.Array, /) -> jax.Array:
        """ids, positions [B, T] -> the first layer's input [B, T, D]."""
        ...

    def context(self, config: Any, positions: jax.Array, /) -> Any:
        """What every layer needs of the positions [B, T], such as rotary angles; None for nothing."""
        ...

    def layer(self, config: Any, x: jax.Array, p: Params, context: Any, attend: Attend, /) -> tuple[jax.Array, Any]:
        """One layer with its weights ``p``: x [B, T, D] -> (x, what `attend` said to keep)."""
        ...

    def finish(self, config: Any, params: Params, x: jax.Array, /) -> jax.Array:
        """The last layer's output -> hidden states [B, T, D] that the output head reads."""
        ...
