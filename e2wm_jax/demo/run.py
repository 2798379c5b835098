"""`e2wm demo`: the whole flow on the embedded default, on a laptop.

An agent plans and explores in VirtualHome homes; what it lived becomes tasks; the Fisher of SmolLM2-135M-Instruct is
computed on general text; the model is finetuned twice from the same start, with LoRA alone and with EWC-LoRA; base and
both are evaluated on embodied tasks and on held-out general text.  Every stage leaves its result in `--out`, so an
interrupted demo goes on where it was.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from e2wm_jax.config import LoraConfig
from e2wm_jax.data.source import read_documents, read_questions, read_task
from e2wm_jax.demo.page import write_report
from e2wm_jax.demo.settings import DemoSettings
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.model import load_evaluated
from e2wm_jax.evaluate.perplexity import answer_nats, perplexity
from e2wm_jax.evaluate.questions import qa
from e2wm_jax.evaluate.questions.answer_scores import answer_scores
from e2wm_jax.experience.collect import command as collect_command
from e2wm_jax.fisher.command import run as fisher
from e2wm_jax.running.progress import say
from e2wm_jax.storage.files import read_json, write_json
from e2wm_jax.storage.model_files import locate
from e2wm_jax.tasks import run as tasks
from e2wm_jax.train import run as train
from e2wm_jax.train.settings import TrainSettings


@dataclass(frozen=True)
class DemoSizes:
    """How much of everything."""

    goals: int  # RobotHow goals that are searched for plans
    simulations: int  # of the search, for each goal
    explorations: int  # random episodes
    fisher_tokens: int  # each general document is cut to this many
    steps: int
    batch_size: int
    lr: float
    strength: float
    activity_questions: int | None  # None: all
    plans: int | None
    text_tokens: int  # each held-out document is cut to this many


PRESETS = {
    # All linear maps and large steps: with q and v and small ones nothing is forgotten in so short a run, and a
    # regularizer has nothing to show.
    "laptop": DemoSizes(
        goals=300,
        simulations=1000,
        explorations=60,
        fisher_tokens=128,
        steps=32,
        batch_size=2,
        lr=3e-3,
        strength=1e4,
        activity_questions=32,
        plans=16,
        text_tokens=128,
    ),
    "tiny": DemoSizes(
        goals=100,
        simulations=60,
        explorations=8,
        fisher_tokens=32,
        steps=3,
        batch_size=2,
        lr=3e-3,
        strength=1e4,
        activity_questions=4,
        plans=2,
        text_tokens=32,
    ),
}

STAGES = (
    *("plan", "explore", "tasks", "fisher", "LoRA", "EWC-LoRA"),
    *("evaluate base", "evaluate LoRA", "evaluate EWC-LoRA"),
)


def run(settings: DemoSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: if something is not installed, or `out` holds a demo with other settings.
    """
    _claim(settings)
    demo = _Demo(settings, PRESETS[settings.preset])
    started = time.monotonic()
    stages: tuple[Callable[[], dict[str, Any]], ...] = (
        demo.collect_plans,
        demo.explore,
        demo.make_tasks,
        demo.compute_fisher,
        lambda: demo.finetune("lora"),
        lambda: demo.finetune("ewc-lora"),
        lambda: demo.evaluate(None),
        lambda: demo.evaluate("lora"),
        lambda: demo.evaluate("ewc-lora"),
    )
    results = {}
    for number, (name, stage) in enumerate(zip(STAGES, stages, strict=True), start=1):
        results[name] = _once(settings.out / "stages" / f"{number}.json", f"[{number}/{len(stages)}] {name}", stage)
    report = settings.out / "report.html"
    redraw(settings.out, report)
    models = {name: results[f"evaluate {name}"] for name in ("base", "LoRA", "EWC-LoRA")}
    seconds = sum(result["stage_seconds"] for result in results.values())
    say(f"{time.monotonic() - started:.0f} s now, {seconds:.0f} s in all")
    return {"models": models, "seconds": seconds, "report": str(report)}


def redraw(folder: Path, path: Path) -> None:
    """The report of a demo that has run.

    Raises:
        InputError: if a stage has not run yet.
    """
    files = {name: folder / "stages" / f"{number}.json" for number, name in enumerate(STAGES, start=1)}
    if missing := [name for name, file in files.items() if not file.is_file()]:
        raise InputError(f"{folder}: the stage {missing[0]!r} has not run; go on with e2wm demo --out {folder}")
    sizes = PRESETS[read_json(folder / "demo.json")["preset"]]
    write_report(path, folder, {name: read_json(file) for name, file in files.items()}, dataclasses.asdict(sizes))


def show(result: dict[str, Any]) -> None:
    """The before/after table."""
    from rich.console import Console
    from rich.table import Table

    columns = {
        "activity": "activity QA, accuracy",
        "plan_nats": "plans, nats/token",
        "text_nats": "general text, nats/token",
    }
    table = Table("model", title="Embodied tasks (held out) and general text (held out)")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    base = result["models"]["base"]
    for name, scores in result["models"].items():
        cells = [f"{scores[key]:.3f}" for key in columns]
        if name != "base":
            cells[-1] += f" ({scores['text_nats'] - base['text_nats']:+.3f})"
        table.add_row(name, *cells)
    console = Console(width=110, highlight=False)
    console.print(table)
    print(
        f"accuracy of {base['activity_n']} questions with four answers: higher is better; "
        "nats per token: lower is better"
    )
    print(f"report: {result['report']}")


@dataclass(frozen=True)
class _Demo:
    """The stages; each returns plain JSON."""

    settings: DemoSettings
    sizes: DemoSizes

    @property
    def out(self) -> Path:
        return self.settings.out

    @property
    def task_files(self) -> Path:
        return self.out / "tasks"

    def collect_plans(self) -> dict[str, Any]:
        settings = collect_command.CollectSettings(
            out=self.out / "experiences" / "mcts",
            policy="mcts",
            episodes=self.sizes.goals,
            simulations=self.sizes.simulations,
            seed=self.settings.seed,
        )
        return collect_command.collect(settings)

    def explore(self) -> dict[str, Any]:
        settings = collect_command.CollectSettings(
            out=self.out / "experiences" / "random",
            policy="random",
            episodes=self.sizes.explorations,
            seed=self.settings.seed,
        )
        return collect_command.collect(settings)

    def make_tasks(self) -> dict[str, Any]:
        experiences = (self.out / "experiences" / "mcts", self.out / "experiences" / "random")
        settings = tasks.TasksSettings(experiences, self.task_files, eval_share=0.3, seed=self.settings.seed)
        result = tasks.run(settings)
        tasks.show(result)
        return result

    def compute_fisher(self) -> dict[str, Any]:
        folder = self.out / "fisher"
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted attempt
        settings = fisher.FisherSettings(
            model=self.settings.model,
            data=("pydoc:fisher",),
            out=folder,
            max_length=self.sizes.fisher_tokens,
            params="lora-targets",
            batch_size=2,
        )
        return fisher.run(settings)

    def finetune(self, name: Literal["lora", "ewc-lora"]) -> dict[str, Any]:
        train_files = self.task_files / "train"
        with_ewc = name == "ewc-lora"
        settings = TrainSettings(
            model=self.settings.model,
            data=(str(train_files / "train_plan_gen.json"), f"{train_files / 'train_act_recog.json'}:0.7"),
            out=self.out / "runs" / name,
            regularizer="ewc" if with_ewc else "none",
            fisher=self.out / "fisher" if with_ewc else None,
            strength=self.sizes.strength,
            lora=LoraConfig(targets="all-linear", dropout=0.0),
            lr=self.sizes.lr,
            steps=self.sizes.steps,
            batch_size=self.sizes.batch_size,
            max_length=800,
            checkpoint_every=10,
            keep_checkpoints=1,
            resume=True,
            seed=self.settings.seed,
        )
        return train.run(settings)

    def evaluate(self, name: str | None) -> dict[str, Any]:
        adapter = None if name is None else self.out / "runs" / name / train.ADAPTER
        evaluated = load_evaluated(self.settings.model, adapter)
        evaluation = self.task_files / "eval"
        scores: dict[str, Any] = {}
        questions = read_questions(evaluation / "qa" / "act_recog.json")[: self.sizes.activity_questions]
        result = qa.accuracy(questions, answer_scores(evaluated, questions, qa.RULES["act_recog"]))
        scores |= {"activity": result["accuracy"], "activity_n": result["n"]}
        plans = read_task(evaluation / "gen" / "plan_gen.json")[: self.sizes.plans]
        scores["plan_nats"] = answer_nats(evaluated, plans, max_length=800)
        documents = read_documents("pydoc:held-out")
        scores["text_nats"] = perplexity(evaluated, documents, max_length=self.sizes.text_tokens)["nats"]
        return scores


def _claim(settings: DemoSettings) -> None:
    """Write down what this directory is for, or see that it is for the same."""
    locate(settings.model)
    wanted = {"preset": settings.preset, "model": settings.model, "seed": settings.seed}
    path = settings.out / "demo.json"
    if not path.is_file():
        if settings.out.exists() and (not settings.out.is_dir() or any(settings.out.iterdir())):
            raise InputError(f"--out {settings.out}: holds something else; give a new or empty directory")
        write_json(path, wanted)
    elif (found := read_json(path)) != wanted:
        raise InputError(f"--out {settings.out}: holds a demo with {found}; remove it, or give another --out")


def _once(path: Path, title: str, stage: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run a stage, or read what it gave when it ran before."""
    if path.is_file():
        say(f"{title}: done before")
        return read_json(path)
    say(title)
    started = time.monotonic()
    result = stage()
    result["stage_seconds"] = round(time.monotonic() - started, 2)
    write_json(path, result)
    return result
