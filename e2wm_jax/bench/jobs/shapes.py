"""The sizes of small models with random weights."""

from typing import Any


def sizes(
    width: int, *, layers: int, heads: int, words: int, positions: int, kv_heads: int = 0, hidden: int = 0
) -> Any:
    """Arguments of a `ModelConfig`; by default as many heads of keys and values, and four times the width inside."""
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": hidden or 4 * width,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads or heads,
        "head_dim": width // heads,
        "max_positions": positions,
    }
