"""Where F is: by tensor, by layer, by module, as numbers and as a table; how its entries are distributed."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.fisher.diagonal import Flat
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import hf_names

OUTSIDE = "outside the layers"
_CHUNK = 1 << 22  # entries counted at a time
_SHIFT = 20  # bits of a float32 below sign, exponent and 3 bits of mantissa: 8 bins to each power of two
BINS = 1 << (31 - _SHIFT)


class Spread(NamedTuple):
    """How many entries fall into each of `BINS` bins of equal width in (almost) the logarithm, and their sums there."""

    counts: np.ndarray  # [BINS] int64
    sums: np.ndarray  # [BINS] float64


class Tensor(NamedTuple):
    """One tensor's share of F."""

    layer: int | None  # None: outside the layers
    module: str  # "self_attn.q_proj.weight"; outside the layers the whole name
    size: int
    sum: float
    max: float
    spread: Spread


Statistics = dict[str, float]  # "sum", "mean", "max", "share"
Summary = dict[str, dict[str, Statistics]]  # "tensors", "layers" and "modules" -> name -> its statistics


def tensors_of(config: ModelConfig, values: Flat, names: Collection[str]) -> dict[str, Tensor]:
    """Each tensor of F among `names` (Hugging Face names), in the order of the model."""
    found = {}
    for path, value in values.items():
        spec, host = weight_table(config)[path], np.asarray(value)
        for layer, name in enumerate(hf_names(spec, config)):
            if name not in names:
                continue
            one = host[layer] if spec.stacked else host
            module = spec.hf.partition("{}.")[2] if spec.stacked else spec.hf
            found[name] = measured(one, layer if spec.stacked else None, module)
    return found


def measured(value: np.ndarray, layer: int | None, module: str) -> Tensor:
    """What is to be known of one tensor of F; its entries are finite and not negative."""
    total, largest = float(value.sum(dtype=np.float64)), float(value.max())
    return Tensor(layer, module, value.size, total, largest, spread_of(value))


def place_of(name: str) -> tuple[int | None, str]:
    """Layer and module by a Hugging Face name alone: of "model.layers.3.mlp.up_proj.weight" 3, "mlp.up_proj.weight"."""
    found = re.fullmatch(r".*?\.(\d+)\.(.+)", name)
    return (int(found[1]), found[2]) if found else (None, name)


def spread_of(value: np.ndarray) -> Spread:
    """Counts and sums by size.

    The bits of a float32 that is not negative grow with it: the leading ones number bins, narrow (9 to 13 %) and many.
    """
    counts, sums = np.zeros(BINS, np.int64), np.zeros(BINS)
    flat = np.ascontiguousarray(value, np.float32).reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        bins = (np.abs(part).view(np.uint32) >> _SHIFT).astype(np.intp)  # the zero that has a sign is a zero
        counts += np.bincount(bins, minlength=BINS)
        sums += np.bincount(bins, weights=part, minlength=BINS)
    return Spread(counts, sums)


def merged(spreads: Iterable[Spread]) -> Spread:
    """The distribution of the entries of several."""
    counts, sums = zip(*spreads, strict=True)
    return Spread(np.sum(counts, axis=0), np.sum(sums, axis=0))


def bin_start(number: int) -> float:
    """The least value of a bin."""
    return float(np.uint32(number << _SHIFT).view(np.float32))


def quantile(spread: Spread, share: float) -> float:
    """The value that ``share`` of the entries do not exceed, to within a bin; the lower end of that bin."""
    return bin_start(int(np.searchsorted(np.cumsum(spread.counts), share * spread.counts.sum())))


def held_by_largest(spread: Spread, share: float) -> float:
    """Which part of the sum the largest ``share`` of the entries hold; within a bin they count as equal."""
    wanted = share * spread.counts.sum()
    counts, sums = spread.counts[::-1], spread.sums[::-1]
    before = np.cumsum(counts) - counts
    taken = np.clip((wanted - before) / np.maximum(counts, 1), 0.0, 1.0)
    return float((taken * sums).sum() / whole) if (whole := sums.sum()) > 0 else 0.0


def by_module(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, list[Tensor]]]:
    """The kinds of tensors, those with the most of F first."""
    groups: dict[str, list[Tensor]] = {}
    for tensor in tensors.values():
        groups.setdefault(tensor.module, []).append(tensor)
    yield from sorted(groups.items(), key=lambda item: -sum(tensor.sum for tensor in item[1]))


def summarize(tensors: Mapping[str, Tensor]) -> Summary:
    """Sum, mean, maximum and share of the sum over all: of every tensor, of every layer, of every module."""
    whole = sum(tensor.sum for tensor in tensors.values())
    layers: dict[str, list[Tensor]] = {}
    modules: dict[str, list[Tensor]] = {}
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.layer is None, tensor.layer)):
        layers.setdefault(OUTSIDE if tensor.layer is None else f"layer {tensor.layer}", []).append(tensor)
    for tensor in tensors.values():
        modules.setdefault(tensor.module, []).append(tensor)
    return {
        "modules": {name: _statistics(group, whole) for name, group in modules.items()},
        "layers": {name: _statistics(group, whole) for name, group in layers.items()},
        "tensors": {name: _statistics([tensor], whole) for name, tensor in tensors.items()},
    }


def as_text(modules: Mapping[str, Statistics]) -> str:
    """A small table for a terminal, the largest share first."""
    ordered = sorted(modules.items(), key=lambda item: -item[1]["share"])
    width = max(map(len, modules))
    lines = [f"{'F by module':<{width}}  {'share':>6}  {'mean':>9}  {'max':>9}"]
    lines += [f"{name:<{width}}  {s['share']:6.1%}  {s['mean']:9.2e}  {s['max']:9.2e}" for name, s in ordered]
    return "\n".join(lines)


def _statistics(tensors: Collection[Tensor], whole: float) -> Statistics:
    total = sum(tensor.sum for tensor in tensors)
    return {
        "sum": total,
        "mean": total / sum(tensor.size for tensor in tensors),
        "max": max(tensor.max for tensor in tensors),
        "share": total / whole if whole > 0 else 0.0,
    }
