"""`e2wm train`'s options one by one: every regularizer, what happens where a loss is not finite, what is kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from e2wm_jax import lora
from e2wm_jax.config import LoraConfig
from e2wm_jax.data.loader import Loader
from e2wm_jax.data.source import parse_mixture, read_mixture
from e2wm_jax.data.tokenize import task_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Estimator, FisherResult
from e2wm_jax.fisher.files import write_fisher
from e2wm_jax.lora import Scope
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import load
from e2wm_jax.regularizers.catalogue import REGULARIZERS
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.storage.model_files import locate
from e2wm_jax.train import nonfinite, parts
from e2wm_jax.train.run import run
from e2wm_jax.train.settings import TrainSettings
from e2wm_jax.train.step import Controls, StepConfig, initial_state, train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 6
ODD = "~"  # stands in one example only


@pytest.fixture(scope="module")
def options(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    rows = [{"input": f"In the hall: {'cup ' * n}. How many?", "ref": str(n)} for n in (1, 2, 3, 4, 5, 1, 2)]
    rows.append({"input": f"In the {ODD}: cup. How many?", "ref": "1"})
    (folder / "count.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [
        "You may say it is so.",
        "And then the cup was in the hall again, as it is.",
        "So it is.",
        "The end of it.",
    ]
    (folder / "general.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {
        "model": str(tiny_llama),
        "data": f"1 {folder / 'count.json'}",
        "batch_size": 2,
        "steps": STEPS,
        "lr": 3e-3,
        "max_length": 48,
        "lora": LoraConfig(rank=2, alpha=8.0, dropout=0.0),
    }


@pytest.fixture(scope="module")
def text(options: dict[str, Any]) -> tuple[str]:
    return (str(Path(options["data"].split()[1]).with_name("general.json")),)


@pytest.fixture(scope="module")
def fisher(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up one."""
    model, rng = load(options["model"]), np.random.default_rng(0)
    values = {
        path: jnp.asarray(rng.gamma(0.3, size=(model.config.num_layers, *spec.shape)), jnp.float32)
        for path, spec in weight_table(model.config).items()
        if spec.stacked and len(spec.shape) == 2
    }
    about = {"estimator": Estimator(), "method": "vmap", "base_dtype": "float32", "max_length": 8, "data": []}
    folder = tmp_path_factory.mktemp("fisher") / "f"
    write_fisher(folder, model, FisherResult(values, samples=1, tokens=1, peak_bytes=0), keep=None, **about)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regularizer_trains_from_the_command(
    name: str, options: dict[str, Any], text: tuple[str], fisher: Path, tmp_path: Path
) -> None:
    reads = REGULARIZERS[name].reads
    held = {"fisher": fisher} if reads == "fisher" else {"regularizer_data": text} if reads == "text" else {}
    run(TrainSettings(out=tmp_path / "run", regularizer=name, strength=0.1, **held, **{**options, "steps": 3}))
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert len(rows) == 3
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert all(row["loss"] == pytest.approx(row["task_loss"] + row["penalty"], rel=1e-6) for row in rows)
    if name == "replay":
        assert rows[0]["penalty"] > 0.1  # the text's loss
    else:
        assert rows[0]["penalty"] == pytest.approx(0, abs=1e-7)
    # In a first task si and rwalk know nothing that was important before.
    assert (rows[2]["penalty"] > 1e-9) == (name not in ("none", "si", "rwalk"))


def test_divergence_on_the_tasks_own_rows(options: dict[str, Any], tmp_path: Path) -> None:
    held = {"regularizer": "kl-forward", "regularizer_data": ("task",), "strength": 1.0}
    run(TrainSettings(out=tmp_path / "run", **held, **{**options, "steps": 3}))
    penalties = [row["penalty"] for row in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert penalties[0] < 1e-7 < penalties[2]


def test_strength_follows_its_schedule(options: dict[str, Any], tmp_path: Path) -> None:
    held = {"regularizer": "l2", "strength": 3.0, "strength_schedule": "increase"}
    run(TrainSettings(out=tmp_path / "run", **held, **{**options, "steps": 4}))
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    np.testing.assert_allclose([row["strength"] for row in rows], [0, 1, 2, 3], rtol=1e-6)
    assert rows[0]["penalty"] == 0 < rows[3]["penalty"]


def test_numbers_of_a_step_compile_nothing(options: dict[str, Any]) -> None:
    """What a comparison of strengths, rates and seeds changes."""
    model = load(options["model"])
    spec = lora.adapter_spec(model.config, options["lora"])
    config = StepConfig(Scope(model.config, spec), "l2", dropout=0.1)
    state = initial_state(config, lora.initialize(model.config, spec, jax.random.key(0)))
    tokenizer = load_tokenizer(locate(options["model"]))
    rows, _ = task_rows(tokenizer, read_mixture(parse_mixture(options["data"])), max_length=48)
    batch = Loader(rows, 2, 1, 48, 0).step(1).batch
    train_step.clear_cache()
    for number in range(3):
        rates = np.float32([1e-3 * number, 0.1 * number, 0.01 * number])
        state, _ = train_step(config, state, Controls(*rates, np.uint32(number)), model.params, {}, batch)
    assert train_step._cache_size() == 1


# ----------------------------------------------------------------------------------------------------- NaN and infinity


@pytest.fixture
def broken_model(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that gives nan wherever it reads ODD."""
    original = parts.load_model
    (token,) = load_tokenizer(locate(options["model"]))(ODD)["input_ids"]

    def broken(*arguments: Any) -> Any:
        model = original(*arguments)
        table = model.params["embed"]["weight"]
        model.params["embed"]["weight"] = table.at[token].set(jnp.nan)
        return model

    monkeypatch.setattr(parts, "load_model", broken)


def test_stops_at_a_loss_that_is_no_number_and_names_its_examples(
    options: dict[str, Any], broken_model: None, tmp_path: Path
) -> None:
    with pytest.raises(FloatingPointError, match=r"step [2-9]: the loss is nan.* the last good .* --resume") as caught:
        run(TrainSettings(out=tmp_path / "run", checkpoint_every=1, seed=1, **options))
    step = int(str(caught.value).split()[1].rstrip(":"))
    (examples,) = (part for part in str(caught.value).split(" on examples ")[1:])
    assert 7 in json.loads(examples.split(";")[0])
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, step))
    assert all(7 not in row["examples"] for row in rows)
    kept = sorted(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()) if step > 1 else []
    assert kept == list(range(max(1, step - 3), step))


@pytest.fixture(scope="module")
def overflowing(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of finite weights whose scores are not."""
    folder = tmp_path_factory.mktemp("overflowing") / "model"
    shutil.copytree(options["model"], folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][3:5] = 3e38
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("more", [{}, {"validation": True}, {"on_nonfinite": "skip"}, {"resume": True}])
def test_a_model_that_is_at_fault_is_named_at_the_first_step(
    more: dict[str, Any], options: dict[str, Any], overflowing: str, tmp_path: Path
) -> None:
    """And nothing is kept of the run: neither a checkpoint nor an adapter."""
    options = {**options, **more, "model": overflowing}
    message = rf"^step 1: .* on examples \[\d, \d\], before anything is learned: .* {overflowing} are beyond float32"
    if "validation" in more:
        options["validation"] = options["data"]
        message = rf"^--validation: the loss is (nan|inf) before anything is learned: .* {overflowing}"
    if "on_nonfinite" in more:
        message = rf"^all {STEPS} updates were left out, so nothing is learned: .* {overflowing}"
    with pytest.raises(InputError, match=message):
        run(TrainSettings(out=tmp_path / "run", **options))
    assert not (tmp_path / "run/adapter").exists()
    assert not [path for path in (tmp_path / "run/checkpoints").iterdir() if path.name.isdigit()]


def test_a_penalty_that_is_at_fault_is_named_at_the_first_step(options: dict[str, Any], tmp_path: Path) -> None:
    settings = TrainSettings(out=tmp_path / "run", regularizer="l2", **options)
    found = {"loss": np.inf, "task_loss": 2.5, "penalty": np.inf, "grad_norm": np.nan}
    error = nonfinite.complaint(settings, 1, found, [3], [])
    assert isinstance(error, FloatingPointError)
    assert "the penalty of --regularizer l2 is inf; lower --strength" in str(error)


def test_leaves_updates_out_that_are_no_numbers(options: dict[str, Any], broken_model: None, tmp_path: Path) -> None:
    result = run(TrainSettings(out=tmp_path / "run", on_nonfinite="skip", **options))
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    skipped = [row for row in rows if row.get("skipped")]
    assert result["skipped"] == len(skipped) > 0
    for row in rows:
        assert (7 in row["examples"]) == (row in skipped) == (row["loss"] is None)
    adapter = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert all(np.isfinite(value).all() for value in adapter.values())
    assert rows[-1]["step"] == STEPS


# --------------------------------------------------------------------------------------------------------- what is kept


def test_validation_and_the_best_checkpoint(options: dict[str, Any], tmp_path: Path) -> None:
    settings = {**options, "lr": 0.3, "checkpoint_every": 1, "keep_checkpoints": 1, "keep_best": 1}
    run(TrainSettings(out=tmp_path / "run", validation=options["data"], **settings))
    losses = {row["step"]: row["nats"] for row in read_metrics(tmp_path / "run/validation.jsonl")}
    assert list(losses) == list(range(STEPS + 1)), "before the first step too"
    del losses[0]
    best = min(losses, key=lambda step: losses[step])
    assert {int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()} == {best, STEPS}


def test_a_profile_is_written(options: dict[str, Any], tmp_path: Path) -> None:
    run(TrainSettings(out=tmp_path / "run", profile_steps=1, **{**options, "steps": 4}))
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("what", ["model", "fisher", "start"])
def test_resuming_with_another_model_fisher_or_start_is_refused(
    what: str, options: dict[str, Any], fisher: Path, tmp_path: Path
) -> None:
    shutil.copytree(options["model"], tmp_path / "model")
    shutil.copytree(fisher, tmp_path / "fisher")
    model = load(options["model"])
    spec = lora.adapter_spec(model.config, options["lora"])
    from e2wm_jax.storage.adapter_files import write_adapter

    def start(seed: int) -> None:
        adapters = lora.initialize(model.config, spec, jax.random.key(seed))
        write_adapter(tmp_path / "start", adapters, spec, model.config, base_model="tiny", dropout=0.0)

    start(0)
    settings = {
        **options,
        "model": str(tmp_path / "model"),
        "fisher": tmp_path / "fisher",
        "adapter": tmp_path / "start",
        "regularizer": "ewc",
        "steps": 2,
    }
    if what == "model":  # the Fisher is then of another model, too, and that is found later
        settings |= {"fisher": None, "regularizer": "none"}
    run(TrainSettings(out=tmp_path / "run", **settings))
    run(TrainSettings(out=tmp_path / "run", resume=True, **settings))
    if what == "start":
        start(1)
    else:
        path = next((tmp_path / what).glob("*.safetensors"))
        tensors = {name: value * 1.5 for name, value in load_file(path).items()}
        save_file(tensors, path)
    with pytest.raises(InputError, match=rf"--resume: .*{what}.* has changed since"):
        run(TrainSettings(out=tmp_path / "run", resume=True, **settings))


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": -1.0}, "--strength -1.0: must be a finite number, 0 or more"),
        ({"regularizer": "ewcc"}, "--regularizer ewcc: there is none of this name; perhaps ewc?"),
        ({"regularizer": "KL"}, "--regularizer KL: there is none of this name"),
        ({"regularizer": "online-ewc"}, "--regularizer online-ewc needs --fisher DIR"),
        ({"regularizer": "mas"}, "--regularizer mas needs --regularizer-data"),
        ({"regularizer_data": ("pydoc:fisher",)}, "--regularizer none reads no text; leave it out"),
        ({"regularizer": "replay", "regularizer_data": ("task",)}, "only kl-forward and kl-reverse; replay reads"),
        ({"regularizer": "kl-forward", "regularizer_data": ("task", "a.txt")}, "task stands alone"),
        ({"warmup_steps": 6}, "--warmup-steps 6: must be fewer than --steps 6"),
        ({"clip": 0.0}, "--clip 0.0: must be a finite number above 0"),
        ({"damping": 0.0}, "--damping 0.0: must be a finite number above 0"),
        ({"mesh": "data=3"}, "--mesh data=3: 3 x 1 x 1 = 3 devices, but there are"),
        ({"validation": "missing.json"}, "missing.json"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, options: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        run(TrainSettings(out=tmp_path / "run", **{**options, **changes}))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()
