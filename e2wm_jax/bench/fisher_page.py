"""`report.html` of `e2wm bench fisher`: the table, and time, memory and speed drawn."""

from pathlib import Path
from typing import Any

import e2wm_jax
from e2wm_jax.files import write_json
from e2wm_jax.report import Section, bar_chart, details, key_values, page, paragraph, table, write

COLUMNS = {
    "examples_per_second": "examples/s",
    "tokens_per_second": "tokens/s",
    "over_textbook": "/ textbook",
    "over_plain": "/ plain",
    "times_official": "x official",
    "extra_parameters": "memory, P",
    "grown_parameters": "grown, P",
}
_CHARTS = (
    ("over_textbook", "Time of a pass", "time / ordinary batch gradient by the book"),
    ("times_official", "Speed", "speed / official-style loop"),
    ("extra_parameters", "Memory", "extra memory / memory of the parameters in float32"),
)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.html and report.json into a new directory."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    sections = [
        Section("Result", [_layouts(report) if report["settings"]["packed"] else _methods(report)]),
        Section("Drawn", _charts(report)),
        Section("How it was measured", [paragraph(_HOW), details("All settings", key_values(report["settings"]))]),
    ]
    rates = {"ours": report["gflops"]} | {row["method"]: row["gflops"] for row in report["rows"] if "gflops" in row}
    lead = (
        f"{report['model']}, {report['parameters'] / 1e6:.1f} M parameters, on {report['device']}. A plain product of "
        f"matrices runs at {', '.join(f'{rate:.0f} GFLOP/s ({name})' for name, rate in rates.items())}."
    )
    footer = f"e2wm_jax {e2wm_jax.__version__}, jax {report['jax']}, load of the machine {report['load']}"
    write(folder / "report.html", page("e2wm bench fisher", sections, lead=lead, footer=footer))


_HOW = (
    "Everything in one run, in turn, after a pass that compiles. Times are medians over the rounds; a ratio is the "
    "median of the ratios within a round. Memory is what a compiled step holds at most by XLA's account beyond the "
    "parameters and its result (F, or the gradient); for peers, what their process grew by beyond F. The error of F is "
    "the greatest of any tensor over that tensor's greatest F, against the gradient of each document by itself."
)


def _methods(report: dict[str, Any]) -> str:
    rows = [[row["method"], *(row.get(key) for key in COLUMNS), verdict(row)] for row in report["rows"]]
    rows += [[peer, *[None] * len(COLUMNS), f"not installed: {how}"] for peer, how in report["not_installed"].items()]
    return table(["method", *COLUMNS.values(), "F"], rows, caption="Ours first, then the peers.")


def _layouts(report: dict[str, Any]) -> str:
    headers = ["layout", "documents", "tokens", "real share", "seconds", "µs per real token", "/ full"]
    keys = ("layout", "documents", "tokens", "real_share", "seconds", "microseconds_per_token", "over_full")
    return table(headers, [[row[key] for key in keys] for row in report["rows"]])


def _charts(report: dict[str, Any]) -> list[str]:
    if report["settings"]["packed"]:
        values = {row["layout"]: {"fused": row["over_full"]} for row in report["rows"]}
        return [bar_chart(values, title="Time per real token", x_label="time / documents of full length")]
    drawn = []
    for key, title, label in _CHARTS:
        values = {row["method"]: {row["side"]: row[key]} for row in report["rows"] if key in row}
        drawn += [bar_chart(values, title=title, x_label=label, order=("ours", "peer"))] if values else []
    return drawn


def verdict(row: dict[str, Any]) -> str:
    """What is said of a row's F: its error, what is missing or wrong; of an ordinary gradient, the way to it."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "error" not in row:
        return str(row.get("way", ""))
    notes = [f"{row['error']:.1e}"]
    if row["wrong"]:
        notes.append(f"WRONG in {row['wrong']} of {row['tensors']} tensors, e.g. {row['first_wrong']}")
    if row["missing"]:
        notes.append(f"{row['missing']} tensors missing")
    return "; ".join(notes)
