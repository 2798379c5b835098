"""Where F is: by tensor, by layer, by module; as numbers, as a table, as a page with a picture."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import e2wm_jax
from e2wm_jax.config import ModelConfig
from e2wm_jax.fisher.diagonal import Flat
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import hf_names
from e2wm_jax.report import Section, details, heat_map, key_values, page, table, write
from e2wm_jax.report.blocks import Cell

OUTSIDE = "outside the layers"
_COLUMNS = ("share", "sum", "mean", "max")


class Tensor(NamedTuple):
    """One tensor's share of F."""

    layer: int | None  # None: outside the layers
    module: str  # "self_attn.q_proj.weight"; outside the layers the whole name
    size: int
    sum: float
    max: float


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
            total, largest = float(one.sum(dtype=np.float64)), float(one.max())
            found[name] = Tensor(layer if spec.stacked else None, module, one.size, total, largest)
    return found


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


def write_report(path: Path, tensors: Mapping[str, Tensor], summary: Summary, record: Mapping[str, Any]) -> None:
    """One self-contained page: the picture of F by layer and module, its tables, and how it was made."""
    sections = [
        Section("Where F is", [*_picture(tensors), _table("modules", summary)]),
        Section("By layer", [_table("layers", summary)]),
        Section("How it was made", [key_values(_facts(record)), details("Every tensor", _table("tensors", summary))]),
    ]
    lead = (
        "The mean of the squared gradients of single documents, the diagonal of the Fisher information: how much the "
        "model's loss resists a change of each parameter."
    )
    title = f"e2wm fisher: {record['model']}"
    write(path, page(title, sections, lead=lead, footer=f"e2wm_jax {e2wm_jax.__version__}"))


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record in words that fit beside each other."""
    plain = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    corpora = (f"{one['weight']:g} x {' '.join(data['path'] for data in one['data'])}" for one in record["corpora"])
    said = {"corpora": " + ".join(corpora), "documents left out": len(record["skipped"])}
    return {**plain, **record["estimator"], **said}


def _statistics(tensors: Collection[Tensor], whole: float) -> Statistics:
    total = sum(tensor.sum for tensor in tensors)
    return {
        "sum": total,
        "mean": total / sum(tensor.size for tensor in tensors),
        "max": max(tensor.max for tensor in tensors),
        "share": total / whole if whole > 0 else 0.0,
    }


def _picture(tensors: Mapping[str, Tensor]) -> list[str]:
    """Mean F by layer and module; nothing if no tensor belongs to a layer."""
    cells = {(t.layer, t.module): t.sum / t.size for t in tensors.values() if t.layer is not None}
    layers = sorted({layer for layer, _ in cells if layer is not None})
    modules = list(dict.fromkeys(module for _, module in cells))
    if not cells:
        return []
    shown = [[cells.get((layer, module), float("nan")) for module in modules] for layer in layers]
    labels = [module.removesuffix(".weight").removeprefix("self_attn.").removeprefix("mlp.") for module in modules]
    names = [f"layer {layer}" for layer in layers]
    return [heat_map(shown, names, labels, title="Mean F by layer and module", value_label="mean F")]


def _table(kind: str, summary: Summary) -> str:
    rows: list[list[Cell]] = [[name, *(s[column] for column in _COLUMNS)] for name, s in summary[kind].items()]
    return table([kind.removesuffix("s"), *_COLUMNS], rows)
