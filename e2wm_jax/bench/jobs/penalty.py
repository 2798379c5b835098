"""What every process of `e2wm bench penalty` is told: the factors and F, or a training step.

Letters: L matrices, N outputs, D inputs, R rank, B rows, T tokens.
"""

from typing import Any, NamedTuple

import numpy as np

from e2wm_jax.bench.jobs.shapes import sizes
from e2wm_jax.config import MODELS, DType, GPTNeoConfig, ModelConfig

SCALE = 4.0  # s of the official run: alpha 32, rank 8


class StepCase(NamedTuple):
    """A training step whose cost is measured with the penalty and without."""

    config: ModelConfig
    targets: str
    batch_size: int
    tokens: int
    dtype: DType


_SMALL = GPTNeoConfig(**sizes(512, layers=6, heads=8, words=8192, positions=512), tied=True, windows=(0, 256) * 3)
STEPS = {
    "small-qv": StepCase(_SMALL, "q_proj,v_proj", 4, 128, "float32"),
    "small-all": StepCase(_SMALL, "all-linear", 4, 128, "float32"),
    "gpt-neo-1.3b-qv": StepCase(MODELS["gpt-neo-1.3b"], "q_proj,v_proj", 20, 512, "bfloat16"),
    "gpt-neo-1.3b-all": StepCase(MODELS["gpt-neo-1.3b"], "all-linear", 20, 512, "bfloat16"),
}


def factors(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and F: the same numbers in both processes."""
    rng = np.random.default_rng(case["seed"])
    layers, size, rank = case["modules"], case["size"], case["rank"]
    a, b = (
        rng.standard_normal(shape, np.float32) * np.float32(0.02)
        for shape in ((layers, rank, size), (layers, size, rank))
    )
    fisher = np.square(rng.standard_normal((layers, size, size), np.float32)) * np.float32(1e-6)
    return a, b, fisher
