"""`e2wm eval embodied-agent`: two tasks of the Embodied Agent Interface (Li et al., NeurIPS 2024), VirtualHome's part.

    action_sequencing      the scene and a goal in symbols -> a JSON object {"WALK": ["sink"], "GRAB": ["cup"]}
    goal_interpretation    the scene and a task in words   -> a JSON object of node, edge and action goals

Prompts and scores are those of the package virtualhome-eval 0.1.1 (MIT): its prompts as it ships them, responses in the
form that it reads (``{name}_outputs.json``, a list of {"identifier", "llm_output"}), and its own evaluator, which
needs numpy beside the package and runs in a process of its own. Of 342 programs it leaves out those whose recorded
ending misses their own goals, 37 in action sequencing. Its other two tasks, subgoal decomposition and transition
modeling, need a temporal logic parser and a PDDL planner; they are not offered here.

A model that goes on talking is cut where its first JSON object closes; what it says before counts as its response. The
reader breaks off where a response is JSON of another shape (a list, an action in small letters); such a response is
written empty, which is scored as one that cannot be parsed, and counted as malformed. Peculiarities of the evaluator:
an object has each action once, so of repeated actions the last stays; a response that is not JSON counts twice in
``grammar_error.parsing``; with no goal of a kind among the samples, or no readable goal at all, it divides by zero.

Beside the scores stands the published leaderboard (project site, website/data/virtualhome_total_benchmark.json, commit
04acc09). Of the responses of Llama 3 8B that it ships, the package itself makes 22.6 in goal interpretation, as
published, and 21.0 success, 22.3 executable in action sequencing where 21.6 and 25.9 are published.
"""

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.benchmarks.embodied_agent_scores import (
    FOLDERS,
    AgentTask,
    Response,
    headline,
    leaderboard,
    readable,
    score,
)
from e2wm_jax.evaluate.benchmarks.settings import EmbodiedAgentSettings
from e2wm_jax.evaluate.model import check_positions, ending_tokens, load_evaluated, open_evaluated, prompt_ids
from e2wm_jax.evaluate.predictions import Predictions, content_digest, identity
from e2wm_jax.evaluate.texts.continuations import continuations
from e2wm_jax.evaluate.texts.prompting import Prompting
from e2wm_jax.models.decoding.generate import Decoding
from e2wm_jax.models.positions import fewer_new_tokens
from e2wm_jax.storage.files import read_text, write_json


def run(settings: EmbodiedAgentSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings, malformed responses, or where virtualhome-eval is missing.
    """
    check_at_least(("--samples", settings.samples, 1), ("--batch-size", settings.batch_size, 1))
    if (settings.model is None) == (settings.responses is None):
        raise InputError("give either --model M or --responses FILE")
    if settings.adapter and settings.model is None:
        raise InputError("--adapter needs --model")
    found = package_folder()
    name = settings.name or re.sub(r"[^\w.+-]+", "-", Path(settings.model or "responses").name) or "model"
    if settings.model is None:
        assert settings.responses is not None
        made = read_responses(settings.responses, {prompt["identifier"] for prompt in prompts(found, settings.task)})
    else:
        made = respond(settings, spread(prompts(found, settings.task), settings.samples))
    whole = [{**one, "llm_output": readable(settings.task, one["llm_output"])} for one in made]
    path = settings.out / "responses" / FOLDERS[settings.task] / f"{name}_outputs.json"
    write_json(path, whole)
    scores, why_not = score(settings.task, whole)
    result = {
        "task": settings.task,
        "name": name,
        "n": len(whole),
        "malformed": sum(one != other for one, other in zip(made, whole, strict=True)),
        "responses": str(path),
        "scores": scores,
        **({"not_scored": why_not} if why_not else {}),
        "leaderboard": leaderboard(settings.task),
    }
    write_json(settings.out / f"{settings.task}.json", result)
    return result


def show(result: dict[str, Any]) -> None:
    """The scores in percent, and under them the published ones."""
    print(f"{result['task']}: {result['n']} responses of {result['name']}, {result['malformed']} malformed")
    print(f"in {result['responses']}")
    if result["scores"] is None:
        print(f"not scored: {result['not_scored']}")
    published: dict[str, dict[str, float]] = result["leaderboard"]
    ours = result["scores"] and headline(result["task"], result["scores"])
    rows = {**({f"{result['name']} (here)": ours} if ours else {}), **published}
    columns = list(next(iter(published.values())))
    width = max(map(len, rows))
    print(f"{'%':<{width}}" + "".join(f"{column:>26}" for column in columns))
    for name, row in rows.items():
        print(f"{name:<{width}}" + "".join(f"{row[column]:>26.1f}" for column in columns))


def package_folder() -> Path:
    """Where virtualhome-eval is.

    Raises:
        InputError: if it is not installed.
    """
    spec = importlib.util.find_spec("virtualhome_eval")  # does not execute the package
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "virtualhome-eval is not installed; run: pip install --no-deps virtualhome-eval==0.1.1 (make setup does)"
        )
    return Path(spec.submodule_search_locations[0])


def prompts(package: Path, task: AgentTask) -> list[dict[str, str]]:
    """The package's prompts, {"identifier", "llm_prompt"} each.

    Raises:
        InputError: if the package has none.
    """
    path = package / "evaluation" / FOLDERS[task] / "prompts" / "helm_prompts.json"
    found: list[dict[str, str]] = json.loads(read_text(path))
    return found


def spread(items: list[dict[str, str]], samples: int | None) -> list[dict[str, str]]:
    """So many of the items, evenly over all; the programs of one activity stand next to each other."""
    count = min(samples or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]


def respond(settings: EmbodiedAgentSettings, asked: Sequence[dict[str, str]]) -> list[Response]:
    """The model's responses, kept in ``out`` as they are made.

    Raises:
        InputError: for a model that cannot be loaded, or a prompt that is too long for its positions.
    """
    assert settings.model is not None
    decoding = Decoding(settings.max_new_tokens, settings.beams)
    decoding.check()
    opened, names = open_evaluated(settings.model), [f"prompt {one['identifier']}" for one in asked]
    texts = [one["llm_prompt"] for one in asked]
    prompting = Prompting(settings.special_tokens, chat=settings.chat)
    prompting.check()
    encoded = prompt_ids(opened, texts, prompting, where=names.__getitem__)
    for name, tokens in zip(names, encoded, strict=True):
        where = f"{name}: {len(tokens)} tokens and --max-new-tokens {settings.max_new_tokens}"
        way_out = f"{fewer_new_tokens(len(tokens), opened.config.max_positions)}take a model for longer texts"
        check_positions(opened, len(tokens) + settings.max_new_tokens, where, way_out)
    evaluated = load_evaluated(opened, settings.adapter, settings.base_dtype)
    made = identity(
        evaluated,
        content_digest(list(asked)),
        beams=settings.beams,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        **asdict(prompting),
    )
    ends = ending_tokens(evaluated, chat=settings.chat)
    path = settings.out / f"{settings.task}.predictions.jsonl"
    predictions = Predictions(path, made, len(asked), resume=settings.resume, is_record=_is_record)
    for start in range(0, len(asked), settings.batch_size):
        # The same batches as without an interruption: a response depends in its last bits on those beside it.
        indices = range(start, min(start + settings.batch_size, len(asked)))
        if predictions.done.keys() >= set(indices):
            continue
        texts = continuations(
            evaluated,
            [encoded[index] for index in indices],
            decoding,
            ends=ends,
            batch_size=settings.batch_size,
            names=[names[index] for index in indices],
        )
        predictions.add(
            [
                {"index": index, "identifier": asked[index]["identifier"], "llm_output": first_object(text)}
                for index, text in zip(indices, texts, strict=True)
            ]
        )
    return [{key: record[key] for key in ("identifier", "llm_output")} for record in predictions.finish()]


def first_object(text: str) -> str:
    """The text up to the end of its first JSON object; all of it where none begins or ends."""
    depth, quote = 0, ""
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[place - 1] != "\\" else quote
        elif letter in "\"'" and depth:
            quote = letter
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
            if depth == 0:
                return text[: place + 1]
            depth = max(depth, 0)
    return text


def read_responses(path: Path, known: set[str]) -> list[Response]:
    """Responses in the package's form.

    Raises:
        InputError: if the file is no list of {"identifier", "llm_output"}, or of a program that the task does not have.
    """
    try:
        records = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    wanted = 'expected [{"identifier": "27_2", "llm_output": "..."}, ...]'
    if not isinstance(records, list) or not records:
        raise InputError(f"{path}: no responses; {wanted}")
    for number, record in enumerate(records):
        keys = ("identifier", "llm_output")
        if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in keys):
            raise InputError(f"{path}: response {number}: {wanted}")
        if record["identifier"] not in known:
            raise InputError(f"{path}: response {number}: there is no program {record['identifier']!r} in this task")
    return [{key: record[key] for key in ("identifier", "llm_output")} for record in records]


def _is_record(record: dict[str, Any]) -> bool:
    return isinstance(record.get("identifier"), str) and isinstance(record.get("llm_output"), str)
