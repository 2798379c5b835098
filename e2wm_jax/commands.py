"""The commands of `e2wm`: where each lives, and the overview that lists them."""

import importlib
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command lives in this package: imported only when it is called, the function only to be run."""

    settings: str  # module and frozen dataclass; imports no jax
    function: str  # module and function (settings) -> dict; the module may have a `show` (dict) too
    summary: str


COMMANDS = {
    "doctor": Command("doctor.DoctorSettings", "doctor.run", "versions, devices, what is installed, what is missing"),
    "demo": Command(
        "demo.settings.DemoSettings", "demo.run.run", "the whole flow on the embedded default, with table and report"
    ),
    "collect": Command(
        "experience.collect.jobs.CollectSettings",
        "experience.collect.command.collect",
        "let an agent live in a world: trajectories",
    ),
    "replay": Command(
        "experience.replay.command.ReplaySettings",
        "experience.replay.command.run",
        "run a program in a world, step by step",
    ),
    "tasks": Command("tasks.run.TasksSettings", "tasks.run.run", "trajectories to text tasks"),
    "fisher": Command(
        "fisher.command.settings.FisherSettings",
        "fisher.command.run.run",
        "exact per-example diagonal Fisher of a model",
    ),
    "train": Command("train.settings.TrainSettings", "train.run.run", "finetune LoRA adapters, held by a regularizer"),
    "sequence": Command(
        "train.sequence.settings.SequenceSettings",
        "train.sequence.run.run",
        "finetune on task after task, and measure forgetting",
    ),
    "eval qa": Command("evaluate.settings.QaSettings", "evaluate.questions.qa.run", "multiple-choice accuracy"),
    "eval generate": Command(
        "evaluate.settings.GenerationSettings",
        "evaluate.texts.generation.run",
        "ROUGE and path overlap of what a model writes",
    ),
    "eval perplexity": Command(
        "evaluate.settings.PerplexitySettings", "evaluate.perplexity.run", "perplexity on general text"
    ),
    "eval plans": Command(
        "evaluate.settings.PlansSettings",
        "evaluate.plans.run.run",
        "plans carried out in the world: steps that work, goals reached",
    ),
    "eval embodied-agent": Command(
        "evaluate.benchmarks.settings.EmbodiedAgentSettings",
        "evaluate.benchmarks.embodied_agent.run",
        "Embodied Agent Interface: action sequencing, goal interpretation",
    ),
    "eval babi": Command(
        "evaluate.benchmarks.settings.BabiSettings",
        "evaluate.benchmarks.babi.run",
        "bAbI tasks 1-20, few-shot, by exact match",
    ),
    "eval harness": Command(
        "evaluate.benchmarks.settings.HarnessSettings",
        "evaluate.benchmarks.harness.run",
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
        "export.settings.ExportSettings", "export.run.run", "a Hugging Face directory, with an adapter merged"
    ),
    "compare": Command(
        "compare.settings.CompareSettings", "compare.run.run", "train and evaluate many arms: skill against forgetting"
    ),
    "generate": Command("evaluate.settings.GenerateSettings", "evaluate.texts.continuations.run", "continue prompts"),
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

# The overview's headings, over the command that each begins with.
_HEADINGS = {
    "doctor": "Start here",
    "collect": "Experience, and text made of it",
    "fisher": "Learn, and keep what was known",
    "eval qa": "Measure",
    "report": "See and use",
    "bench generate": "Measure speed and memory, against others",
}


def command_of(words: list[str]) -> str | None:
    """The command that words begin with."""
    return next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)


def settings_class(name: str) -> type:
    """The settings dataclass of a command."""
    module, _, settings = COMMANDS[name].settings.rpartition(".")
    return getattr(importlib.import_module(f"e2wm_jax.{module}"), settings)


def overview(family: str = "") -> str:
    """Every command in a line, or those of a family, such as "eval"."""
    listed = {
        name: command for name, command in COMMANDS.items() if f"{name} ".startswith(f"{family} " if family else "")
    }
    width = max(map(len, listed))
    lines = []
    for name, command in listed.items():
        lines += ["", f"{_HEADINGS[name]}:"] if name in _HEADINGS else []
        lines.append(f"  e2wm {name:<{width}}  {command.summary}")
    return "\n".join(
        [
            "e2wm: teach language models from embodied experience without forgetting.",
            *lines,
            "",
            "`e2wm COMMAND --help` explains a command's options. For every command: --config FILE reads options from a",
            "TOML or JSON file, --print-config writes them, --json prints the result as JSON, --no-compilation-cache",
            "keeps nothing that jax compiles. `e2wm completion bash` prints completions for a shell.",
        ]
    )
