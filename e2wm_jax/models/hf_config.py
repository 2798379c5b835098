"""What several families ask of a Hugging Face `config.json`; ``path`` is named in messages."""

from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.models.layers import ACTIVATIONS


def activation(raw: dict[str, Any], key: str, default: str, path: Path) -> str:
    """The name of the activation under ``key``.

    Raises:
        InputError: for one that `layers.ACTIVATIONS` does not have.
    """
    name = raw.get(key, default)
    if name not in ACTIVATIONS:
        raise InputError(f"{path}: {key} is {name!r}; supported: {', '.join(map(repr, ACTIVATIONS))}")
    return str(name)


def head_size(hidden_size: int, heads: int, path: Path) -> int:
    """Dimensions of each head where the heads share the model's width.

    Raises:
        InputError: if they cannot share it evenly.
    """
    if heads < 1 or hidden_size % heads:
        raise InputError(f"{path}: width {hidden_size} is no multiple of the number of heads, {heads}")
    return hidden_size // heads
