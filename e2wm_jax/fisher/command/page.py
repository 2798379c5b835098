"""`report.html` of a Fisher: where it is, how its entries are distributed, which tensors hold most, how it was made."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2wm_jax.fisher.command.summary import (
    BINS,
    Spread,
    Summary,
    Tensor,
    bin_start,
    by_module,
    held_by_largest,
    measured,
    merged,
    place_of,
    quantile,
    summarize,
)
from e2wm_jax.fisher.files import METADATA_FILE, stored_tensors
from e2wm_jax.report import (
    Section,
    bar_chart,
    details,
    heat_map,
    key_values,
    line_chart,
    page,
    paragraph,
    table,
    write,
)
from e2wm_jax.report.blocks import Cell
from e2wm_jax.storage.files import read_json
from e2wm_jax.storage.model_files import model_name

_COLUMNS = ("share", "sum", "mean", "max")
_LARGEST = 10  # tensors that are named
_LINES = 6  # modules whose distribution is drawn
_OCTAVE = 8  # bins of a factor of two
_SIZES = (
    "How large the single entries of F are: a curve further to the right is of a module whose parameters matter more "
    "one by one; a wide curve is of one in which a few matter and most do not."
)
_QUANTILES = (
    "Zeros: the share of entries that are. Quantiles are lower ends of bins at most 13 % wide. Top 1 %: which part of "
    "the module's F the largest hundredth of its entries holds."
)
# Parts of names in the order in which a layer uses them.
_FLOW = (
    *("q_proj", "k_proj", "v_proj", "query_key_value", "o_proj", "out_proj", "attention.dense"),
    *("c_fc", "fc_in", "fc1", "gate_proj", "up_proj", "h_to_4h", "c_proj", "fc_out", "fc2", "down_proj", "4h_to_h"),
)
_PREFIXES = ("self_attn.", "mlp.", "attn.attention.", "attn.")


def draw(path: Path, folder: Path) -> None:
    """The page of a Fisher directory, ours or in the official form.

    Raises:
        InputError: if it holds no tensors, or such that are no Fisher.
    """
    record = read_json(folder / METADATA_FILE) if (folder / METADATA_FILE).is_file() else {}
    found = read_tensors(folder)
    named = [name for name in record.get("summary", {}).get("tensors", {}) if name in found]  # in the model's order
    tensors = {name: found[name] for name in dict.fromkeys([*named, *found])}
    write_report(path, tensors, summarize(tensors), record)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Where F is and how large, of every tensor of a directory; one is in memory at a time."""
    return {name: measured(value, *place_of(name)) for name, value in stored_tensors(folder)}


def write_report(path: Path, tensors: Mapping[str, Tensor], summary: Summary, record: Mapping[str, Any]) -> None:
    """One self-contained page: pictures of F by layer and module, its tables, and how it was made.

    ``record`` is `fisher.json`; of a Fisher in the official form, which has none, it may be empty.
    """
    made = key_values(_facts(record)) if record else paragraph("There is no fisher.json that would say.")
    sections = [
        Section("Where F is", [*pictures(summary), _shares(tensors), _table("modules", summary)]),
        Section("By size", [paragraph(_SIZES), _distribution(tensors), paragraph(_QUANTILES), _quantiles(tensors)]),
        Section("By layer", [_table("layers", summary)]),
        Section("Tensors", [_largest(summary), details("Every tensor", _table("tensors", summary))]),
        Section("How it was made", [made]),
    ]
    lead = (
        "The mean of the squared gradients of single documents, the diagonal of the Fisher information: how much the "
        "model's loss resists a change of each parameter."
    )
    title = f"e2wm fisher: {model_name(str(record.get('model', path.parent.name)))}"
    write(path, page(title, sections, lead=lead))


def pictures(summary: Summary) -> list[str]:
    """Mean F by layer and module, and what each layer holds; nothing if no tensor belongs to a layer."""
    places = {name: place_of(name) for name in summary["tensors"]}
    found = {place: summary["tensors"][name] for name, place in places.items() if place[0] is not None}
    if not found:
        return []
    layers = sorted({layer for layer, _ in found if layer is not None})
    modules = sorted({module for _, module in found}, key=lambda module: (_in_flow(module), module))
    cells = [[found[layer, m]["mean"] if (layer, m) in found else math.nan for m in modules] for layer in layers]
    names, title = [f"layer {layer}" for layer in layers], "Mean F by layer and module"
    means = heat_map(cells, names, [_short(module) for module in modules], title=title, value_label="mean of F")
    shares = [(layer, sum(one["share"] for (at, _), one in found.items() if at == layer)) for layer in layers]
    held = {"all modules": shares}
    return [means, line_chart(held, title="Share of F by layer", x_label="layer", y_label="share of all F")]


def summary_pictures(folder: Path) -> list[str]:
    """`pictures` of a directory whose fisher.json has a summary; else nothing."""
    path = folder / METADATA_FILE
    summary = read_json(path).get("summary") if path.is_file() else None
    return pictures(summary) if summary else []


def _in_flow(module: str) -> int:
    """Where a kind of weight stands on the way through a layer; unknown ones come last."""
    return next((n for n, part in enumerate(_FLOW) if part in module), len(_FLOW))


def _short(module: str) -> str:
    for prefix in _PREFIXES:
        module = module.removeprefix(prefix)
    return module.removesuffix(".weight")


def _shares(tensors: Mapping[str, Tensor]) -> str:
    """What each kind of tensor holds of F, beside what it holds of the entries."""
    whole = sum(tensor.sum for tensor in tensors.values()) or 1.0
    size = sum(tensor.size for tensor in tensors.values())
    values = {
        _short(module): {"of F": sum(t.sum for t in group) / whole, "of the entries": sum(t.size for t in group) / size}
        for module, group in by_module(tensors)
    }
    return bar_chart(values, title="Share of F by module", x_label="share")


def _distribution(tensors: Mapping[str, Tensor]) -> str:
    series = {_short(module): _octaves(_spread(group)) for module, group in list(by_module(tensors))[:_LINES]}
    title = "Distribution of the entries" + (f", the {_LINES} modules with most of F" if len(series) == _LINES else "")
    return line_chart(series, title=title, x_label="log10 F", y_label="share of the module's entries, by factors of 2")


def _spread(group: list[Tensor]) -> Spread:
    return merged(tensor.spread for tensor in group)


def _octaves(spread: Spread) -> list[tuple[float, float]]:
    """(decimal logarithm of the middle, share) of each factor of two between the smallest and the largest entries.

    Entries of zero, and those too small for a normal float32, are in the table only.
    """
    shares = spread.counts.reshape(-1, _OCTAVE).sum(axis=1) / max(spread.counts.sum(), 1)
    starts = range(0, BINS, _OCTAVE)
    points = [
        (math.log10(bin_start(start) * 2**0.5), share) for start, share in zip(starts, shares, strict=True) if start
    ]
    shown = [n for n, (_, share) in enumerate(points) if share > 0]
    return [(x, float(y)) for x, y in points[shown[0] : shown[-1] + 1]] if shown else []


def _quantiles(tensors: Mapping[str, Tensor]) -> str:
    rows: list[list[Cell]] = []
    for module, group in by_module(tensors):
        spread = _spread(group)
        zeros = float(spread.counts[0] / max(spread.counts.sum(), 1))
        points = (quantile(spread, share) for share in (0.01, 0.5, 0.99))
        rows.append([_short(module), zeros, *points, max(t.max for t in group), held_by_largest(spread, 0.01)])
    headers = ["module", "zeros", "1 %", "median", "99 %", "max", "top 1 %"]
    return table(headers, rows, caption="Quantiles of the entries", digits=3)


def _largest(summary: Summary) -> str:
    ordered = sorted(summary["tensors"].items(), key=lambda item: -item[1]["share"])[:_LARGEST]
    rows: list[list[Cell]] = [[name, *(one[column] for column in _COLUMNS)] for name, one in ordered]
    return table(["tensor", *_COLUMNS], rows, caption="The tensors that hold most of F")


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record in words that fit beside each other."""
    plain = {key: value for key, value in record.items() if not isinstance(value, dict | list)}
    corpora = (
        f"{one['weight']:g} x {' '.join(data['path'] for data in one['data'])}" for one in record.get("corpora", ())
    )
    said = {"corpora": " + ".join(corpora), "documents left out": len(record.get("skipped", ()))}
    return {**plain, **record.get("estimator", {}), **said}


def _table(kind: str, summary: Summary) -> str:
    found = list(summary[kind].items())
    if kind != "layers":  # these stay in their order
        found.sort(key=lambda item: -item[1]["share"])
    rows: list[list[Cell]] = [[name, *(s[column] for column in _COLUMNS)] for name, s in found]
    return table([kind.removesuffix("s"), *_COLUMNS], rows)
