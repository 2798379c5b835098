"""How `e2wm bench train` shows its numbers: tables on stdout, and report.html with the same and charts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import e2wm_jax
from e2wm_jax.files import write_json
from e2wm_jax.model_files import model_name
from e2wm_jax.report import Section, bar_chart, details, key_values, page, paragraph, table, write

_MIB = 2**20
Table = tuple[list[str], list[list[Any]]]


def show(report: dict[str, Any]) -> None:
    """The report as tables on stdout."""
    print(_lead(report))
    for title, (headers, rows) in _tables(report).items():
        print(f"\n{title}")
        _print(headers, rows)
    if report["waiting"]:
        print(f"\nwaiting for data: {report['waiting']['share']:.2%} of the time of {report['waiting']['steps']} steps")
    for peer, how in report["not_installed"].items():
        print(f"{peer}: not installed: {how}")


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.html and report.json into a new directory."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write(folder / "report.html", page_of(report))


def page_of(report: dict[str, Any], more: Sequence[Section] = ()) -> str:
    """The page of a report, drawn from its JSON alone, with `more` sections behind the tables."""
    sections = [Section(title, [table(*found)]) for title, found in _tables(report).items()]
    if report["waiting"]:
        share = f"{report['waiting']['share']:.2%} of the time of {report['waiting']['steps']} steps"
        sections.append(Section("Waiting for data", [paragraph(share)]))
    sections += [
        *more,
        Section("Charts", _charts(report)),
        Section("How it was measured", [paragraph(_HOW), details("All settings", key_values(report["settings"]))]),
    ]
    footer = f"e2wm_jax {e2wm_jax.__version__}, jax {report['jax']}, load of the machine {report['load']}"
    return page("e2wm bench train", sections, lead=_lead(report), footer=footer)


_HOW = (
    "Everything in one run, in turn, after steps that compile. Times are medians over the rounds; a ratio is the "
    "median of the ratios within a round. Tokens are real ones, prompts included and padding left out. MFU is the"
    " work of these tokens (train/throughput.py) over what the device can do at most; on a CPU, over the rate of "
    "a plain product of matrices by the same library in the same run. Memory is what a compiled step holds at "
    "most by XLA's account; of the peer, what its process grew by over its first steps, beyond the model. On a "
    "mesh, operations are those of matrix products and bytes those of the outputs of collectives, both of one "
    "device, from the optimized program: what is in a loop counts as often as the loop turns."
)


def _lead(report: dict[str, Any]) -> str:
    known = f"peak {report['peak'] / 1e12:.0f} TFLOP/s" if report["peak"] else "no peak known"
    share = report["tokens"] / report["places"]
    device = report["device"] if report["device"] != "cpu" else report.get("processor", "cpu")
    model, size = model_name(report["model"]), report["parameters"] / 1e6
    return (
        f"{model} ({size:,.4g} M parameters), {device}, jax {report['jax']}; a plain product runs at "
        f"{report['gflops']:.0f} GFLOP/s, {known}. A measurement reads {report['tokens']} tokens in "
        f"{report['settings']['steps']} steps ({share:.0%} of the places), predicts {report['predicted']}."
    )


def _tables(report: dict[str, Any]) -> dict[str, Table]:
    found = {"EWC-LoRA step": _step_table(report["steps"])}
    if report["regularizers"]:
        headers = ["regularizer", "ms", "/ none", "state, MiB", "peak, MiB"]
        rows = [
            [
                row["regularizer"],
                1000 * row["seconds"],
                row["over_none"],
                row["state_bytes"] / _MIB,
                row["peak_bytes"] / _MIB,
            ]
            for row in report["regularizers"]
        ]
        found[f"Regularizers, {report['settings']['targets'][0]}, one step"] = headers, rows
    if report["meshes"]:
        name = report["settings"]["mesh_model"]
        found[f"Each device of a mesh, EWC-LoRA step of {name}"] = _mesh_table(report["meshes"])
    return found


def _step_table(steps: Sequence[dict[str, Any]]) -> Table:
    headers = ["targets", "side", "ms", "tokens/s", "x PEFT", "MFU", "peak, MiB", "grown, MiB", "loss error"]
    rows = [
        [
            row["targets"],
            row["side"],
            1000 * row["seconds"],
            row["tokens_per_second"],
            row.get("times_peft"),
            row["mfu"],
            row["peak_bytes"] / _MIB if "peak_bytes" in row else None,
            row["grown_bytes"] / _MIB if "grown_bytes" in row else None,
            row.get("loss_error"),
        ]
        for row in steps
    ]
    return headers, rows


def _mesh_table(meshes: Sequence[dict[str, Any]]) -> Table:
    kinds = sorted({kind for row in meshes for kind in row["collectives"]})
    headers = ["mesh", "GFLOP", "held, MiB", "temporaries, MiB", "moved, MiB", *(f"{kind}, MiB" for kind in kinds)]
    rows = [
        [
            row["mesh"],
            row["gflops"],
            row["argument_bytes"] / _MIB,
            row["temporary_bytes"] / _MIB,
            row["moved_bytes"] / _MIB,
            *(row["collectives"].get(kind, 0.0) / _MIB for kind in kinds),
        ]
        for row in meshes
    ]
    return headers, rows


def _charts(report: dict[str, Any]) -> list[str]:
    speed: dict[str, dict[str, float]] = {}
    for row in report["steps"]:
        speed.setdefault(row["targets"], {})[row["side"]] = row["tokens_per_second"]
    drawn = [bar_chart(speed, title="Speed of the EWC-LoRA step", x_label="tokens per second", order=("ours", "peft"))]
    if report["regularizers"]:
        over = {row["regularizer"]: {"ours": row["over_none"]} for row in report["regularizers"]}
        drawn.append(bar_chart(over, title="What a regularizer costs", x_label="time of a step / without"))
    if report["meshes"]:
        moved = {
            row["mesh"]: {kind: size / _MIB for kind, size in row["collectives"].items()} for row in report["meshes"]
        }
        drawn.append(bar_chart(moved, title="What a device receives", x_label="MiB of collectives' outputs per step"))
    return drawn


def _print(headers: list[str], rows: list[list[Any]]) -> None:
    cells = [headers, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for first, *others in cells:
        print(
            "  ".join([f"{first:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(others, widths[1:], strict=True))])
        )


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return "" if value is None else str(value)
