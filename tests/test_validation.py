"""The loss on held-out rows: against the likelihood of each row by itself, on a mesh, and at every checkpoint."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from e2wm_jax.config import LoraConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.lora import Scope, adapter_spec, initialize, merge
from e2wm_jax.models import decoder, spread
from e2wm_jax.models.weights import Model, load
from e2wm_jax.sharding import make_mesh
from e2wm_jax.storage.adapter_files import read_adapter
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.storage.model_files import locate
from e2wm_jax.train.run import run
from e2wm_jax.train.settings import TrainSettings
from e2wm_jax.train.watch.validation import held_out_rows, validation_loss

pytestmark = pytest.mark.usefixtures("quick_compilation")

LENGTH = 24
LORA = LoraConfig(rank=2, alpha=8.0, dropout=0.5)


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Model:
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two task files of rows of different lengths."""
    folder = tmp_path_factory.mktemp("held-out")
    plan = [{"input": f"How to get {n}?", "ref": "Walk to the hall. " * (n % 2) + "Grab it."} for n in range(7)]
    count = [{"input": f"{n} cups. How many?", "ref": str(n)} for n in range(4)]
    for name, rows in (("plan", plan), ("count", count)):
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "plan.json", folder / "count.json"


@partial(jax.jit, static_argnums=0)
def scores_of(config: Any, params: Any, ids: Any) -> jax.Array:
    """[T, V] of one row [T]."""
    positions = np.arange(len(ids), dtype=np.int32)[None]
    hidden = decoder.hidden_states(config, params, ids[None], positions, np.zeros_like(positions))
    return decoder.logits(config, params, hidden)[0]


def loss_by_hand(model: Model, adapters: Any, spec: Any, rows: list[Row]) -> float:
    """From the scores of each row by itself, unpadded, the adapter merged into the weights; sums in float64."""
    merged = merge(model.params, adapters, spec)
    total, count = 0.0, 0
    for row in rows:
        scores = np.asarray(scores_of(model.config, merged, row.ids), np.float64)
        nll = np.log(np.exp(scores).sum(-1))[:-1] - scores[np.arange(len(row.ids) - 1), row.ids[1:]]
        total += row.weight * nll[row.first_target - 1 :].sum()
        count += row.num_targets
    return total / count


def test_loss_is_that_of_each_row_by_itself(tiny: Model, tiny_llama: Path, files: tuple[Path, Path]):
    settings = TrainSettings(model=str(tiny_llama), data="", out=Path("unused"), max_length=LENGTH)
    rows = held_out_rows(
        settings, load_tokenizer(locate(str(tiny_llama))), tiny.config, f"1 {files[0]} 0.5 {files[1]}", "--flag"
    )
    assert len(rows) == 11
    assert {row.weight for row in rows} == {1.0, 0.5}
    spec = adapter_spec(tiny.config, LORA)
    adapters = jax.tree.map(lambda x: x + 0.03, initialize(tiny.config, spec, jax.random.key(0)))
    expected = loss_by_hand(tiny, adapters, spec, rows)
    # Moving the adapter moves it, so the adapter is on.
    assert abs(expected - loss_by_hand(tiny, jax.tree.map(np.zeros_like, adapters), spec, rows)) > 1e-3 * expected

    scope = Scope(tiny.config, spec)
    for batch_size in (3, 64):
        found = validation_loss(scope, tiny.params, adapters, rows, batch_size, LENGTH)
        assert found == pytest.approx(expected, rel=1e-5)
    # 3 rows on 4 devices: rounded up, and in the last batch a device has no row.
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    placed = spread.place(tiny.config, tiny.params, mesh)
    on_mesh = validation_loss(Scope(tiny.config, spec, mesh), placed, adapters, rows, 3, LENGTH)
    assert on_mesh == pytest.approx(expected, rel=1e-5)


def test_every_checkpoint_has_its_loss_and_the_best_one_is_kept(
    tiny: Model, tiny_llama: Path, files: tuple[Path, Path], tmp_path: Path
):
    plan, count = files
    options: dict[str, Any] = {"lora": LORA, "batch_size": 4, "max_length": LENGTH, "lr": 0.05, "schedule": "constant"}
    watched = {"steps": 4, "checkpoint_every": 1, "keep_checkpoints": 1, "keep_best": 1}
    settings = TrainSettings(
        model=str(tiny_llama), data=str(plan), validation=str(count), out=tmp_path / "run", **options, **watched
    )
    run(settings)
    rows = read_metrics(tmp_path / "run/validation.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    adapters, spec = read_adapter(tmp_path / "run/adapter", tiny.config)
    held_out = held_out_rows(settings, load_tokenizer(locate(settings.model)), tiny.config, str(count), "--validation")
    assert rows[-1]["nats"] == pytest.approx(loss_by_hand(tiny, adapters, spec, held_out), rel=1e-5)
    best = min(rows[1:], key=lambda row: row["nats"])["step"]
    assert {int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()} == {best, 4}

    # Held-out rows have no say in what is learned: others may be watched from here on.
    count.write_text(count.read_text() * 2)
    longer = dataclasses.replace(settings, resume=True, steps=5)
    run(longer)
    assert [row["step"] for row in read_metrics(tmp_path / "run/validation.jsonl")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("mixture", "words"),
    [
        ("1 1 a.json", r"--validation .*two weights in a row"),
        ("no-such.json", r"no-such\.json: no such file"),
        ("online:count", r"--validation: online:count has no end; give files"),
    ],
)
def test_validation_is_refused_before_anything_is_written(
    tiny_llama: Path, files: tuple[Path, Path], tmp_path: Path, mixture: str, words: str
):
    with pytest.raises(InputError, match=words):
        run(TrainSettings(model=str(tiny_llama), data=str(files[0]), out=tmp_path / "run", validation=mixture))
    assert not (tmp_path / "run").exists()
