"""How fast a run is, and how much of its devices that takes: work per token, peak rates, tokens per second.

The work of a LoRA step is what the mathematics asks for, not what a program spends, so that two programs compare:

    base         the frozen linear maps: 2 P forwards and 2 P backwards per token, for the gradient of their inputs; the
                 gradient of the weights, a third of an ordinary step, is not computed
    attention    scores and mixtures over the whole sequence, the half above the diagonal too (as PaLM's model FLOPs
                 count it, Chowdhery et al. 2022, appendix B), but over a layer's window where that is shorter:
                 4 H K T forwards and twice that backwards
    head         4 V D per predicted token; prompts are read, not predicted
    adapters     6 R (D + N) per token: their two products forwards, four backwards

A multiplication and an addition are two operations.  Not counted: norms, activations and the softmax (a few per cent of
a small model), dropout, the penalty, the optimizer, padding, and what the backward pass computes again.

Letters: P numbers in the linear maps of all blocks, H heads, K their size, T tokens of a sequence, V vocabulary,
D inputs and N outputs of a map, R rank.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from e2wm_jax.config import ModelConfig
from e2wm_jax.lora import AdapterSpec
from e2wm_jax.models.decoder import weight_table


class Work(NamedTuple):
    """Operations, by what they are for."""

    base: float
    attention: float
    head: float
    adapters: float

    @property
    def total(self) -> float:
        return sum(self)


def flops_per_token(config: ModelConfig, spec: AdapterSpec, length: float, predicted: float = 1.0) -> Work:
    """Operations of one training step per token of sequences of `length` tokens, the mean of a run for example.

    Args:
        predicted: share of the tokens that are predicted.
    """
    table = weight_table(config)
    maps = {path: weight for path, weight in table.items() if len(weight.shape) == 2}
    tables = {path for path, weight in maps.items() if {"vocab", "positions"} & set(weight.axes)}
    layers = config.num_layers
    numbers = sum(
        (layers if weight.stacked else 1) * weight.shape[0] * weight.shape[1]
        for path, weight in maps.items()
        if path not in tables
    )
    seen = sum(min(length, window or length) for window in config.windows or (0,) * layers)
    words, width = maps["embed.weight" if config.tied else "head.weight"].shape
    return Work(
        base=4.0 * numbers,
        attention=12.0 * config.num_heads * config.head_dim * seen,
        head=4.0 * words * width * predicted,
        adapters=6.0 * sum(sum(target.ranks) * sum(maps[f"{target.path}.weight"].shape) for target in spec),
    )


def mean_work(config: ModelConfig, spec: AdapterSpec, rows: Iterable[tuple[int, int]]) -> Work:
    """`flops_per_token` over the tokens of rows of unequal length, each (tokens, predicted tokens)."""
    lengths: Counter[int] = Counter()
    targets = 0
    for length, predicted in rows:
        lengths[length] += length
        targets += predicted
    tokens = lengths.total()
    if not tokens:
        return Work(0.0, 0.0, 0.0, 0.0)
    each = [
        (share / tokens, flops_per_token(config, spec, length, targets / tokens)) for length, share in lengths.items()
    ]
    return Work(*(sum(share * work[part] for share, work in each) for part in range(4)))


# Operations per second of dense products of bfloat16, by what jax calls the device; the first that matches counts.
# NVIDIA's data sheets of A100, H100 and H200 (half of what they give "with sparsity"); Google's pages of Cloud TPU, per
# chip, which is one device of jax but for v7x, where each of a chip's two cores is one.
_PEAKS = (
    (r"\bMIG\b", None),  # a slice of a card
    (r"\bA100\b", 312e12),
    (r"\bH100\b.*\bPCIe\b", 756.5e12),
    (r"\bH(100|200)\b.*\bNVL\b", 835.5e12),
    (r"\bH(100|200)\b", 989.4e12),
    (r"^TPU v4$", 275e12),
    (r"^TPU v5 ?(e|lite)$", 197e12),
    (r"^TPU v5p?$", 459e12),
    (r"^TPU v6 ?(e|lite)$", 918e12),
    (r"^TPU ?v?7x$", 2307e12 / 2),
)


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 operations per second that a device can do at most; None for those not known here, such as CPUs.

    Args:
        device_kind: `jax.Device.device_kind`.
    """
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, device_kind)), None)


class StepTiming(NamedTuple):
    """What one step took."""

    seconds: float
    tokens: int  # real ones, prompts included, on all hosts
    waiting: float  # of the seconds, those until its batch was there


@dataclass(frozen=True)
class Pace:
    """Speed over the last steps of a run.  `after` gives the pace one step later."""

    steps: int  # of the whole run
    done: int = 0  # of them, those before a resume too
    flops_per_token: float = 0.0
    peak: float | None = None  # of all devices together; None: there is no MFU
    window: int = 50  # steps over which speed is measured
    recent: tuple[StepTiming, ...] = ()
    taken: int = 0  # steps since the start of the process

    def after(self, seconds: float, tokens: int, waiting: float = 0.0) -> "Pace":
        """One more step is done (`StepTiming`).  The first, which compiles, counts only until there is another."""
        before = () if self.taken == 1 else self.recent
        recent = (*before, StepTiming(seconds, tokens, waiting))[-self.window :]
        return replace(self, recent=recent, done=self.done + 1, taken=self.taken + 1)

    @property
    def seconds(self) -> float:
        """Of the steps that are looked at."""
        return sum(step.seconds for step in self.recent)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens, prompts included."""
        return _over(sum(step.tokens for step in self.recent), self.seconds)

    @property
    def mfu(self) -> float | None:
        """Share of the devices' peak that the work of the real tokens takes (model FLOPs utilization)."""
        return None if self.peak is None else self.tokens_per_second * self.flops_per_token / self.peak

    @property
    def waiting(self) -> float:
        """Share of the time that went by waiting for batches."""
        return _over(sum(step.waiting for step in self.recent), self.seconds)

    @property
    def eta(self) -> float:
        """Seconds until the run is done."""
        return _over(self.seconds, len(self.recent)) * max(self.steps - self.done, 0)

    def numbers(self) -> dict[str, float]:
        """For the progress bar and the trackers; "mfu" only where the peak is known."""
        found = {"tokens_per_second": self.tokens_per_second, "waiting": self.waiting, "eta_seconds": self.eta}
        return found if self.mfu is None else {**found, "mfu": self.mfu}


def _over(value: float, by: float) -> float:
    return value / by if by else 0.0
