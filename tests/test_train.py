"""Training: equal to PyTorch and PEFT, to itself after an interruption, and to what the run directory says."""

import gzip
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import random_torch_model
from safetensors.numpy import load_file

from e2wm_jax.config import LoraConfig
from e2wm_jax.data.batch import Batch, Row
from e2wm_jax.data.loader import Loader
from e2wm_jax.data.source import parse_mixture, read_mixture
from e2wm_jax.data.tokenize import task_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Estimator, FisherResult
from e2wm_jax.fisher.files import write_fisher
from e2wm_jax.lora import Scope, adapter_spec, initialize
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import Model, load
from e2wm_jax.regularizers.quadratic import l2_penalty, lora_ewc_penalty, rowmax127
from e2wm_jax.storage.adapter_files import read_adapter, write_adapter
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.storage.model_files import locate
from e2wm_jax.train.run import run
from e2wm_jax.train.schedules import learning_rates, strengths
from e2wm_jax.train.settings import TrainSettings
from e2wm_jax.train.step import Controls, StepConfig, initial_state, train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[1]
# A step is compiled for its settings; the runs here share theirs where they can.
STEPS = 20
STRENGTH = 0.5
MAX_LENGTH = 32
PLACES = ("kitchen", "bedroom", "hall", "garden")
THINGS = ("apple", "plate", "cup", "book", "towel")


def write_tasks(folder: Path) -> str:
    """Two small task files of rows of different lengths; returns their mixture.

    With this seed each batch of the runs here has a long row, so that all are padded to one length.
    """
    rng = random.Random(1)
    plans, counts = [], []
    for _ in range(11):
        thing, place = rng.choice(THINGS), rng.choice(PLACES)
        plans.append({"input": f"How to get the {thing}?", "ref": f"Walk to the {place}. Grab the {thing}."})
        number = rng.randrange(1, 3)
        things = ", ".join(rng.choice(THINGS) for _ in range(number))
        counts.append({"input": f"In the {place}: {things}. How many?", "ref": str(number)})
    for name, rows in (("plan", plans), ("count", counts)):
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"1 {folder / 'plan.json'} 0.7 {folder / 'count.json'}"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> str:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def tiny(tiny_llama) -> Model:
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def fisher(tiny, tmp_path_factory) -> Path:
    """A made-up Fisher of the tiny model, large enough for a penalty beside the task loss."""
    return write_made_up_fisher(tiny, tmp_path_factory.mktemp("fisher") / "f")


def write_made_up_fisher(model: Model, folder: Path) -> Path:
    rng = np.random.default_rng(0)
    values = {
        path: jnp.asarray(rng.gamma(0.3, size=(model.config.num_layers, *spec.shape)), jnp.float32)
        for path, spec in weight_table(model.config).items()
        if spec.stacked and len(spec.shape) == 2
    }
    result = FisherResult(values, samples=1, tokens=1, peak_bytes=0)
    about = {"estimator": Estimator(), "method": "vmap", "base_dtype": "float32", "max_length": 8, "data": []}
    write_fisher(folder, model, result, keep=None, **about)
    return folder


@pytest.fixture(scope="module")
def options(tiny_llama, tasks) -> dict[str, Any]:
    """Settings shared by the runs here: about three epochs of 22 rows."""
    return {
        "model": str(tiny_llama),
        "data": tasks,
        "batch_size": 4,
        "steps": STEPS,
        "lr": 3e-3,
        "max_length": MAX_LENGTH,
        "lora": LoraConfig(rank=4, alpha=16.0, dropout=0.0),
    }


def rows_of(options: dict[str, Any]) -> list[Row]:
    tokenizer = load_tokenizer(locate(options["model"]))
    return task_rows(tokenizer, read_mixture(parse_mixture(options["data"])), max_length=options["max_length"])[0]


# ----------------------------------------------------------------------------------------------- against torch and PEFT


def torch_run(
    options: dict[str, Any], adapter: Path, steps: list[list[int]], fisher: dict[str, np.ndarray], strength: float
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """The official recipe in plain PyTorch: rows one by one, no padding, no batching of ours."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    base = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options["lr"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / options["steps"])
    examples = read_mixture(parse_mixture(options["data"]))
    history = []
    for batch in steps:
        total, count = torch.tensor(0.0), 0  # of weighted nll, and of answer tokens
        for index in batch:
            example = examples[index]
            ids = torch.tensor([tokenizer(f"{example.input} {example.ref}\n", add_special_tokens=False)["input_ids"]])
            start = len(tokenizer(example.input, add_special_tokens=False)["input_ids"])
            scores = torch.log_softmax(model(ids).logits[0, :-1], dim=-1)
            nll = -scores[torch.arange(ids.shape[1] - 1), ids[0, 1:]][start - 1 :]
            total = total + example.weight * nll.sum()
            count += len(nll)
        task_loss, penalty = total / count, torch.tensor(0.0)
        for name, module in base.named_modules():
            if fisher and hasattr(module, "lora_A"):
                weights = torch.from_numpy(fisher[f"{name}.weight"])
                penalty = penalty + strength * (weights * module.get_delta_weight("default") ** 2).sum()
        optimizer.zero_grad()
        (task_loss + penalty).backward()
        norm = math.sqrt(sum(float((parameter.grad**2).sum()) for parameter in trained))
        history.append(
            {
                "loss": (task_loss + penalty).item(),
                "task_loss": task_loss.item(),
                "penalty": penalty.item(),
                "lr": schedule.get_last_lr()[0],
                "grad_norm": norm,
            }
        )
        optimizer.step()
        schedule.step()
    final = peft.get_peft_model_state_dict(model)
    return history, {name: value.detach().numpy() for name, value in final.items()}


@pytest.fixture(scope="module")
def tiny_neo(tiny_tokenizer, torch_oracle, tmp_path_factory) -> Path:
    """The directory of a two-layer GPT-Neo: one layer sees all, the other a window of 8."""
    folder = tmp_path_factory.mktemp("tiny-neo")
    model = random_torch_model(
        "gpt_neo",
        vocab_size=320,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        attention_dropout=0.0,
        embed_dropout=0.0,
        resid_dropout=0.0,
    )
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("family", "regularizer"), [("llama", "none"), ("llama", "ewc"), ("gpt-neo", "ewc")])
def test_first_twenty_losses_equal_a_pytorch_and_peft_run(options, tiny_llama, tiny_neo, tmp_path, family, regularizer):
    options = {**options, "model": str(tiny_llama if family == "llama" else tiny_neo)}
    tiny = load(options["model"])
    fisher = write_made_up_fisher(tiny, tmp_path / "fisher")
    spec = adapter_spec(tiny.config, options["lora"])
    start = tmp_path / "start"
    adapters = initialize(tiny.config, spec, jax.random.key(7))
    write_adapter(start, adapters, spec, tiny.config, base_model=options["model"], dropout=0.0)
    held = {"regularizer": "ewc", "fisher": fisher, "strength": STRENGTH} if regularizer == "ewc" else {}
    run(TrainSettings(out=tmp_path / "run", adapter=start, **held, **options))

    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    tensors = load_file(fisher / "model.safetensors") if held else {}
    expected, final = torch_run(options, start, [row["examples"] for row in rows], tensors, STRENGTH)
    assert len(rows) == len(expected) == STEPS
    for key in ("loss", "task_loss", "penalty", "lr", "grad_norm"):
        ours, theirs = (np.array([row[key] for row in history]) for history in (rows, expected))
        scale = np.maximum(np.abs(theirs), 1e-12)
        print(f"{family}, {regularizer}: {key} differs by at most {np.max(np.abs(ours - theirs) / scale):.1e} relative")
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-12, err_msg=key)
    first_epoch, last_epoch = (np.mean([row["task_loss"] for row in part]) for part in (rows[:6], rows[12:18]))
    assert last_epoch < first_epoch - 0.2
    assert (rows[-1]["penalty"] > 0.01) == (regularizer == "ewc")
    written = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert written.keys() == final.keys()
    for name, value in written.items():
        # As a whole: AdamW divides by the gradient's size, and one number of GPT-Neo's begins with 2e-8, all rounding.
        assert np.linalg.norm(value - final[name]) < 1e-3 * np.linalg.norm(final[name]), name


# ------------------------------------------------------------------------------------------------------------- the step


def step_config(tiny: Model, **changes: Any) -> StepConfig:
    scope = Scope(tiny.config, adapter_spec(tiny.config, LoraConfig(rank=2)), remat=changes.pop("remat", "none"))
    return StepConfig(scope, **changes)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", lambda done: 1 - done / 10),
        ("cosine", lambda done: (1 + math.cos(math.pi * done / 10)) / 2),
        ("constant", lambda done: 1.0),
    ],
)
def test_learning_rate_by_hand(schedule, expected):
    rates = learning_rates(schedule, 1e-3, 10)
    np.testing.assert_allclose(rates, [1e-3 * expected(done) for done in range(10)], rtol=1e-5, atol=1e-12)


def test_warmup_rises_to_the_peak_and_the_schedule_has_the_rest():
    rates = learning_rates("linear", 1.0, 10, warmup=4)
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [3, 3, 3, 3]), ("increase", [0, 1, 2, 3]), ("decrease", [3, 2, 1, 0])],
)
def test_strength_by_hand(schedule, expected):
    np.testing.assert_allclose(strengths(schedule, 3.0, 4), expected, atol=1e-6)
    assert strengths(schedule, 3.0, 1)[0] == expected[0]


@pytest.mark.slow
def test_accumulated_passes_equal_one_large_batch(options, fisher, tmp_path):
    held = {"regularizer": "ewc", "fisher": fisher, "strength": STRENGTH}
    for name, batch_size, accumulate in (("large", 4, 1), ("two", 2, 2)):
        settings = {**options, "batch_size": batch_size, "accumulate": accumulate}
        run(TrainSettings(out=tmp_path / name, **held, **settings))
    found, expected = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("two", "large"))
    assert [row["examples"] for row in found] == [row["examples"] for row in expected]
    for key in ("loss", "task_loss", "penalty"):
        ours, theirs = (np.array([row[key] for row in rows]) for rows in (found, expected))
        print(f"{key} differs by at most {np.max(np.abs(ours - theirs) / np.maximum(theirs, 1e-12)):.1e} relative")
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-12)
    # At the first step, before rounding passes through the optimizer.
    assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-6)
    assert found[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-6)


@pytest.mark.slow
def test_sgd_and_remat_give_the_update_written_out(tiny, options):
    """theta - lr (gradient + decay * theta), the gradient by autodiff of the loss itself."""
    from e2wm_jax.lora import attach
    from e2wm_jax.models.head import target_nll

    item = next(iter(Loader(rows_of(options), 2, 2, MAX_LENGTH, 0).batches(1, 1)))
    start = initialize(tiny.config, step_config(tiny).scope.spec, jax.random.key(0))
    start = jax.tree.map(lambda x: x + 0.01, start)
    flat = Batch(*(leaf.reshape(-1, leaf.shape[-1]) for leaf in item.batch))

    def loss(adapters):
        adapted = attach(tiny.params, adapters, step_config(tiny).scope.spec)
        return jnp.sum(flat.weights * target_nll(tiny.config, adapted, flat)) / np.sum(flat.weights > 0)

    value, gradient = jax.jit(jax.value_and_grad(loss))(start)
    for remat in ("none", "layers", "products"):
        config = step_config(tiny, optimizer="sgd", remat=remat)
        controls = Controls(lr=0.1, weight_decay=0.2)
        state, metrics = train_step(config, initial_state(config, start), controls, tiny.params, (), item.batch)
        assert float(metrics["task_loss"]) == pytest.approx(float(value), rel=1e-5)
        assert int(state.step) == 1
        expected = jax.tree.map(lambda x, g: x - 0.1 * (g + 0.2 * x), start, gradient)
        for found, wanted in zip(jax.tree.leaves(state.adapters), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_step_of_a_short_run_is_compiled_once(options, tmp_path):
    shapes = [
        item.batch.ids.shape for item in Loader(rows_of(options), 1, 1, MAX_LENGTH, 42, steps=STEPS).batches(1, STEPS)
    ]
    assert len(set(shapes)) == 1
    train_step.clear_cache()
    run(TrainSettings(out=tmp_path / "run", **{**options, "batch_size": 1}))
    assert train_step._cache_size() == 1


# ---------------------------------------------------------------------------------------------------- the run directory


@pytest.fixture(scope="module")
def held_run(options, fisher, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A run with everything on, dropout too, and what its command returned."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, run(TrainSettings(out=out, **held_options(options, fisher)))


def held_options(options: dict[str, Any], fisher: Path) -> dict[str, Any]:
    lora = LoraConfig(rank=4, alpha=16.0, dropout=0.1)
    return {
        **options,
        "lora": lora,
        "regularizer": "ewc",
        "fisher": fisher,
        "strength": 0.1,
        "checkpoint_every": 3,
        "keep_checkpoints": 2,
    }


def test_run_directory_holds_what_it_should(held_run, options):
    out, result = held_run
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "adapter",
        "report.html",
    }
    assert {path.name for path in (out / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert {int(path.name) for path in (out / "checkpoints").iterdir()} == {18, 20}
    config = json.loads((out / "config.json").read_text())
    assert config["lora"] == {
        "rank": 4,
        "alpha": 16.0,
        "dropout": 0.1,
        "targets": r".*\.(q_proj|v_proj|query_key_value)",
        "rslora": False,
        "rank_pattern": "",
        "alpha_pattern": "",
    }
    assert (config["model"], config["steps"], config["seed"]) == (options["model"], STEPS, 42)
    assert result.keys() >= {"steps", "loss", "task_loss", "penalty", "tokens_per_second", "adapter"}
    assert result["steps"] == STEPS
    assert result["adapter"] == str(out / "adapter")


def test_metrics_rows_say_what_each_step_did(held_run, options):
    rows = read_metrics(held_run[0] / "metrics.jsonl")
    data = rows_of(options)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row.keys() >= {"step", "loss", "task_loss", "penalty", "lr", "grad_norm", "tokens", "examples"}
        assert row["loss"] == pytest.approx(row["task_loss"] + row["penalty"], rel=1e-6)
        assert row["lr"] == pytest.approx(options["lr"] * (1 - (row["step"] - 1) / STEPS), rel=1e-5)
        assert row["tokens"] == sum(len(data[index].ids) for index in row["examples"])
    # 22 rows make five batches of four and one of two; each epoch reads every row once.
    for epoch in range(3):
        seen = [index for row in rows[6 * epoch : 6 * epoch + 6] for index in row["examples"]]
        assert sorted(seen) == list(range(22))
    assert rows[0]["examples"] != rows[6]["examples"]


def test_metrics_are_of_the_adapters_before_the_update(held_run, options, tiny, fisher, tmp_path):
    """At the first step nothing has moved: no penalty.  The third step's penalty is that of two steps' adapters."""
    rows = read_metrics(held_run[0] / "metrics.jsonl")
    assert rows[0]["penalty"] == 0
    # `steps` enters the schedule, so two steps of this run are made by stopping early.
    with pytest.raises(KeyboardInterrupt):
        stop_after_two_steps(TrainSettings(out=tmp_path / "two", **held_options(options, fisher)))
    adapters, spec = read_adapter(tmp_path / "two/adapter", tiny.config)
    values = {
        f"{target.path}.weight": jnp.stack(
            [
                load_file(fisher / "model.safetensors")[
                    weight_table(tiny.config)[f"{target.path}.weight"].hf.format(layer)
                ]
                for layer in range(tiny.config.num_layers)
            ]
        )
        for target in spec
    }
    assert rows[2]["penalty"] == pytest.approx(0.1 * float(lora_ewc_penalty(adapters, spec, values)), rel=1e-5)


def stop_after_two_steps(settings: TrainSettings) -> None:
    """Run, and press Ctrl-C once the first row of the log is there, which is when the second step is on its way."""
    from e2wm_jax.train.watch import records as module

    def press(file: Any, row: dict[str, Any]) -> None:
        original(file, row)
        if row["step"] == 1:
            signal.raise_signal(signal.SIGINT)

    original = module.append
    module.append = press
    try:
        run(settings)
    finally:
        module.append = original


@pytest.mark.slow
def test_l2_and_rowmax127_enter_the_loss(options, fisher, tiny, tmp_path):
    """Both from the same moved adapters, at the first step."""
    spec = adapter_spec(tiny.config, options["lora"])
    adapters = jax.tree.map(lambda x: x + 0.02, initialize(tiny.config, spec, jax.random.key(1)))
    write_adapter(tmp_path / "start", adapters, spec, tiny.config, base_model="tiny", dropout=0.0)
    once = {**options, "adapter": tmp_path / "start"}
    run(TrainSettings(out=tmp_path / "l2", regularizer="l2", strength=0.3, **once))
    scaled = {"regularizer": "ewc", "fisher": fisher, "fisher_scale": "rowmax127", "strength": STRENGTH}
    run(TrainSettings(out=tmp_path / "codes", **scaled, **once))

    tensors = load_file(fisher / "model.safetensors")
    codes = {
        f"{target.path}.weight": rowmax127(
            jnp.stack(
                [
                    tensors[weight_table(tiny.config)[f"{target.path}.weight"].hf.format(layer)]
                    for layer in range(tiny.config.num_layers)
                ]
            )
        )
        for target in spec
    }
    for name, expected in (
        ("l2", 0.3 * float(l2_penalty(adapters, spec))),
        ("codes", STRENGTH * float(lora_ewc_penalty(adapters, spec, codes))),
    ):
        row = read_metrics(tmp_path / name / "metrics.jsonl")[0]
        assert row["penalty"] == pytest.approx(expected, rel=1e-5)
        assert row["loss"] == pytest.approx(row["task_loss"] + expected, rel=1e-5)


# ------------------------------------------------------------------------------------------------- interrupted, resumed


def assert_same_run(found: Path, expected: Path) -> None:
    """Adapter and metrics to the byte, and the same last checkpoint."""
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert sorted(p.name for p in (found / "checkpoints").iterdir()) == sorted(
        p.name for p in (expected / "checkpoints").iterdir()
    )


def command(out: Path, options: dict[str, Any]) -> list[str]:
    words = [sys.executable, "-m", "e2wm_jax", "train", "--out", str(out), "--json"]
    for name, value in options.items():
        if name == "lora":
            words += ["--lora.rank", str(value.rank), "--lora.alpha", str(value.alpha)]
            words += ["--lora.dropout", str(value.dropout)]
        else:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def started(out: Path, options: dict[str, Any], folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(out, options),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_rows(process: subprocess.Popen[bytes], log: Path, rows: int) -> None:
    deadline = time.monotonic() + 300
    while not log.is_file() or log.read_bytes().count(b"\n") < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_run_resumes_bit_for_bit(held_run, options, fisher, tmp_path):
    """SIGKILL between two steps, or within a write: whatever the moment, the end is that of a run left alone."""
    out, settings = tmp_path / "run", held_options(options, fisher)
    process = started(out, settings, tmp_path)
    wait_for_rows(process, out / "metrics.jsonl", 8)
    time.sleep(random.uniform(0, 0.05))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed_after = (out / "metrics.jsonl").read_bytes().count(b"\n")
    print(f"killed after step {killed_after}")
    assert 8 <= killed_after < STEPS
    result = run(TrainSettings(out=out, resume=True, **settings))
    assert result["steps"] == STEPS
    assert_same_run(out, held_run[0])


@pytest.mark.slow
def test_interrupted_run_exits_with_130_keeps_its_checkpoint_and_resumes(held_run, options, fisher, tmp_path):
    out, settings = tmp_path / "run", held_options(options, fisher)
    process = started(out, settings, tmp_path)
    wait_for_rows(process, out / "metrics.jsonl", 4)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert stdout == b""
    assert b"Traceback" not in stderr
    rows = read_metrics(out / "metrics.jsonl")
    steps = {int(path.name) for path in (out / "checkpoints").iterdir()}
    assert max(steps) == rows[-1]["step"] < STEPS
    assert f"stopped after step {rows[-1]['step']}; continue with --resume" in stderr.decode()
    run(TrainSettings(out=out, resume=True, **settings))
    found, expected = (read_metrics(folder / "metrics.jsonl") for folder in (out, held_run[0]))
    assert found == expected
    name = "adapter/adapter_model.safetensors"
    assert (out / name).read_bytes() == (held_run[0] / name).read_bytes()


def test_interrupted_before_the_first_checkpoint_was_due_and_resumed(held_run, options, fisher, tmp_path):
    out, settings = tmp_path / "run", held_options(options, fisher)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop_after_two_steps(TrainSettings(out=out, **settings))
    assert signal.getsignal(signal.SIGINT) is handler
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == [1, 2]
    run(TrainSettings(out=out, resume=True, **settings))
    assert read_metrics(out / "metrics.jsonl") == read_metrics(held_run[0] / "metrics.jsonl")


def test_resuming_drops_rows_behind_the_checkpoint_and_a_torn_line(held_run, options, fisher, tmp_path):
    """As if killed two steps behind checkpoint 18, in the middle of a write."""
    out = tmp_path / "run"
    shutil.copytree(held_run[0], out)
    shutil.rmtree(out / "checkpoints/20")
    log = (out / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(log[:-40])
    run(TrainSettings(out=out, resume=True, **held_options(options, fisher)))
    assert_same_run(out, held_run[0])


def test_resuming_a_finished_run_changes_nothing(held_run, options, fisher, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(held_run[0], out)
    result = run(TrainSettings(out=out, resume=True, **held_options(options, fisher)))
    assert result["steps"] == STEPS
    assert result["loss"] == held_run[1]["loss"]
    assert_same_run(out, held_run[0])


def test_resume_of_a_directory_without_a_run_starts_one(options, tmp_path):
    result = run(TrainSettings(out=tmp_path / "new", resume=True, **options))
    assert result["steps"] == STEPS


def test_same_seed_same_numbers_another_seed_others(held_run, options, fisher, tmp_path):
    settings = held_options(options, fisher)
    run(TrainSettings(out=tmp_path / "again", **settings))
    assert_same_run(tmp_path / "again", held_run[0])
    run(TrainSettings(out=tmp_path / "other", seed=43, **settings))
    first, second = (read_metrics(folder / "metrics.jsonl") for folder in (held_run[0], tmp_path / "other"))
    assert [row["examples"] for row in first] != [row["examples"] for row in second]


# ------------------------------------------------------------------------------------------------------------- refusals


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_output_directory_of_another_run_is_refused(held_run, options, fisher):
    before = contents(held_run[0])
    with pytest.raises(InputError, match=r"--out .* already holds a run; continue it with --resume"):
        run(TrainSettings(out=held_run[0], **held_options(options, fisher)))
    assert contents(held_run[0]) == before
    file, model = held_run[0] / "config.json", Path(options["model"])
    with pytest.raises(InputError, match=r"--out .*config\.json: is a file, and a run is a directory"):
        run(TrainSettings(out=file, **held_options(options, fisher)))
    with pytest.raises(InputError, match=r"--resume: .*config\.json is of something else than a run"):
        run(TrainSettings(out=model, resume=True, **held_options(options, fisher)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lr", {"lr": 1e-3}),
        ("strength", {"strength": 0.2}),
        ("lora", {"lora": LoraConfig(rank=2, alpha=16.0)}),
        ("seed", {"seed": 1}),
        ("20 steps, not 10", {"steps": 10}),
        ("batch_size", {"batch_size": 2}),
    ],
)
def test_resuming_with_another_setting_is_refused_by_its_name(held_run, options, fisher, name, changes):
    before = contents(held_run[0])
    settings = {**held_options(options, fisher), **changes}
    with pytest.raises(InputError, match=f"--resume: .* was run with {name}"):
        run(TrainSettings(out=held_run[0], resume=True, **settings))
    assert contents(held_run[0]) == before


def test_resume_of_something_else_is_refused(options, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"--resume: .* holds no config\.json"):
        run(TrainSettings(out=tmp_path, resume=True, **options))
    assert contents(tmp_path) == {str(tmp_path / "notes.txt"): b"mine"}


def test_resume_after_the_data_changed_is_refused(options, tmp_path):
    """The same path with other rows is another run."""
    (tmp_path / "tasks").mkdir()
    data = write_tasks(tmp_path / "tasks")
    settings = {**options, "data": data}
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        stop_after_two_steps(TrainSettings(out=out, **settings))
    with (tmp_path / "tasks/plan.json").open("a") as file:
        file.write('{"input": "How to sleep?", "ref": "Walk to the bed."}\n')
    before = contents(out)
    with pytest.raises(InputError, match=r"--resume: .*plan\.json"):
        run(TrainSettings(out=out, resume=True, **settings))
    assert contents(out) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "--lr -1.0: must be a finite number"),
        ({"lr": float("nan")}, "--lr nan: must be a finite number"),
        ({"strength": float("inf")}, "--strength inf: must be a finite number"),
        ({"steps": 0}, "--steps 0: must be at least 1"),
        ({"accumulate": 0}, "--accumulate 0: must be at least 1"),
        ({"lora": LoraConfig(dropout=1.0)}, "--lora.dropout 1.0: must be at least 0 and below 1"),
        ({"lora": LoraConfig(rank=0)}, "--lora.rank 0: must be at least 1"),
        ({"lora": LoraConfig(targets="q_proj|v_proj")}, "matches no linear map; the whole name must match"),
        ({"lora": LoraConfig(targets="(")}, "not a regular expression"),
        ({"regularizer": "ewc"}, "--regularizer ewc needs --fisher DIR"),
        ({"fisher": Path("somewhere")}, "--fisher is given but --regularizer is none"),
        ({"data": "1 0.7 a.json"}, "two weights in a row"),
        ({"max_length": 3}, "leaves no answer token"),
    ],
)
def test_impossible_settings_are_refused_and_nothing_is_written(options, tmp_path, changes, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(").replace(".", r"\.")):
        run(TrainSettings(out=tmp_path / "run", **{**options, **changes}))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_examples(options, tmp_path):
    settings = {**options, "lr": 1e30, "checkpoint_every": 1}
    with pytest.raises(FloatingPointError, match=r"step \d+: the loss is (nan|inf).* on examples \[\d+"):
        run(TrainSettings(out=tmp_path / "run", **settings))
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert rows
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert {int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()} <= {row["step"] for row in rows}


# ------------------------------------------------------------------------------------------------------------ what runs


def test_skipped_rows_keep_their_number_in_the_data(options, tmp_path):
    """Only the count questions fit; `examples` still counts all rows of the mixture."""
    lengths = [len(row.ids) for row in rows_of(options)]
    tokenizer = load_tokenizer(locate(options["model"]))
    prompts = [len(tokenizer(e.input)["input_ids"]) for e in read_mixture(parse_mixture(options["data"]))]
    limit = sorted(prompts)[len(prompts) // 2]
    settings = {**options, "max_length": limit, "skip_truncated": True, "steps": 6, "batch_size": 4}
    run(TrainSettings(out=tmp_path / "run", **settings))
    seen = {index for row in read_metrics(tmp_path / "run/metrics.jsonl") for index in row["examples"]}
    assert seen == {index for index, prompt in enumerate(prompts) if prompt < min(limit, lengths[index])}


@pytest.mark.slow
def test_bfloat16_base_trains_float32_adapters_near_the_float32_run(options, fisher, tmp_path):
    settings = {**options, "regularizer": "ewc", "fisher": fisher, "strength": STRENGTH}
    losses = {}
    for dtype in ("float32", "bfloat16"):
        run(TrainSettings(out=tmp_path / dtype, base_dtype=dtype, **settings))
        losses[dtype] = [row["loss"] for row in read_metrics(tmp_path / dtype / "metrics.jsonl")]
    adapter = load_file(tmp_path / "bfloat16/adapter/adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {np.dtype(np.float32)}
    assert losses["bfloat16"] != losses["float32"]
    np.testing.assert_allclose(losses["bfloat16"], losses["float32"], rtol=0.02)


def test_gzipped_files_train_as_plain_ones(options, tmp_path):
    packed = []
    for weight, path in parse_mixture(options["data"]):
        copy = tmp_path / f"{path.name}.gz"
        copy.write_bytes(gzip.compress(path.read_bytes()))
        packed.append(f"{weight} {copy}")
    run(TrainSettings(out=tmp_path / "plain", **options))
    run(TrainSettings(out=tmp_path / "gz", **{**options, "data": " ".join(packed)}))
    assert (tmp_path / "gz/metrics.jsonl").read_bytes() == (tmp_path / "plain/metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_official_files_train_unchanged(shared_data, options, tmp_path):
    folder = shared_data / "e2wm/train"
    weights = {"plan_gen": 1, "act_recog": 0.7, "count": 0.7, "obj_move": 1}
    data = " ".join(f"{weight} {folder / f'train_{name}.json.gz'}" for name, weight in weights.items())
    settings = {**options, "data": data, "steps": 3, "batch_size": 2, "max_length": 512, "skip_truncated": True}
    result = run(TrainSettings(out=tmp_path / "run", **settings))
    assert result["steps"] == 3
    assert math.isfinite(result["loss"])
