"""The demo's `report.html`: what was learned, what was forgotten, and where the Fisher holds the model."""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from e2wm_jax.experience.collect.shards import load_trajectories
from e2wm_jax.experience.journey import journey
from e2wm_jax.fisher.command.page import summary_pictures
from e2wm_jax.report import (
    Point,
    Section,
    details,
    key_values,
    line_chart,
    page,
    paragraph,
    scatter_chart,
    table,
    write,
)
from e2wm_jax.storage.metrics import read_metrics

_MODELS = ("base", "LoRA", "EWC-LoRA")
_RUNS = {"LoRA": "lora", "EWC-LoRA": "ewc-lora"}


def write_report(path: Path, folder: Path, results: dict[str, dict[str, Any]], sizes: dict[str, Any]) -> None:
    """Draw a demo directory's results (by stage name) into one self-contained page."""
    scores = {name: results[f"evaluate {name}"] for name in _MODELS}
    sections = [
        Section("Result", [*_verdict(scores), _table(scores), _trade_off(scores)]),
        Section("Losses", _losses(folder)),
        Section("Fisher by layer", summary_pictures(folder / "fisher")),
        Section("What the agent did", list(_trajectories(folder))),
        Section("How it was made", [_times(results), details("Sizes", key_values(sizes))]),
    ]
    lead = (
        "SmolLM2-135M-Instruct finetuned on household tasks from VirtualHome, once with LoRA alone and once held by "
        "the Fisher information of the pretrained model (EWC-LoRA), from the same start with the same data in order."
    )
    write(path, page("e2wm demo", sections, lead=lead))


def _verdict(scores: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What came out, in words computed from the numbers."""
    base = scores["base"]
    for name in _RUNS:
        skill = scores[name]["activity"] - base["activity"]
        forgotten = scores[name]["text_nats"] - base["text_nats"]
        planned = scores[name]["plan_nats"] - base["plan_nats"]
        yield paragraph(
            f"{name} against the base: activity recognition {skill:+.2f} (standard error "
            f"{_standard_error(scores[name]):.2f}), plans {planned:+.2f} nats per token, general text {forgotten:+.3f} "
            f"nats per token (perplexity times {math.exp(forgotten):.2f})."
        )


def _standard_error(scores: dict[str, Any]) -> float:
    p, n = scores["activity"], scores["activity_n"]
    return math.sqrt(p * (1 - p) / n)


def _table(scores: dict[str, dict[str, Any]]) -> str:
    headers = ["model", "activity QA", "plans, nats", "general text, nats"]
    keys = ("activity", "plan_nats", "text_nats")
    best: dict[str, Literal["highest", "lowest"]] = {
        headers[1]: "highest",
        headers[2]: "lowest",
        headers[3]: "lowest",
    }
    rows = [[name, *(scores[name][key] for key in keys)] for name in _MODELS]
    base = scores["base"]
    caption = (
        f"Held-out embodied tasks ({base['activity_n']} activity questions with four answers; plans as text) and the "
        "held-out half of Python's help topics. Nats are per predicted token: fewer are better."
    )
    return table(headers, rows, caption=caption, best=best)


def _trade_off(scores: dict[str, dict[str, Any]]) -> str:
    points = [
        Point(name, scores[name]["text_nats"], scores[name]["activity"], y_error=_standard_error(scores[name]))
        for name in _MODELS
    ]
    return scatter_chart(
        points,
        title="Skill gained against ability kept",
        x_label="general text, nats per token (held out)",
        y_label="activity QA, accuracy",
        better=("lower", "higher"),
        base="base",
        order=_MODELS,
    )


def _losses(folder: Path) -> list[str]:
    rows = {name: read_metrics(folder / "runs" / run / "metrics.jsonl") for name, run in _RUNS.items()}
    loss = {name: [(row["step"], row["task_loss"]) for row in log] for name, log in rows.items()}
    penalty = {name: [(row["step"], row["penalty"]) for row in log] for name, log in rows.items() if name != "LoRA"}
    return [
        line_chart(
            loss, title="Task loss", x_label="step", y_label="nats per answer token", smooth=True, order=_MODELS
        ),
        line_chart(penalty, title="Penalty", x_label="step", y_label="strength * sum F (sBA)^2", order=_MODELS),
    ]


def _trajectories(folder: Path) -> Iterator[str]:
    experiences = folder / "experiences"
    planned = (
        t for t in load_trajectories([experiences / "mcts"]) if len(t.steps) >= 5 and set(t.goal) <= set(t.achieved)
    )
    for found in islice(planned, 1):
        yield paragraph("Searched:")
        yield from journey(found)
    for found in islice(load_trajectories([experiences / "random"]), 1):
        yield paragraph("Explored at random, with an inclination to carry things about:")
        yield from journey(found)


def _times(results: dict[str, dict[str, Any]]) -> str:
    rows = [[name, result["stage_seconds"]] for name, result in results.items()]
    rows.append(["all", sum(result["stage_seconds"] for result in results.values())])
    return table(["stage", "seconds"], rows, caption="Wall time of each stage, loading and compiling included.")
