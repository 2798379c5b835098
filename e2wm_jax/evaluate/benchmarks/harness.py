"""`e2wm eval harness`: any task of EleutherAI's lm-evaluation-harness, to measure what a model has kept.

    pip install 'e2wm_jax[harness]'
    e2wm eval harness --model M --adapter run/adapter --tasks hellaswag,lambada_openai --limit 100
    e2wm eval harness --model M --tasks my_task --include-path my_tasks

The harness brings the tasks, their prompts and metrics; the model answers through `harness_requests`.  Its scores are
those of the harness' own `hf` model for the same weights.  Tasks load their data from the Hugging Face hub; where there
is none, a task of one's own, a YAML file below --include-path, may name local files:

    task: my_task
    dataset_path: json
    dataset_kwargs: {data_files: {test: /data/questions.jsonl}}
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{question}}"
    doc_to_choice: "{{choices}}"
    doc_to_target: "{{gold}}"

With --chat the harness puts questions and worked examples into the tokenizer's chat template, as turns; texts whose
perplexity is asked for stay as they are.  From Python, `lm_eval.simple_evaluate(model=harness_model(lambda: evaluated),
...)`.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from e2wm_jax.data.chat import chat_prompt, check_template
from e2wm_jax.data.tokenizer import open_tokenizer
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.benchmarks.harness_requests import Answering, generate_until, loglikelihoods, rolling
from e2wm_jax.evaluate.benchmarks.settings import HarnessSettings
from e2wm_jax.evaluate.model import Evaluated, load_evaluated
from e2wm_jax.evaluate.results import is_number
from e2wm_jax.storage.files import json_text, write_text
from e2wm_jax.storage.model_files import locate


def run(settings: HarnessSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, unknown tasks, or tasks whose data cannot be loaded.
    """
    check_at_least(
        ("--limit", settings.limit, 1),
        ("--shots", settings.shots, 0),
        ("--bootstrap", settings.bootstrap, 0),
        ("--batch-size", settings.batch_size, 1),
        ("--max-length", settings.max_length, 2),
    )
    harness = _lm_eval("lm_eval")
    files = locate(settings.model)  # a wrong name is said before data are loaded, and the model is loaded after them
    if settings.chat:
        check_template(open_tokenizer(files))
    manager, names = _tasks(settings)
    model = harness_model(
        cache(lambda: load_evaluated(settings.model, settings.adapter, settings.base_dtype)),
        Answering(settings.batch_size, settings.max_length, settings.special_tokens, settings.seed),
    )
    try:
        found = harness.simple_evaluate(
            model=model,
            tasks=names,
            num_fewshot=settings.shots,
            limit=settings.limit,
            task_manager=manager,
            bootstrap_iters=settings.bootstrap,
            log_samples=settings.out is not None,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=None,
            fewshot_random_seed=settings.seed,
            apply_chat_template=settings.chat,
            fewshot_as_multiturn=settings.chat,
        )
    except (ConnectionError, FileNotFoundError) as error:  # of the library that loads data
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--tasks {','.join(names)}: their data cannot be loaded ({reason}); the Hugging Face hub must be in "
            "reach, or the tasks below --include-path name local files"
        ) from error
    except OverflowError as error:  # of the harness' own e^nats
        raise InputError(
            f"--tasks {','.join(names)}: a perplexity is beyond float64 (more than 709 nats per word or byte); "
            "`e2wm eval perplexity` gives the nats of such a model"
        ) from error
    if settings.out is not None:
        convert = _lm_eval("lm_eval.utils").handle_non_serializable
        write_text(settings.out, json_text(found, indent=2, ensure_ascii=False, default=convert) + "\n")
    return {**scores(found), "lm_eval": harness.__version__}


def harness_model(load: Callable[[], Evaluated], how: Answering | None = None) -> Any:
    """A `lm_eval.api.model.LM`, whose model is loaded when the first request comes.

    Raises:
        InputError: if lm-evaluation-harness is not installed.
    """
    base, options = _lm_eval("lm_eval.api.model").LM, how or Answering()

    class E2wmLM(base):  # type: ignore[misc, valid-type]
        """Our model behind the harness' interface."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            return loglikelihoods(load(), [request.args for request in requests], options)

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            return rolling(load(), [request.args[0] for request in requests], options)

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return generate_until(load(), [request.args for request in requests], options)

        def apply_chat_template(
            self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return chat_prompt(load().tokenizer, chat_history, answer_begun=not add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str:
            return str(load().tokenizer.chat_template) if chat_template else ""

        @property
        def tokenizer_name(self) -> str:
            return str(load().tokenizer.name_or_path).replace("/", "__")

    return E2wmLM()


def scores(found: Mapping[str, Any]) -> dict[str, Any]:
    """The harness' results by task: {"tasks": {task: {metric: value}}, "groups", "n", "shots", "versions"}.

    A metric's standard error stands under its name and "_stderr"; a filter's name, if it has one, behind a comma.
    """
    numbers = found.get("n-samples", {})
    return {
        "tasks": {task: _metrics(values) for task, values in found["results"].items() if task in numbers},
        "groups": {name: _metrics(values) for name, values in found.get("groups", {}).items()},
        "n": {task: count["effective"] for task, count in numbers.items()},
        "shots": {task: found.get("n-shot", {}).get(task) for task in numbers},
        "versions": {task: found.get("versions", {}).get(task) for task in numbers},
    }


def show(result: dict[str, Any]) -> None:
    """A line per metric of each task and group."""
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "metric", title=f"lm-evaluation-harness {result['lm_eval']}")
    for heading in ("value", "standard error", "examples", "shots"):
        table.add_column(heading, justify="right")
    for task, metrics in {**result["tasks"], **result["groups"]}.items():
        for metric, value in metrics.items():
            name, comma, kind = metric.partition(",")
            if name.endswith("_stderr"):
                continue
            error = metrics.get(f"{name}_stderr{comma}{kind}")
            counts = [str(result[key].get(task, "")) for key in ("n", "shots")]
            table.add_row(task, metric, f"{value:.4f}", "" if error is None else f"{error:.4f}", *counts)
    Console(width=100, highlight=False).print(table)


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """ "acc,none": 0.5 as "acc": 0.5; what is no number is left out, such as a standard error "N/A" or NaN."""
    kept = {}
    for key, value in values.items():
        if "," in key and is_number(value):
            kept[key.removesuffix(",none")] = float(value)
    return kept


def _tasks(settings: HarnessSettings) -> tuple[Any, list[str]]:
    """The harness' task manager, and the names asked for."""
    for folder in settings.include_path:
        if not folder.is_dir():
            raise InputError(f"--include-path {folder}: no such folder; give one with task files (.yaml)")
    names = [name for word in settings.tasks for name in word.split(",") if name]
    if not names:
        raise InputError("--tasks is empty; give names of tasks, such as hellaswag")
    manager = _lm_eval("lm_eval.tasks").TaskManager(include_path=[str(folder) for folder in settings.include_path])
    for name in names:
        if not manager.match_tasks([name]):
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise InputError(f"--tasks {name}: no such task in the harness or below --include-path; {hint}")
    return manager, names


def _lm_eval(module: str) -> Any:
    """A module of the harness, which an extra brings.

    Raises:
        InputError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness is not usable here ({error}); run `pip install 'e2wm_jax[harness]'`"
        ) from error
