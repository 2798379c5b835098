"""Settings as frozen dataclasses, and the named model shapes.

Everything here is plain data: no jax, no I/O.  Defaults are those of the official E2WM run unless a field says
otherwise (its scripts, not its paper, where the two disagree).
"""

from dataclasses import dataclass
from typing import Literal

DType = Literal["float32", "bfloat16"]
BaseDType = Literal["float32", "bfloat16", "int8", "nf4"]  # how a frozen base is held

# The official run adapts the query and value projections, under their Hugging Face names; GPT-NeoX has both in one.
QV_TARGETS = r".*\.(q_proj|v_proj|query_key_value)"


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


@dataclass(frozen=True)
class LinearScaling:
    """Rotary frequencies divided by `factor` (Chen et al. 2023)."""

    factor: float


@dataclass(frozen=True)
class DynamicScaling:
    """The base of the rotary frequencies grows with the longest position of a call, once it is beyond `max_positions`
    (NTK-aware scaling); until then nothing changes."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Low rotary frequencies divided by `factor`, high ones as they are, a ramp between (LLaMA 3.1).

    Low: fewer than `low_cycles` turns within `original_positions`; high: more than `high_cycles`.
    """

    factor: float
    low_cycles: float
    high_cycles: float
    original_positions: int


RopeScaling = LinearScaling | DynamicScaling | Llama3Scaling


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """LLaMA and its kin: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"  # which of them, by its Hugging Face name
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    attention_bias: bool = False  # on q, k and v, and but for Qwen2 on o
    mlp_bias: bool = False  # on gate, up and down


@dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(ModelConfig):
    """GPT-NeoX and Pythia: LayerNorm, rotary positions on a part of each head, q, k and v in one map."""

    rotary_dim: int  # of each head's dimensions, the first so many are rotated
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    parallel: bool = True  # attention and feed-forward read the same input, or one after the other
    attention_bias: bool = True  # on the two maps of attention; those of the feed-forward always have one
    activation: str = "gelu"
    norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class GPTNeoConfig(ModelConfig):
    """GPT-Neo: learned positions, LayerNorm, layers that see all and layers that see a window in turn."""

    activation: str = "gelu_new"
    norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class GPTJConfig(ModelConfig):
    """GPT-J: rotary positions on a part of each head, attention and feed-forward side by side behind one LayerNorm."""

    rotary_dim: int  # of each head's dimensions, the first so many are rotated
    activation: str = "gelu_new"
    norm_eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class OPTConfig(ModelConfig):
    """OPT: learned positions, LayerNorm; the 350m form has its norms and its table's width elsewhere."""

    embedding_size: int  # width of the embedding table; where it is not `hidden_size`, projections lie between
    # Norms stand before attention and feed-forward and at the end, or without that last one, or only after those two.
    norms: Literal["pre", "pre-without-last", "post"] = "pre"
    bias: bool = True  # on every linear map of a block
    norm_weights: bool = True  # norms scale and shift
    activation: str = "relu"


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
    "mistral-7b": LlamaConfig(
        model_type="mistral",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_positions=32768,
        windows=(4096,) * 32,
    ),
    "llama-3.2-1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        max_positions=131072,
        rope_theta=500000.0,
        rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192),
        tied=True,
    ),
    "qwen2.5-0.5b": LlamaConfig(
        model_type="qwen2",
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        max_positions=32768,
        rope_theta=1000000.0,
        norm_eps=1e-6,
        attention_bias=True,
        tied=True,
    ),
    "qwen3-0.6b": LlamaConfig(
        model_type="qwen3",
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        max_positions=40960,
        rope_theta=1000000.0,
        norm_eps=1e-6,
        tied=True,
    ),
    "pythia-160m": GPTNeoXConfig(
        vocab_size=50304,
        hidden_size=768,
        intermediate_size=3072,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        max_positions=2048,
        rotary_dim=16,
    ),
    "gpt-neo-125m": GPTNeoConfig(
        vocab_size=50257,
        hidden_size=768,
        intermediate_size=3072,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        max_positions=2048,
        tied=True,
        windows=(0, 256) * 6,
    ),
    "gpt-neo-1.3b": GPTNeoConfig(
        vocab_size=50257,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=24,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        max_positions=2048,
        tied=True,
        windows=(0, 256) * 12,
    ),
    "gpt-j-6b": GPTJConfig(
        vocab_size=50400,
        hidden_size=4096,
        intermediate_size=16384,
        num_layers=28,
        num_heads=16,
        num_kv_heads=16,
        head_dim=256,
        max_positions=2048,
        rotary_dim=64,
    ),
    "opt-13b": OPTConfig(
        vocab_size=50272,
        hidden_size=5120,
        intermediate_size=20480,
        num_layers=40,
        num_heads=40,
        num_kv_heads=40,
        head_dim=128,
        max_positions=2048,
        tied=True,
        embedding_size=5120,
    ),
}


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters W + s B A on the linear maps that `targets` names; patterns are PEFT's."""

    rank: int = 8
    """Rank r of B A."""
    alpha: float = 32.0
    """The adapter is scaled by alpha / rank (by alpha / sqrt(rank) with rslora)."""
    dropout: float = 0.1
    """Share of the adapter's inputs that is dropped while training."""
    targets: str = QV_TARGETS
    """Names, e.g. q_proj,v_proj, each a whole module name or its end; or a regular expression on whole module names,
    e.g. '.*\\.(q_proj|v_proj)'; 'all-linear' for every block matrix."""
    rank_pattern: str = ""
    """Other ranks for some: PATTERN=RANK,PATTERN=RANK, e.g. 'layers.0.self_attn.q_proj=4,v_proj=16'. A pattern is a
    regular expression for the end of a module name, from a dot on; the first that matches counts."""
    alpha_pattern: str = ""
    """Other alphas for some: PATTERN=ALPHA,PATTERN=ALPHA, read like --lora.rank-pattern."""
    rslora: bool = False
    """Rank-stabilized scale alpha / sqrt(rank) (Kalajdzievski 2023)."""
