"""What several families ask of a Hugging Face `config.json`; ``path`` is named in messages."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.models.layers import ACTIVATIONS

MOST_LAYERS = 10_000
_MOST = 2**31 - 1  # what an array's axis can be indexed by


@dataclass(frozen=True)
class Values:
    """The values of a configuration, each checked when it is asked for.

    A key that is missing and has no default is a KeyError, which the caller names.
    """

    raw: dict[str, Any]
    path: Path

    def size(self, key: str, default: int | None = None, *, least: int = 1, most: int = _MOST) -> int:
        """A whole number.

        Raises:
            InputError: naming the key and what it must be.
        """
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(f"{self.path}: {key} is {_short(value)}; it must be a whole number from {least} to {most}")
        return value

    def size_or(self, key: str, default: int) -> int:
        """A whole number; null is the default, as it is in transformers for sizes that follow from others."""
        return default if self.raw.get(key) is None else self.size(key)

    def number(self, key: str, default: float | None = None, *, least: float = 0.0) -> float:
        """A finite number.

        Raises:
            InputError: naming the key and what it must be.
        """
        value = self._value(key, default)
        try:
            found = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, OverflowError):
            found = math.nan
        if not least <= found < math.inf:
            rule = "a finite number" if least == -math.inf else f"a number from {least:g}"
            raise InputError(f"{self.path}: {key} is {_short(value)}; it must be {rule}")
        return found

    def flag(self, key: str, default: bool) -> bool:
        """True or false; null is false, as it is in transformers.

        Raises:
            InputError: naming the key.
        """
        value = self.raw.get(key, default)
        if value not in (True, False, None):  # 0 and 1 too
            raise InputError(f"{self.path}: {key} is {_short(value)}; it must be true or false")
        return bool(value)

    def _value(self, key: str, default: Any) -> Any:
        return self.raw[key] if default is None else self.raw.get(key, default)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def activation(raw: dict[str, Any], key: str, default: str, path: Path) -> str:
    """The name of the activation under ``key``.

    Raises:
        InputError: for one that `layers.ACTIVATIONS` does not have.
    """
    name = raw.get(key, default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
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
