"""Scores of the Embodied Agent Interface: the package's own evaluator, in a process of its own, and what is published.

Responses have the form that the package reads: a list of {"identifier", "llm_output"}.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from e2wm_jax.storage.files import read_json, write_json

AgentTask = Literal["action_sequencing", "goal_interpretation"]
Response = dict[str, str]  # {"identifier", "llm_output"}

FOLDERS: dict[str, str] = {"action_sequencing": "action_sequence", "goal_interpretation": "goal_interpretation"}
# Model, then percent: F1 of goals; success and executable plans of action sequencing.
_PUBLISHED = """
o1-preview 42.7 71.1 78.4
Gemini 1.5 Pro 37.9 73.1 83.3
Claude-3.5 Sonnet 33.0 72.8 75.4
GPT-4o 36.5 61.6 71.1
Claude-3 Opus 31.4 66.2 70.8
o1-mini 31.2 65.9 68.9
GPT-4-turbo 33.2 57.0 65.6
Gemini 1.5 Flash 26.8 61.9 67.2
Mistral Large 26.8 73.4 83.6
Claude-3 Sonnet 29.4 62.9 67.2
Cohere Command R+ 22.4 63.3 70.2
Mixtral 8x22B MoE 26.6 46.2 49.5
Claude-3 Haiku 28.0 43.3 48.5
Llama3 70B Instruct 26.9 55.7 63.0
Cohere Command R 36.7 24.6 37.7
Gemini 1.0 Pro 23.8 34.4 45.9
GPT-3.5-turbo 22.7 14.7 31.8
Llama3 8B Instruct 22.6 21.6 25.9
"""
_NAMED_GOALS = {
    "node goals": ("name", "state"),
    "edge goals": ("from_name", "to_name", "relation"),
    "action goals": ("action",),
}
_EVALUATOR = """
import importlib, sys
from pathlib import Path
from types import SimpleNamespace
task, responses, out = sys.argv[1:]
module = importlib.import_module(f"virtualhome_eval.evaluation.{task}.scripts.evaluate_results")
package = Path(module.__file__).parents[3]
module.evaluate_results(SimpleNamespace(
    dataset="virtualhome", scene_id=1, llm_response_path=responses, output_dir=out,
    resource_dir=str(package / "resources"), dataset_dir=str(package / "dataset"),
    evaluation_dir=str(package / "evaluation"),
))
"""


def readable(task: AgentTask, text: str) -> str:
    """The text, or "" where it is JSON of a shape on which the package's reader breaks off."""
    try:
        read = json.loads(text.removeprefix("```json").strip("`").strip().replace("\n", "").replace("'", '"'))
    except json.JSONDecodeError:
        return text  # the reader says so itself
    if not isinstance(read, dict):
        return ""
    fits = _are_actions(read) if task == "action_sequencing" else all(_are_goals(read, kind) for kind in _NAMED_GOALS)
    return text if fits else ""


def _are_actions(read: dict[str, Any]) -> bool:
    return all(
        name == name.upper() and isinstance(things, list) and all(isinstance(thing, str) for thing in things)
        for name, things in read.items()
    )


def _are_goals(read: dict[str, Any], kind: str) -> bool:
    goals = read.get(kind, [])
    return isinstance(goals, list) and all(
        isinstance(goal, dict) and all(isinstance(goal.get(key, ""), str) for key in _NAMED_GOALS[kind])
        for goal in goals
    )


def score(task: AgentTask, responses: list[Response]) -> tuple[dict[str, Any] | None, str | None]:
    """What the package's evaluator makes of the responses: its summary in percent, or None and why it made none."""
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "responses" / FOLDERS[task] / "ours_outputs.json", responses)
        done = subprocess.run(
            [sys.executable, "-c", _EVALUATOR, FOLDERS[task], f"{folder}/responses", f"{folder}/scores"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return read_json(Path(folder) / "scores" / FOLDERS[task] / "ours" / "summary.json"), None
    reason = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
    if reason.startswith("ZeroDivisionError"):
        return None, "the evaluator divides by the number of goals, which is 0 here; give more --samples"
    if reason.startswith("ModuleNotFoundError"):
        return None, f"the evaluator lacks a module ({reason.partition(': ')[2]}); install it with pip"
    return None, f"the evaluator of virtualhome-eval failed: {reason}"


def headline(task: AgentTask, scores: dict[str, Any]) -> dict[str, float]:
    """Of a summary, what the leaderboard shows."""
    if task == "goal_interpretation":
        return {"f1": scores["all_f1"]}
    return {
        "task_success_rate": scores["goal_evaluation"]["task_success_rate"],
        "execution_success_rate": scores["trajectory_evaluation"]["execution_success_rate"],
    }


def leaderboard(task: AgentTask) -> dict[str, dict[str, float]]:
    """The published scores in percent, model by model, the best overall first."""
    found = {}
    for line in _PUBLISHED.strip().splitlines():
        name, f1, success, executable = line.rsplit(" ", 3)
        sequencing = {"task_success_rate": float(success), "execution_success_rate": float(executable)}
        found[name] = {"f1": float(f1)} if task == "goal_interpretation" else sequencing
    return found
