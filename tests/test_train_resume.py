"""`--resume`: the same run under other names, watched otherwise or made longer; anything else is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import pytest

from e2wm_jax import lora
from e2wm_jax.config import LoraConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.weights import load
from e2wm_jax.storage.adapter_files import write_adapter
from e2wm_jax.storage.files import sha256
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.train.run import run
from e2wm_jax.train.sequence.run import run as run_sequence
from e2wm_jax.train.sequence.settings import SequenceSettings
from e2wm_jax.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 3
LORA = LoraConfig(rank=2, alpha=4.0, targets="q_proj", dropout=0.0)


@pytest.fixture(scope="module")
def work(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two task files, general text and an adapter to start from."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(tiny_llama, folder / "model")
    for name, things in (("a", "cup"), ("b", "plate")):
        rows = [{"input": f"In the hall: {things} {n}. How many?", "ref": str(n)} for n in range(1, 5)]
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "general.jsonl").write_text('{"text": "And so it is."}\n{"text": "The end of it."}\n')
    model = load(str(folder / "model"))
    spec = lora.adapter_spec(model.config, LORA)
    start = lora.initialize(model.config, spec, jax.random.key(1))
    write_adapter(folder / "start", start, spec, model.config, base_model="model", dropout=0.0)
    return folder


def settings_of(work: Path, out: Path, **changes: Any) -> TrainSettings:
    given = {"model": str(work / "model"), "data": (f"1 {work}/a.json 0.5 {work}/b.json",), "lora": LORA}
    options = {**given, "steps": STEPS, "batch_size": 4, "max_length": 48, "lr": 1e-2, **changes}
    return TrainSettings(**options, out=out)


@pytest.fixture(scope="module")
def done(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with everything that a run may read; copy it."""
    out = tmp_path_factory.mktemp("done") / "run"
    run(settings_of(work, out, **reading(work)))
    return out


def reading(work: Path) -> dict[str, Any]:
    text = {"regularizer": "replay", "regularizer_data": (str(work / "general.jsonl"),), "strength": 0.1}
    return {**text, "adapter": work / "start", "validation": (str(work / "b.json"),)}


def test_other_names_of_the_same_files_go_on(work, done, tmp_path, monkeypatch):
    """The model, the data and all else moved, and named by other paths from another directory."""
    shutil.copytree(done, tmp_path / "run")
    shutil.copytree(work, tmp_path / "moved")
    (tmp_path / "moved/a.json").rename(tmp_path / "moved/renamed.json")
    monkeypatch.chdir(tmp_path / "moved")
    names = {"model": "model", "data": ("renamed.json", "b.json:0.5"), "adapter": Path("start")}
    names |= {"regularizer_data": ("./general.jsonl",), "validation": ("./b.json",)}
    result = run(settings_of(work, Path("../run"), **{**reading(work), **names}, resume=True))
    assert result["steps"] == STEPS
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (done / "metrics.jsonl").read_bytes()


def test_how_a_run_is_watched_may_change(work, done, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    other = {"checkpoint_every": 1, "keep_checkpoints": 1, "keep_best": 2, "validation": (), "profile_steps": 1}
    run(settings_of(work, tmp_path / "run", **{**reading(work), **other}, resume=True))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"data": ("{w}/a.json", "{w}/b.json:0.25")}, r"the mixture of --data has changed since"),
        ({"data": ("{w}/a.json",)}, r"the mixture of --data has changed since"),
        ({"data": ("{w}/b.json", "{w}/a.json:0.5")}, r"b\.json has changed since"),
        ({"regularizer_data": ("{w}/other.jsonl",)}, r"--regularizer-data has changed since"),
        ({"adapter": None}, r"was run with adapter = .* not None; .* --adapter .*run/adapter and a new --out"),
        ({"lr": 1e-3}, r"was run with lr = 0\.01, not 0\.001; .* --adapter .*run/adapter and a new --out"),
        ({"steps": STEPS - 1}, rf"was run with {STEPS} steps, not {STEPS - 1}"),
        ({"steps": None, "epochs": 1}, rf"was run with {STEPS} steps, not 2"),
    ],
)
def test_what_changes_results_is_refused_by_name(work, done, changes, what):
    (work / "other.jsonl").write_text('{"text": "Something else."}\n')
    told = {
        name: tuple(text.format(w=work) for text in value) if isinstance(value, tuple) else value
        for name, value in changes.items()
    }
    before = {path: path.read_bytes() for path in done.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=what):
        run(settings_of(work, done, **{**reading(work), **told}, resume=True))
    assert {path: path.read_bytes() for path in done.rglob("*") if path.is_file()} == before


def test_another_tokenizer_is_another_run(work, tmp_path):
    shutil.copytree(work, tmp_path / "w")
    run(settings_of(tmp_path / "w", tmp_path / "run"))
    path = tmp_path / "w/model/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = []
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="what the tokenizer makes of --data has changed"):
        run(settings_of(tmp_path / "w", tmp_path / "run", resume=True))


# --------------------------------------------------------------------------------------------------------------- longer


def test_a_finished_run_is_made_longer(work, tmp_path, capsys):
    """Steps that are done stay; later ones have the learning rate of the longer run, and its batches."""
    run(settings_of(work, tmp_path / "run"))
    first = read_metrics(tmp_path / "run/metrics.jsonl")
    capsys.readouterr()
    longer = settings_of(work, tmp_path / "run", steps=None, epochs=3, resume=True)  # of 2 steps each
    result = run(longer)
    assert f"had {STEPS} steps and goes on to 6: steps that are done stay as they are" in capsys.readouterr().err
    run(settings_of(work, tmp_path / "whole", steps=6))
    rows, whole = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "whole"))
    assert result["steps"] == len(rows) == 6
    assert rows[:STEPS] == first
    assert [row["lr"] for row in rows[STEPS:]] == [row["lr"] for row in whole[STEPS:]]
    assert [row["examples"] for row in rows] == [row["examples"] for row in whole]
    assert json.loads((tmp_path / "run/config.json").read_text())["content"]["lengths"] == [STEPS, 6]

    before = (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes()
    run(longer)  # and is finished
    assert (tmp_path / "run/adapter/adapter_model.safetensors").read_bytes() == before
    with pytest.raises(InputError, match=f"was run with 6 steps, not {STEPS}"):
        run(settings_of(work, tmp_path / "run", resume=True))


def test_made_longer_at_a_constant_rate_it_is_the_longer_run(work, tmp_path):
    constant = {"schedule": "constant"}
    run(settings_of(work, tmp_path / "run", **constant))
    run(settings_of(work, tmp_path / "run", **constant, steps=6, resume=True))
    run(settings_of(work, tmp_path / "whole", **constant, steps=6))
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_sequence_is_not_made_longer(work, tmp_path):
    """Its second task starts where the first one ended."""
    mixture = (f"1 {work}/a.json", f"1 {work}/b.json")
    given = {"model": str(work / "model"), "out": tmp_path / "run", "lora": LORA, "batch_size": 4, "max_length": 48}
    run_sequence(SequenceSettings(**given, steps=1, tasks=mixture, tests=mixture))
    run_sequence(
        SequenceSettings(**given, steps=1, tasks=(f"{work}/a.json", f"{work}/b.json"), tests=mixture, resume=True)
    )
    with pytest.raises(InputError, match="was run with steps = 1, not 2"):
        run_sequence(SequenceSettings(**given, steps=2, tasks=mixture, tests=mixture, resume=True))
    with pytest.raises(InputError, match=r"b\.json has changed since"):
        run_sequence(SequenceSettings(**given, steps=1, tasks=mixture[::-1], tests=mixture, resume=True))


# ----------------------------------------------------------------------------------------------------- earlier versions


def as_before(work: Path, out: Path) -> None:
    """config.json as versions had it that kept digests by the names of files, and one text of data."""
    record = json.loads((out / "config.json").read_text())
    names = [work / "a.json", work / "b.json"]
    content = {str(path): sha256(path) for path in names}
    content[" ".join(record["regularizer_data"])] = record["content"]["regularizer_data"]
    content[record["adapter"]] = record["content"]["adapter"]
    content["model"] = record["content"]["model"]
    record |= {"data": " ".join(record["data"]), "validation": " ".join(record["validation"]), "content": content}
    known = {"model", "data", "out", "regularizer", "strength", "regularizer_data", "lora", "adapter", "lr", "epochs"}
    known |= {"steps", "batch_size", "max_length", "seed", "schedule", "validation", "content"}
    (out / "config.json").write_text(json.dumps({name: record[name] for name in known}))


def test_directories_of_earlier_versions_go_on(work, done, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    as_before(work, tmp_path / "run")
    run(settings_of(work, tmp_path / "run", **reading(work), resume=True))
    as_before(work, tmp_path / "run")
    longer = settings_of(work, tmp_path / "run", **{**reading(work), "steps": STEPS + 1}, resume=True)
    assert run(longer)["steps"] == STEPS + 1


def test_directories_of_earlier_versions_notice_other_data(work, done, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    as_before(work, tmp_path / "run")
    for changes, what in (
        ({"data": (f"{work}/b.json", f"{work}/a.json:0.5")}, r"b\.json has changed"),
        ({"data": (f"{work}/a.json",)}, "the mixture of --data has changed"),
        ({"seed": 1}, "was run with seed = 42"),
    ):
        with pytest.raises(InputError, match=what):
            run(settings_of(work, tmp_path / "run", **{**reading(work), **changes}, resume=True))


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_warm_up_longer_than_the_epochs_is_refused_before_the_model_is_read(work, tmp_path, monkeypatch):
    monkeypatch.setattr("e2wm_jax.train.parts.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match="--warmup-steps 4: must be fewer than the 4 steps of the run, 2 epochs of 2"):
        run(settings_of(work, tmp_path / "run", steps=None, epochs=2, warmup_steps=4))
    mixture = (f"1 {work}/a.json", f"1 {work}/b.json")
    given = {"model": str(work / "model"), "out": tmp_path / "run", "lora": LORA, "batch_size": 4, "max_length": 48}
    with pytest.raises(InputError, match="--warmup-steps 1: must be fewer than the 1 steps"):
        run_sequence(SequenceSettings(**given, epochs=1, warmup_steps=1, tasks=mixture, tests=mixture))
    assert not (tmp_path / "run").exists()


def test_lora_flags_that_an_adapter_does_not_have_are_refused(work, tmp_path, monkeypatch):
    monkeypatch.setattr("e2wm_jax.train.parts.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    for changes, flag in (({"rank": 64}, "--lora.rank 64"), ({"targets": "v_proj"}, "--lora.targets v_proj")):
        settings = settings_of(work, tmp_path / "run", adapter=work / "start", lora=LoraConfig(**changes))
        with pytest.raises(InputError, match=f"{flag}: --adapter .*start is of another rank, alpha or choice"):
            run(settings)
    assert not (tmp_path / "run").exists()


def test_an_adapters_own_lora_flags_and_another_dropout_are_taken(work, tmp_path):
    import dataclasses

    options = {"adapter": work / "start", "lora": dataclasses.replace(LORA, dropout=0.2), "steps": 1}
    assert run(settings_of(work, tmp_path / "run", **options))["steps"] == 1


def altered(key: str, value: Any, content: bool = False) -> Any:
    def change(out: Path) -> None:
        record = json.loads((out / "config.json").read_text())
        (record["content"] if content else record)[key] = value
        (out / "config.json").write_text(json.dumps(record))

    return change


def replaced(name: str, folder: bool) -> Any:
    def change(out: Path) -> None:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
        (out / name).mkdir() if folder else (out / name).write_text("mine")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((altered("content", value), "config.json: is not as") for value in ([1], "x", None)),
        *((altered("data", value), "config.json: is not as") for value in (5, [5], {"a": 1})),
        *((altered(key, value), "config.json: is not as") for key in ("steps", "epochs") for value in ("x", -1, 1.5)),
        *((altered("lengths", value, True), "config.json: is not as") for value in ([], "x", ["x"], 3)),
        *((altered("data", value, True), "config.json: is not as") for value in ([1], [["a", "b"]])),
        (altered("data", "x", True), "the mixture of --data has changed"),
        (altered("model", {"a": 1}, True), "the model has changed"),
        (altered("lora", [1]), r"was run with lora = \[1\]"),
        (lambda out: (out / "config.json").write_text("{"), r"config\.json:1: not valid JSON"),
        *((replaced(name, False), f"{name}: is not a directory") for name in ("checkpoints", "adapter")),
        *((replaced(name, True), f"{name}: is not a file") for name in ("metrics.jsonl", "report.html")),
    ],
)
def test_a_directory_that_was_altered_is_one_line(work, done, tmp_path, change, message):
    shutil.copytree(done, tmp_path / "run")
    change(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        run(settings_of(work, tmp_path / "run", **reading(work), resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "--seed -1: must be from 0 to 4294967295"),
        ({"seed": 2**32}, "--seed 4294967296: must be from 0 to"),
        ({"steps": 10**12}, "--steps 1000000000000: must be from 0 to"),
        ({"steps": None, "epochs": 10**11}, "--steps: 200000000000 are more than"),
        ({"batch_size": 10**7}, "--batch-size x --accumulate 10000000: must be from 0 to"),
        ({"accumulate": 10**7}, "--batch-size x --accumulate 40000000: must be from 0 to"),
        ({"strength": 1e39}, "--strength 1e[+]39: must be a finite number"),
        ({"lora": LoraConfig(rank=10**9)}, "--lora.rank 1000000000: must be at most"),
        ({"lora": LoraConfig(alpha=float("nan"))}, "--lora.alpha nan: must be a finite number"),
    ],
)
def test_numbers_beyond_all_bounds_are_one_line(work, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(settings_of(work, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
