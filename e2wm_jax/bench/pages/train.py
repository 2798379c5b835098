"""How `e2wm bench train` shows its numbers: tables on stdout, and report.html with the same and charts."""

from collections.abc import Sequence
from typing import Any

from e2wm_jax.report import Section, bar_chart, paragraph, table
from e2wm_jax.storage.model_files import model_name

_MIB = 2**20
Table = tuple[list[str], list[list[Any]]]


HOW = (
    "Everything in one run, in turn, after steps that compile. Times are medians over the rounds; a ratio is the "
    "median of the ratios within a round. Tokens are real ones, prompts included and padding left out. MFU is the"
    " work of these tokens (train/throughput.py) over what the device can do at most; on a CPU, over the rate of "
    "a plain product of matrices by the same library in the same run. Memory is what a compiled step holds at "
    "most by XLA's account; of the peer, what its process grew by over its first steps, beyond the model. On a "
    "mesh, operations are those of matrix products and bytes those of the outputs of collectives, both of one "
    "device, from the optimized program: what is in a loop counts as often as the loop turns."
)


def sections(report: dict[str, Any]) -> list[Section]:
    """The results as the page has them."""
    found = [Section(title, [table(*one)]) for title, one in tables(report).items()]
    waiting = [Section("Waiting for data", [paragraph(_waiting(report))])] if report["waiting"] else []
    return [*found, *waiting]


def sentences(report: dict[str, Any]) -> list[str]:
    """What no table has."""
    waiting = [f"waiting for data: {_waiting(report)}"] if report["waiting"] else []
    return [*waiting, *(f"{peer}: not installed: {how}" for peer, how in report["not_installed"].items())]


def _waiting(report: dict[str, Any]) -> str:
    return f"{report['waiting']['share']:.2%} of the time of {report['waiting']['steps']} steps"


def lead(report: dict[str, Any]) -> str:
    """What was measured, and where."""
    known = f"peak {report['peak'] / 1e12:.0f} TFLOP/s" if report["peak"] else "no peak known"
    share = report["tokens"] / report["places"]
    device = report["device"] if report["device"] != "cpu" else report.get("processor", "cpu")
    model, size = model_name(report["model"]), report["parameters"] / 1e6
    return (
        f"{model} ({size:,.4g} M parameters), {device}, jax {report['jax']}; a plain product runs at "
        f"{report['gflops']:.0f} GFLOP/s, {known}. A measurement reads {report['tokens']} tokens in "
        f"{report['settings']['steps']} steps ({share:.0%} of the places), predicts {report['predicted']}."
    )


def tables(report: dict[str, Any]) -> dict[str, Table]:
    """Title -> headers and rows."""
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


def charts(report: dict[str, Any]) -> list[str]:
    """Speed, and what regularizers and meshes cost."""
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
