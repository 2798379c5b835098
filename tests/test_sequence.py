"""Sequences of tasks: the matrix of losses, what holds earlier tasks, interrupted and resumed, and what is refused."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.cli import main
from e2wm_jax.config import LoraConfig
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.lora import Scope
from e2wm_jax.models.weights import Model, load
from e2wm_jax.storage.adapter_files import read_adapter
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.storage.model_files import locate
from e2wm_jax.train.run import run as train
from e2wm_jax.train.sequence.run import run
from e2wm_jax.train.sequence.scores import scores
from e2wm_jax.train.sequence.settings import SequenceSettings, task_settings
from e2wm_jax.train.watch import records
from e2wm_jax.train.watch.validation import held_out_rows, validation_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS, LENGTH = 12, 32
THINGS = ("apple", "plate", "cup", "book")


def test_scores_by_hand():
    """Three tasks: the second forgets the first, the third helps the second and hurts the first again."""
    losses = [
        [5.0, 4.0, 6.0],
        [1.0, 3.0, 6.5],
        [2.0, 0.5, 5.0],
        [2.5, 0.25, 1.0],
    ]
    assert scores(losses) == {
        "average_loss": (2.5 + 0.25 + 1.0) / 3,
        "backward_transfer": ((1.0 - 2.5) + (0.5 - 0.25)) / 2,
        "forward_transfer": ((4.0 - 3.0) + (6.0 - 5.0)) / 2,
        "forgetting": ((2.5 - 1.0) + (0.25 - 0.5)) / 2,  # the best before the last task: after 1, and after 2
    }
    with pytest.raises(ValueError, match="T >= 2"):
        scores(losses[:3])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tasks that want other answers to the same questions: whoever learns the second forgets the first."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, answer in (("first", "Walk to the kitchen."), ("second", "13, 27!")):
        rows = [{"input": f"Where is the {thing}?", "ref": answer} for thing in THINGS]
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "first.json", folder / "second.json"


@pytest.fixture(scope="module")
def options(tiny_llama: Path, files: tuple[Path, Path]) -> dict[str, Any]:
    first, second = map(str, files)
    return {
        "model": str(tiny_llama),
        "tasks": (f"1 {first}", f"1 {second}"),
        "tests": (first, f"0.5 {second}"),
        "lora": LoraConfig(rank=4, alpha=16.0, dropout=0.1),
        "batch_size": 4,
        "max_length": LENGTH,
        "steps": STEPS,
        "lr": 0.05,
    }


@pytest.fixture(scope="module")
def held(options: dict[str, Any], files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence held by online EWC, with general text beside it."""
    out = tmp_path_factory.mktemp("sequences") / "held"
    run(SequenceSettings(out=out, **held_options(options, files)))
    return out


def held_options(options: dict[str, Any], files: tuple[Path, Path]) -> dict[str, Any]:
    text = files[0].with_name("text.txt")
    text.write_text("Mary walks to the kitchen.\n\nThe quick brown fox jumps over 13 lazy dogs.\n")
    return {**options, "regularizer": "online-ewc", "strength": 1e3, "text": (str(text),)}


def test_matrix_is_the_loss_of_the_saved_adapters(held: Path, options: dict[str, Any], files: Any, tiny: Model):
    settings = SequenceSettings(out=held, **held_options(options, files))
    record = json.loads((held / "sequence.json").read_text())
    assert record["tasks"] == ["task-1", "task-2"]
    tokenizer = load_tokenizer(locate(settings.model))
    tests = [held_out_rows(settings, tokenizer, tiny.config, text, "--tests") for text in settings.tests]
    for number in (1, 2):
        adapters, spec = read_adapter(held / f"task-{number}/adapter", tiny.config)
        scope = Scope(tiny.config, spec)
        found = [validation_loss(scope, tiny.params, adapters, rows, 3, LENGTH) for rows in tests]
        assert record["losses"][number] == pytest.approx(found, rel=1e-5)
    assert record["scores"] == scores(record["losses"])
    assert len(record["text"]) == len(record["losses"]) == 3
    assert record["losses"][1][0] < record["losses"][0][0] - 0.5  # task 1 was learned
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (held / "adapter" / name).read_bytes() == (held / "task-2/adapter" / name).read_bytes()
    assert "<svg" in (held / "report.html").read_text()


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Model:
    return load(str(tiny_llama))


def test_the_first_task_is_a_run_of_train_and_the_second_goes_on_from_it(
    held: Path, options: dict[str, Any], files: Any, tmp_path: Path
):
    """Without a Fisher of the pretrained model online EWC leaves the first task free; then it pulls from its end."""
    settings = SequenceSettings(out=held, **held_options(options, files))
    alone = {**vars(task_settings(settings, 0)), "out": tmp_path / "alone", "regularizer": "none"}
    train(type(task_settings(settings, 0))(**alone))
    first, second = (read_metrics(held / f"task-{number}/metrics.jsonl") for number in (1, 2))
    for row, other in zip(first, read_metrics(tmp_path / "alone/metrics.jsonl"), strict=True):
        assert row["examples"] == other["examples"]
        assert row["task_loss"] == pytest.approx(other["task_loss"], rel=1e-5)
    assert [row["examples"] for row in first] != [row["examples"] for row in second]
    assert all(row["penalty"] == 0 for row in first)
    assert second[0]["penalty"] == 0  # where the first task ended
    assert all(row["penalty"] > 0 for row in second[1:])


def test_what_is_held_is_forgotten_less(held: Path, options: dict[str, Any], tmp_path: Path):
    free = run(SequenceSettings(out=tmp_path / "free", names=("a", "b"), **options))
    record = json.loads((held / "sequence.json").read_text())
    print(f"forgetting {free['forgetting']:.3f} free, {record['scores']['forgetting']:.3f} held")
    assert free["tasks"] == ["a", "b"]
    assert free["forgetting"] > 1
    assert record["scores"]["forgetting"] < 0.4 * free["forgetting"]
    assert record["losses"][2][1] < record["losses"][1][1] - 0.5  # and yet it learned the second task
    assert free["backward_transfer"] == -free["forgetting"]  # of two tasks they are the same


def press_in_second_task(settings: SequenceSettings, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Run, and press Ctrl-C once the second task's log has this step."""
    original = records.append

    def press(file: Any, row: dict[str, Any]) -> None:
        original(file, row)
        if "task-2" in file.name and row["step"] == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(records, "append", press)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.setattr(records, "append", original)


def assert_same_sequence(found: Path, expected: Path) -> None:
    """To the byte."""
    for number in (1, 2):
        for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
            of_task = f"task-{number}/{name}"
            assert (found / of_task).read_bytes() == (expected / of_task).read_bytes(), of_task
    ours, theirs = (json.loads((folder / "sequence.json").read_text()) for folder in (found, expected))
    for key in ("losses", "text", "scores"):
        assert ours[key] == theirs[key]


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", ["online-ewc", "si"])
def test_resumed_sequence_equals_an_uninterrupted_one(
    held: Path, options: dict[str, Any], files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regularizer: str
):
    chosen = {**held_options(options, files), "regularizer": regularizer}
    whole = held
    if regularizer == "si":  # whose state is of the way that the first task took
        chosen |= {"strength": 10.0}
        whole = tmp_path / "whole"
        run(SequenceSettings(out=whole, **chosen))
        assert read_metrics(whole / "task-2/metrics.jsonl")[-1]["penalty"] > 0
    out = tmp_path / "interrupted"
    press_in_second_task(SequenceSettings(out=out, **chosen), monkeypatch, step=3)
    assert len(json.loads((out / "sequence.json").read_text())["losses"]) == 2
    with pytest.raises(InputError, match=r"already holds a run; continue it with --resume"):
        run(SequenceSettings(out=out, **chosen))
    with pytest.raises(InputError, match="strength"):
        run(SequenceSettings(out=out, resume=True, **{**chosen, "strength": 2.0}))
    run(SequenceSettings(out=out, resume=True, **chosen))
    assert_same_sequence(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", ["ewc", "factor-ewc"])
def test_importance_of_some_rows_of_the_finished_task(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regularizer: str
):
    from e2wm_jax.regularizers import catalogue

    seen = []
    original = catalogue.REGULARIZERS[regularizer]

    def next_task(material: Any, state: Any, path: Any) -> Any:
        seen.append(len(material.rows))
        return original.next_task(material, state, path)

    monkeypatch.setitem(catalogue.REGULARIZERS, regularizer, original._replace(next_task=next_task))
    settings = {**options, "regularizer": regularizer, "steps": 2, "importance_samples": 3}
    run(SequenceSettings(out=tmp_path / "run", **settings))
    assert seen == [3]  # once: nothing follows the last task
    assert read_metrics(tmp_path / "run/task-2/metrics.jsonl")[1]["penalty"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ("1 {first}",), "tests": ("{first}",)}, r"--tasks: 1 given; a sequence has two or more"),
        ({"tests": ("{first}",)}, r"--tests: 1 given for 2 --tasks"),
        ({"names": ("a", "a")}, r"--names a a: give 2 different names"),
        ({"names": ("a", " ")}, r"--names a  : give 2 different names"),
        ({"data": "{first}"}, r"--data .*: a sequence has --tasks instead"),
        ({"tasks": ("1 {first}", "1 2 {second}")}, r"--tasks .*two weights in a row"),
        ({"tasks": ("1 {first}", "online:count"), "steps": None}, r"--tasks: online:count has no end"),
        ({"tests": ("{first}", "online:count")}, r"--tests: online:count has no end; give files"),
        ({"tasks": ("1 {first}", "no-such.json")}, r"no-such\.json: no such file"),
        ({"text": ("no-such.txt",)}, r"no-such\.txt: no such file"),
        ({"lr": -1.0}, r"--lr -1\.0"),
        ({"regularizer": "kl-forward"}, r"kl-forward needs --regularizer-data"),
        ({"importance_samples": 0}, r"--importance-samples"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    options: dict[str, Any],
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    words: str,
):
    def filled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(filled(part) for part in value)
        return value.format(first=files[0], second=files[1]) if isinstance(value, str) else value

    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr("e2wm_jax.train.sequence.run.load_all", refuse)
    changed = {name: filled(value) for name, value in changes.items()}
    with pytest.raises(InputError, match=words):
        run(SequenceSettings(**{**options, "out": tmp_path / "run", **changed}))
    assert not (tmp_path / "run").exists()


def test_command_prints_the_matrix(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["sequence", "--model", options["model"], "--out", str(tmp_path / "run"), "--steps", "1"]
    words += ["--batch-size", "4", "--max-length", str(LENGTH), "--lora.rank", "4", "--lora.alpha", "16", "--lr", "0"]
    words += ["--tasks", *options["tasks"], "--tests", *options["tests"]]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["task-1", "task-2"]
    assert [line.split()[:-2] for line in lines[1:4]] == [["before"], ["after", "task-1"], ["after", "task-2"]]
    assert len({tuple(line.split()[-2:]) for line in lines[1:4]}) == 1  # a learning rate of 0 changes nothing
    assert {line.split()[0] for line in lines[4:]} >= {"average_loss", "forgetting", "backward_transfer", "adapter"}
