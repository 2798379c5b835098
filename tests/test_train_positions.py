"""Rows at and beyond the end of a model's positions: the numbers of transformers, or a line before a weight is read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ids_of

from e2wm_jax.config import MODELS, LoraConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.data.loader import sorted_batches
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.model import load_evaluated, row_nll
from e2wm_jax.fisher.command.run import run as run_fisher
from e2wm_jax.fisher.command.settings import FisherSettings
from e2wm_jax.models.positions import rule_of_positions
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.train.run import run
from e2wm_jax.train.sequence.run import run as run_sequence
from e2wm_jax.train.sequence.settings import SequenceSettings
from e2wm_jax.train.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("quick_compilation")

POSITIONS = 20  # rows of 17 to 20 tokens are padded to more
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LORA = LoraConfig(rank=2, alpha=4.0, targets="q_proj")
Example = dict[str, str]


@pytest.fixture(scope="module")
def scaled(save_llama: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model whose rotation depends on the longest position: its directory, and transformers' own."""
    folder = tmp_path_factory.mktemp("dynamic")
    model = save_llama(folder, num_hidden_layers=1, max_position_embeddings=POSITIONS, rope_parameters=DYNAMIC)
    return folder, model


@pytest.fixture(scope="module")
def example(tiny_tokenizer: Any) -> Example:
    """A task example of 18 tokens."""
    letters = "qzxjvkwybpfmgcuhdl"
    own = next(n for n in range(1, 18) if len(ids_of(tiny_tokenizer, f"qz {letters[:n]}\n")) == 18)
    return {"input": "qz", "ref": letters[:own]}


def nats(model: Any, tokenizer: Any, prefix: str, text: str) -> float:
    """Mean over the tokens behind the prefix, of one row without padding, by transformers."""
    import torch

    ids, first = ids_of(tokenizer, text), max(len(ids_of(tokenizer, prefix)), 1)
    with torch.no_grad():
        scores = model(torch.tensor([ids])).logits.log_softmax(-1)[0, :-1]
    return -float(scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])][first - 1 :].mean())


def settings_of(model: Path, data: Path, out: Path, **changes: Any) -> TrainSettings:
    data.write_text(json.dumps(changes.pop("example")) + "\n")
    options = {"steps": 1, "batch_size": 2, "lora": LORA, "validation": (str(data),), **changes}
    return TrainSettings(model=str(model), data=(str(data),), out=out, **options)


@pytest.mark.parametrize("pack", [False, True])
def test_padding_changes_nothing_in_training_and_validation(scaled, example, tiny_tokenizer, tmp_path, pack):
    folder, model = scaled
    expected = nats(model, tiny_tokenizer, example["input"], f"{example['input']} {example['ref']}\n")
    run(settings_of(folder, tmp_path / "a.json", tmp_path / "run", example=example, pack=pack, lr=0.0))
    (step,) = read_metrics(tmp_path / "run/metrics.jsonl")
    assert step["task_loss"] == pytest.approx(expected, rel=1e-5)
    assert read_metrics(tmp_path / "run/validation.jsonl")[-1]["nats"] == pytest.approx(expected, rel=1e-5)


def test_padding_changes_nothing_in_evaluation_and_fisher(scaled, example, tiny_tokenizer, tmp_path):
    folder, model = scaled
    text = f"{example['input']} {example['ref']}"
    expected = nats(model, tiny_tokenizer, "", text)
    evaluated = load_evaluated(str(folder))
    rows = [Row(np.asarray(ids_of(tiny_tokenizer, text), np.int32), 1)]
    ((batch, _),) = sorted_batches(rows, 2, 512)
    assert batch.ids.shape[1] > POSITIONS, "padded beyond the positions"
    found = row_nll(evaluated, batch)[batch.weights > 0].mean()
    assert found == pytest.approx(expected, rel=1e-5)

    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}))
    fisher = FisherSettings(
        model=str(folder),
        data=(str(tmp_path / "text.jsonl"),),
        out=tmp_path / "f",
        params="lora-targets",
        special_tokens=False,
    )
    assert run_fisher(fisher)["nats"] == pytest.approx(expected, rel=1e-5)


def test_which_models_cannot_read_beyond_their_positions():
    """Tables end; GPT-J's angles come from a table in transformers; dynamic scaling looks at the whole batch."""
    kinds = {"gpt-neo-125m": True, "gpt-j-6b": True, "opt-13b": True, "tiny": False}
    assert {name: rule_of_positions(MODELS[name]) is not None for name in kinds} == kinds


LONG = {"input": "13 apples", "ref": "13 apples " * 12}
FLAGS = {
    "data": lambda good, long: {"data": (long,)},
    "validation": lambda good, long: {"validation": (long,)},
    "text": lambda good, long: {"regularizer": "replay", "regularizer_data": ("general.jsonl",)},
}


@pytest.mark.parametrize("flag", FLAGS)
def test_rows_beyond_are_refused_before_a_weight_is_read(scaled, example, tmp_path, monkeypatch, flag):
    monkeypatch.setattr("e2wm_jax.train.parts.weights.load", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_text(json.dumps(example) + "\n")
    Path("long.json").write_text(f"{json.dumps(example)}\n{json.dumps(LONG)}\n")
    Path("general.jsonl").write_text(f'{{"text": "A plate."}}\n{{"text": "{LONG["ref"]}"}}\n')
    given = {"data": ("good.json",), **FLAGS[flag]("good.json", "long.json")}
    options = {"model": str(scaled[0]), "out": Path("run"), "lora": LORA, "steps": 1, **given}
    with pytest.raises(
        InputError, match=rf"\w+\.jsonl?:2: \d+ tokens, but beyond {POSITIONS} .*--max-length {POSITIONS}"
    ):
        run(TrainSettings(**options))
    assert not Path("run").exists()
    if flag == "data":
        del options["data"]
        sequence = SequenceSettings(**options, tasks=("good.json", "long.json"), tests=("good.json", "good.json"))
        with pytest.raises(InputError, match=r"long\.json:2: \d+ tokens"):
            run_sequence(sequence)
        tested = SequenceSettings(**options, tasks=("good.json", "good.json"), tests=("good.json", "long.json"))
        with pytest.raises(InputError, match=r"long\.json:2: \d+ tokens"):
            run_sequence(tested)


def test_online_rows_that_may_be_too_long_are_refused(scaled, tmp_path):
    settings = TrainSettings(model=str(scaled[0]), data=("online:count",), out=tmp_path / "run", lora=LORA, steps=1)
    with pytest.raises(InputError, match=rf"online:count: its rows may have .* give --max-length {POSITIONS}"):
        run(settings)


def test_a_rotation_that_goes_on_is_said_and_computed_as_transformers_does(
    save_llama, tiny_tokenizer, tmp_path, capsys
):
    model = save_llama(tmp_path / "m", max_position_embeddings=POSITIONS)
    expected = nats(model, tiny_tokenizer, LONG["input"], f"{LONG['input']} {LONG['ref']}\n")
    run(settings_of(tmp_path / "m", tmp_path / "a.json", tmp_path / "run", example=LONG, validation=()))
    (step,) = read_metrics(tmp_path / "run/metrics.jsonl")
    assert step["task_loss"] == pytest.approx(expected, rel=1e-5)
    assert "a.json:1: " in (said := capsys.readouterr().err)
    assert f"beyond the {POSITIONS} positions that the model was trained for" in said


def test_a_comparison_finds_rows_beyond_before_anything_is_trained(scaled, example, tmp_path, monkeypatch):
    from e2wm_jax.compare.plan import make_plan
    from e2wm_jax.compare.settings import CompareSettings

    monkeypatch.chdir(tmp_path)
    Path("long.json").write_text(f"{json.dumps(example)}\n{json.dumps(LONG)}\n")
    question = {"input": "Which?", "answer": "a", "answer_list": ["a", "b"]}
    Path("act_recog.json").write_text(json.dumps(question) + "\n")
    given = {"model": str(scaled[0]), "data": ("long.json",), "eval": ("act_recog.json",), "out": tmp_path / "out"}
    with pytest.raises(InputError, match=r"long\.json:2: \d+ tokens, but beyond"):
        make_plan(CompareSettings(**given, regularizers=("none",), steps=1))
    assert not (tmp_path / "out").exists()
