"""The `e2wm` command: one line per step of the flow.

Results go to stdout (`--json`: one JSON object as its last line), progress and messages to stderr.  Exit codes: 0 done,
2 bad input or usage (one line `error: ...`), 130 interrupted with what was done kept, 1 anything else.
"""

import contextlib
import importlib
import io
import json
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
from e2wm_jax.progress import busy


class Command(NamedTuple):
    """Where a command lives: settings class and function (settings) -> dict, imported only when it is called."""

    module: str
    settings: str
    function: str
    summary: str


COMMANDS = {
    "doctor": Command(
        "e2wm_jax.doctor", "DoctorSettings", "run", "versions, devices, what is installed, what is missing"
    ),
    "demo": Command(
        "e2wm_jax.demo", "DemoSettings", "run", "the whole flow on the embedded default, with table and report"
    ),
    "collect": Command(
        "e2wm_jax.simulate.workers", "CollectSettings", "collect", "let an agent live in a world: trajectories"
    ),
    "replay": Command(
        "e2wm_jax.simulate.replay_command", "ReplaySettings", "run", "run a program in a world, step by step"
    ),
    "tasks": Command("e2wm_jax.tasks.run", "TasksSettings", "run", "trajectories to text tasks"),
    "fisher": Command("e2wm_jax.fisher.run", "FisherSettings", "run", "exact per-example diagonal Fisher of a model"),
    "train": Command("e2wm_jax.train.run", "TrainSettings", "run", "finetune LoRA adapters, held by a regularizer"),
    "sequence": Command(
        "e2wm_jax.train.sequence", "SequenceSettings", "run", "finetune on task after task, and measure forgetting"
    ),
    "eval qa": Command("e2wm_jax.evaluate.qa", "QaSettings", "run", "multiple-choice accuracy"),
    "eval generate": Command(
        "e2wm_jax.evaluate.generation", "GenerationSettings", "run", "ROUGE and path overlap of what a model writes"
    ),
    "eval perplexity": Command(
        "e2wm_jax.evaluate.perplexity", "PerplexitySettings", "run", "perplexity on general text"
    ),
    "eval plans": Command(
        "e2wm_jax.evaluate.plans",
        "PlansSettings",
        "run",
        "plans carried out in the world: steps that work, goals reached",
    ),
    "eval embodied-agent": Command(
        "e2wm_jax.evaluate.embodied_agent",
        "EmbodiedAgentSettings",
        "run",
        "Embodied Agent Interface: action sequencing, goal interpretation",
    ),
    "eval babi": Command("e2wm_jax.evaluate.babi", "BabiSettings", "run", "bAbI tasks 1-20, few-shot, by exact match"),
    "eval harness": Command(
        "e2wm_jax.evaluate.harness", "HarnessSettings", "run", "tasks of EleutherAI's lm-evaluation-harness"
    ),
    "eval all": Command(
        "e2wm_jax.evaluate.suite", "SuiteSettings", "run", "every evaluation set of a folder, one table"
    ),
    "report": Command(
        "e2wm_jax.pages.command", "ReportSettings", "run", "report.html of a run, a Fisher, an evaluation, experiences"
    ),
    "export": Command("e2wm_jax.export", "ExportSettings", "run", "a Hugging Face directory, with an adapter merged"),
    "compare": Command(
        "e2wm_jax.compare.run", "CompareSettings", "run", "train and evaluate many arms: skill against forgetting"
    ),
    "generate": Command("e2wm_jax.evaluate.continuations", "GenerateSettings", "run", "continue prompts"),
    "bench generate": Command(
        "e2wm_jax.bench.generate", "GenerateBenchSettings", "run", "generation and answer scoring, against transformers"
    ),
    "bench models": Command(
        "e2wm_jax.bench.models", "ModelsBenchSettings", "run", "every family's passes, against transformers"
    ),
    "bench world": Command(
        "e2wm_jax.bench.world", "WorldBenchSettings", "run", "the engines of the world, against VirtualHome's executor"
    ),
    "bench search": Command(
        "e2wm_jax.bench.search", "SearchBenchSettings", "run", "the searches, against the reference search"
    ),
    "bench loader": Command(
        "e2wm_jax.bench.loader", "LoaderBenchSettings", "run", "the data loader, against a plain loop and training"
    ),
    "bench fisher": Command(
        "e2wm_jax.bench.fisher", "FisherBenchSettings", "run", "Fisher passes, against ordinary gradients and peers"
    ),
    "bench penalty": Command(
        "e2wm_jax.bench.penalty", "PenaltyBenchSettings", "run", "the EWC penalty, against the official expression"
    ),
    "bench train": Command(
        "e2wm_jax.bench.train", "TrainBenchSettings", "run", "the regularized LoRA step, against PEFT and transformers"
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
    with busy("loading the program"):
        module = importlib.import_module(COMMANDS[name].module)
    if "jax" in sys.modules:
        say_compilations()
    result = getattr(module, COMMANDS[name].function)(settings)
    if as_json:
        print(json.dumps(result))
    else:
        show = getattr(module, "show", _show)
        show(result)
    return 0


def _parse(name: str, words: list[str]) -> Any:
    """Settings from words; tyro's boxed message becomes the one error line."""
    import tyro

    command = COMMANDS[name]
    with busy("loading the program"):
        settings = getattr(importlib.import_module(command.module), command.settings)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(settings, prog=f"e2wm {name}", args=_merged(words, settings))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise InputError(f"e2wm {name}: {_unboxed(complaint.getvalue())}") from None


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
