"""The `e2wm` command: one line per step of the flow.

Results go to stdout (`--json`: one JSON object as its last line), progress and messages to stderr.  Exit codes: 0 done,
2 bad input or usage (one line `error: ...`), 130 interrupted with what was done kept, 1 anything else.
"""

import contextlib
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from e2wm_jax import __version__
from e2wm_jax.allocator import keep_freed_memory
from e2wm_jax.compilation import say_compilations
from e2wm_jax.errors import WAYS_OUT, InputError, disk_error
from e2wm_jax.files import json_text
from e2wm_jax.progress import busy


class Command(NamedTuple):
    """Where a command lives in this package: imported only when it is called, the function only to be run."""

    settings: str  # module and frozen dataclass; imports no jax
    function: str  # module and function (settings) -> dict; the module may have a `show` (dict) too
    summary: str


COMMANDS = {
    "doctor": Command("doctor.DoctorSettings", "doctor.run", "versions, devices, what is installed, what is missing"),
    "demo": Command(
        "demo_settings.DemoSettings", "demo.run", "the whole flow on the embedded default, with table and report"
    ),
    "collect": Command(
        "simulate.jobs.CollectSettings", "simulate.workers.collect", "let an agent live in a world: trajectories"
    ),
    "replay": Command(
        "simulate.replay_command.ReplaySettings",
        "simulate.replay_command.run",
        "run a program in a world, step by step",
    ),
    "tasks": Command("tasks.run.TasksSettings", "tasks.run.run", "trajectories to text tasks"),
    "fisher": Command(
        "fisher.settings.FisherSettings", "fisher.run.run", "exact per-example diagonal Fisher of a model"
    ),
    "train": Command("train.settings.TrainSettings", "train.run.run", "finetune LoRA adapters, held by a regularizer"),
    "sequence": Command(
        "train.sequence_settings.SequenceSettings",
        "train.sequence.run",
        "finetune on task after task, and measure forgetting",
    ),
    "eval qa": Command("evaluate.settings.QaSettings", "evaluate.qa.run", "multiple-choice accuracy"),
    "eval generate": Command(
        "evaluate.settings.GenerationSettings",
        "evaluate.generation.run",
        "ROUGE and path overlap of what a model writes",
    ),
    "eval perplexity": Command(
        "evaluate.settings.PerplexitySettings", "evaluate.perplexity.run", "perplexity on general text"
    ),
    "eval plans": Command(
        "evaluate.settings.PlansSettings",
        "evaluate.plans.run",
        "plans carried out in the world: steps that work, goals reached",
    ),
    "eval embodied-agent": Command(
        "evaluate.benchmark_settings.EmbodiedAgentSettings",
        "evaluate.embodied_agent.run",
        "Embodied Agent Interface: action sequencing, goal interpretation",
    ),
    "eval babi": Command(
        "evaluate.benchmark_settings.BabiSettings", "evaluate.babi.run", "bAbI tasks 1-20, few-shot, by exact match"
    ),
    "eval harness": Command(
        "evaluate.benchmark_settings.HarnessSettings",
        "evaluate.harness.run",
        "tasks of EleutherAI's lm-evaluation-harness",
    ),
    "eval all": Command(
        "evaluate.settings.SuiteSettings", "evaluate.suite.run", "every evaluation set of a folder, one table"
    ),
    "report": Command(
        "pages.settings.ReportSettings",
        "pages.command.run",
        "report.html of a run, a Fisher, an evaluation, experiences",
    ),
    "export": Command(
        "export_settings.ExportSettings", "export.run", "a Hugging Face directory, with an adapter merged"
    ),
    "compare": Command(
        "compare.settings.CompareSettings", "compare.run.run", "train and evaluate many arms: skill against forgetting"
    ),
    "generate": Command("evaluate.settings.GenerateSettings", "evaluate.continuations.run", "continue prompts"),
    "bench generate": Command(
        "bench.settings.GenerateBenchSettings",
        "bench.generate.run",
        "generation and answer scoring, against transformers",
    ),
    "bench models": Command(
        "bench.settings.ModelsBenchSettings", "bench.models.run", "every family's passes, against transformers"
    ),
    "bench world": Command(
        "bench.settings.WorldBenchSettings",
        "bench.world.run",
        "the engines of the world, against VirtualHome's executor",
    ),
    "bench search": Command(
        "bench.settings.SearchBenchSettings", "bench.search.run", "the searches, against the reference search"
    ),
    "bench loader": Command(
        "bench.settings.LoaderBenchSettings", "bench.loader.run", "the data loader, against a plain loop and training"
    ),
    "bench fisher": Command(
        "bench.settings.FisherBenchSettings", "bench.fisher.run", "Fisher passes, against ordinary gradients and peers"
    ),
    "bench penalty": Command(
        "bench.settings.PenaltyBenchSettings", "bench.penalty.run", "the EWC penalty, against the official expression"
    ),
    "bench train": Command(
        "bench.settings.TrainBenchSettings",
        "bench.train.run",
        "the regularized LoRA step, against PEFT and transformers",
    ),
}


def program() -> int:
    """The whole process is one command, whose arrays come and go: `main`, with an allocator for that."""
    keep_freed_memory()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:  # of a run that went wrong, not of the program
        print(f"error: {error}", file=sys.stderr)
        return 1
    except SystemExit:  # tyro after --help
        return 0
    except KeyboardInterrupt:
        print("interrupted; what was done is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of stdout has gone (`| head`): nothing more to say, and nothing to flush at exit.
        sys.stdout = io.StringIO()
        return 0
    except OSError as error:
        code = disk_error(error)
        if code is None or isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{os.strerror(code)}; {WAYS_OUT[code]}; --resume continues a run", file=sys.stderr)
        return 2


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        print(f"e2wm {__version__}")
        return 0
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is None:
        given = [word for word in words[:2] if not word.startswith("-")] or words[:1]
        raise InputError(f"unknown command {' '.join(given)!r}; commands: {', '.join(COMMANDS)}")
    rest = words[len(name.split()) :]
    as_json = "--json" in rest
    settings = _parse(name, [word for word in rest if word != "--json"])
    module_name, _, function = COMMANDS[name].function.rpartition(".")
    with busy("loading the program"):
        module = importlib.import_module(f"e2wm_jax.{module_name}")
    if "jax" in sys.modules:
        say_compilations()
    result = getattr(module, function)(settings)
    if as_json:
        print(json_text(result))
    else:
        show = getattr(module, "show", _show)
        show(result)
    code: int = getattr(module, "exit_code", lambda _: 0)(result)
    return code


def _parse(name: str, words: list[str]) -> Any:
    """Settings from words; tyro's boxed message becomes the one error line."""
    import tyro

    settings = settings_class(name)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(settings, prog=f"e2wm {name}", args=_merged(words, settings))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(f"e2wm {name}: {_unboxed(complaint.getvalue())}") from None


def settings_class(name: str) -> type:
    """The settings dataclass of a command."""
    module, _, settings = COMMANDS[name].settings.rpartition(".")
    return getattr(importlib.import_module(f"e2wm_jax.{module}"), settings)


def _merged(words: list[str], settings: type) -> list[str]:
    """``--scene a --scene b`` as ``--scene a b``, for options that take several values; argparse would drop ``a``."""
    hints = get_type_hints(settings)
    several = {f"--{field.name.replace('_', '-')}" for field in fields(settings) if _is_tuple(hints[field.name])}
    groups: list[list[str]] = [[]]  # each an option and the words behind it
    for word in words:
        option, equals, value = word.partition("=")
        option = option.replace("_", "-")
        if option in several:
            group = next((group for group in groups if group[:1] == [option]), [option])
            groups = [*(other for other in groups if other is not group), group]
            group += [value] if equals else []
        elif word.startswith("--"):
            groups.append([word])
        else:
            groups[-1].append(word)
    return [word for group in groups for word in group]


def _is_tuple(hint: Any) -> bool:
    return tuple in (get_origin(hint), *map(get_origin, get_args(hint)))


def _unboxed(text: str) -> str:
    """One line from a colored box: without its title, frame and rules (of dashes where the locale has no lines)."""
    lines = [line.strip(" │|") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    return re.sub(r"\s+", " ", " ".join(line for line in lines[1:] if re.search(r"\w", line)))


def _show(result: dict[str, Any]) -> None:
    """Results as a two-column table."""
    width = max(map(len, result), default=0)
    for key, value in result.items():
        shown = f"{value:.6g}" if isinstance(value, float) else value
        print(f"{key:<{width}}  {shown}")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  e2wm {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "e2wm: teach language models from embodied experience without forgetting.",
            "",
            *lines,
            "",
            "`e2wm COMMAND --help` explains a command's options; --json prints its result as JSON.",
        ]
    )
