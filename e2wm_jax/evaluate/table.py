"""What scores look like on a terminal."""

from collections.abc import Mapping
from typing import Any

from e2wm_jax.evaluate.results import majority_of, number_of

# The metrics of a set that are shown, in this order, and the digits behind the point.
_METRICS = {
    "accuracy": 3,
    "rouge1": 3,
    "rouge2": 3,
    "rougeL": 3,
    "lcs": 3,
    "mean": 3,
    "nats": 3,
    "perplexity": 2,
    "perplexity_2_nats": 2,
    "bits_per_byte": 3,
}
_WITH_MAJORITY = ("accuracy", "rougeL", "lcs", "mean")  # what the constant answer is scored by


def show_scores(result: Mapping[str, Any]) -> None:
    """The result of one set, a line per key; intervals behind their scores."""
    width = max(map(len, result))
    for key, value in result.items():
        if key != "intervals":
            interval = result.get("intervals", {}).get(key)
            ends = f"  [{number(interval[0])}, {number(interval[1])}]" if interval else ""
            print(f"{key:<{width}}  {number(value) if value is None or isinstance(value, float) else value}{ends}")


def number(value: float | None, digits: str = ".6g") -> str:
    """A score; None is one that no float64 holds."""
    return "above 1e308" if value is None else f"{value:{digits}}"


def show_sets(sets: Mapping[str, Mapping[str, Any]], averages: Mapping[str, float]) -> None:
    """All sets in one table: scores with their 95 % intervals, baselines and cleaned scores; then what is wrong."""
    from rich.console import Console
    from rich.table import Table

    table = Table("set", "metric", title="every set; intervals of 95 %")
    for heading in ("score", "interval", "majority", "clean (n)", "n"):
        table.add_column(heading, justify="right")
    for name, result in sets.items():
        for index, metric in enumerate(_shown(result)):
            first = index == 0
            n = str(number_of(result)) if first else ""
            table.add_row(name if first else "", metric, *_cells(result, metric), n)
        table.add_section()
    for name, value in averages.items():
        table.add_row("mean over sets", name, f"{value:.3f}", "", "", "", "")
    console = Console(width=110, highlight=False)
    console.print(table)
    for name, result in sets.items():
        for note in result.get("defects", ()):
            console.print(f"{name}: {note}", markup=False)


def _shown(result: Mapping[str, Any]) -> list[str]:
    return [metric for metric in _METRICS if isinstance(result.get(metric), float)]


def _cells(result: Mapping[str, Any], metric: str) -> list[str]:
    digits = _METRICS[metric]
    form = f".{digits}f" if abs(result[metric]) < 1e6 else ".3g"
    interval = result["intervals"].get(metric)  # bAbI's mean may have none
    majority = majority_of(result) if metric in _WITH_MAJORITY else None
    clean = result.get("clean", {})
    shown = ""
    if metric in clean:
        shown = "none left" if clean[metric] is None else f"{clean[metric]:.{digits}f} ({clean['n']})"
    return [
        f"{result[metric]:{form}}",
        f"{number(interval[0], form)}-{number(interval[1], form)}" if interval else "",
        "" if majority is None else f"{majority:.3f}",
        shown,
    ]
