"""Settings as frozen dataclasses, and the named model shapes.

Everything here is plain data: no jax, no I/O.  Defaults are those of the official E2WM run unless a field says
otherwise (its scripts, not its paper, where the two disagree).
"""

from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "bfloat16"]

# The official run adapts the query and value projections, under their Hugging Face names.
QV_TARGETS = r".*\.(q_proj|v_proj)"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every decoder has; its family's dataclass adds the rest."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    tied: bool = False  # the output head is the embedding table
    windows: tuple[int, ...] = ()  # of each layer: how many tokens one sees, itself included, 0 for all; () for all
    initializer_range: float = 0.02


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """LLaMA and its kin: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    attention_bias: bool = False  # on q, k, v and o
    mlp_bias: bool = False  # on gate, up and down


MODELS: dict[str, ModelConfig] = {
    "tiny": LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_positions=512,
        tied=True,
    ),
    "smollm2-135m": LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        max_positions=8192,
        rope_theta=100000.0,
        tied=True,
        initializer_range=0.041666666666666664,
    ),
    "llama-13b": LlamaConfig(
        vocab_size=32000,
        hidden_size=5120,
        intermediate_size=13824,
        num_layers=40,
        num_heads=40,
        num_kv_heads=40,
        head_dim=128,
        max_positions=2048,
        norm_eps=1e-6,
    ),
}


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters W + s B A on the linear maps whose Hugging Face name matches `targets`."""

    rank: int = 8
    """Rank r of B A."""
    alpha: float = 32.0
    """The adapter is scaled by alpha / rank (by alpha / sqrt(rank) with rslora)."""
    dropout: float = 0.1
    """Share of the adapter's inputs that is dropped while training."""
    targets: str = QV_TARGETS
    """Regular expression on whole module names, e.g. '.*\\.(q_proj|v_proj)'; 'all-linear' for every block matrix."""
    rslora: bool = False
    """Rank-stabilized scale alpha / sqrt(rank) (Kalajdzievski 2023)."""
