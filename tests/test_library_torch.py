"""docs/torch.md: its code in transformers' Trainer on a PEFT model, against `e2wm train`."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2wm_jax.cli import main
from e2wm_jax.data.source import read_task
from e2wm_jax.data.tokenize import task_rows
from e2wm_jax.data.tokenizer import load_tokenizer

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    # transformers asks torch for a device that is not there.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]

PAGE = Path(__file__).parents[1] / "docs/torch.md"
STEPS, ROWS, STRENGTH, LEARNING_RATE = 10, 4, 50.0, 0.02
PLACES = ("kitchen", "bedroom", "living room", "bathroom on the left", "garden")


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the first block of the page defines."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(blocks()[0], str(PAGE), "exec"), names)
    return names


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def work(save_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, its F, and an adapter of PEFT's that changes the model already."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("torch")
    model = save_llama(folder / "model")
    write_rows(folder / "general.jsonl", [{"text": f"Mary grabs apple {n} and walks on."} for n in range(5)])
    write_rows(folder / "task.json", [{"input": f"Where is cup {n}?", "ref": PLACES[n % 5]} for n in range(24)])
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    peft.get_peft_model(model, config).save_pretrained(folder / "start")
    given = ["--model", str(folder / "model"), "--out", str(folder / "fisher"), "--data", str(folder / "general.jsonl")]
    assert main(["fisher", *given, "--params", r".*[qv]_proj\.weight", "--max-length", "32"]) == 0
    return folder


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def trained_here(work: Path, accumulate: int) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    out = work / f"run-{accumulate}"
    options = {
        "--model": work / "model",
        "--data": work / "task.json",
        "--out": out,
        "--adapter": work / "start",
        "--lora.dropout": 0,
        "--regularizer": "ewc",
        "--fisher": work / "fisher",
        "--strength": STRENGTH,
        "--steps": STEPS,
        "--batch-size": ROWS,
        "--accumulate": accumulate,
        "--lr": LEARNING_RATE,
        "--max-length": 64,
    }
    assert main(["train", *(str(word) for pair in options.items() for word in pair)]) == 0
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def features(work: Path) -> list[dict[str, list[int]]]:
    """Our tokens and what of them is learned, as a Trainer takes it."""
    rows, _ = task_rows(load_tokenizer(str(work / "model")), read_task(work / "task.json"), max_length=64)
    found = []
    for row in rows:
        ids = row.ids.tolist()
        found.append({"input_ids": ids, "labels": [-100] * row.first_target + ids[row.first_target :]})
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_losses_and_penalties_of_every_step_are_those_of_train(work, page, accumulate, tmp_path):
    torch, peft, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))
    metrics = trained_here(work, accumulate)
    assert metrics[0]["penalty"] > 0.01 * metrics[0]["task_loss"], "a penalty that nobody would miss shows nothing"
    order = [example for row in metrics for example in row["examples"]]
    rows = features(work)
    tokenizer = load_tokenizer(str(work / "model"))
    tokenizer.pad_token = tokenizer.eos_token
    seen: list[tuple[float, float]] = []

    class Recorded(page["EwcTrainer"]):
        def get_train_dataloader(self) -> Any:
            collate = transformers.DataCollatorForSeq2Seq(tokenizer)
            return torch.utils.data.DataLoader([rows[example] for example in order], ROWS, collate_fn=collate)

        def compute_loss(self, *args: Any, **options: Any) -> Any:
            loss = super().compute_loss(*args, **options)
            seen.append((loss.item(), self.penalty().item()))
            return loss

    base = transformers.AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    arguments = transformers.TrainingArguments(
        str(tmp_path),
        learning_rate=LEARNING_RATE,
        weight_decay=0.01,
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=accumulate,
        max_grad_norm=0,
        optim="adamw_torch",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    Recorded(
        peft.PeftModel.from_pretrained(base, work / "start", is_trainable=True),
        arguments,
        fisher=page["read_fisher"](work / "fisher"),
        strength=STRENGTH,
    ).train()
    losses, penalties = np.asarray(seen).reshape(STEPS, accumulate, 2).transpose(2, 0, 1)
    np.testing.assert_allclose(losses.sum(axis=1), [row["loss"] for row in metrics], rtol=1e-4)
    np.testing.assert_allclose(penalties[:, 0], [row["penalty"] for row in metrics], rtol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # TRL's own
def test_the_same_lines_on_a_trainer_of_trl(work, page, tmp_path):
    """At a learning rate of 0 batches with and without strength differ by the penalty, which the passes share."""
    trl, torch, peft = (pytest.importorskip(name) for name in ("trl", "torch", "peft"))
    names: dict[str, Any] = {"__name__": "page", "SFTTrainer": trl.SFTTrainer}
    exec(blocks()[0].replace("EwcTrainer(Trainer)", "EwcTrainer(SFTTrainer)"), names)
    base = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    tokenizer = load_tokenizer(str(work / "model"))
    tokenizer.pad_token = tokenizer.eos_token
    seen: dict[float, list[float]] = {0.0: [], STRENGTH: []}

    class Recorded(names["EwcTrainer"]):
        def compute_loss(self, *args: Any, **options: Any) -> Any:
            loss = super().compute_loss(*args, **options)
            seen[self.strength].append(loss.item())
            return loss

    sizes = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.0}
    quiet = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    for strength in seen:
        trainer = Recorded(
            peft.PeftModel.from_pretrained(base, work / "start", is_trainable=True),
            args=trl.SFTConfig(str(tmp_path), **sizes, **quiet),
            train_dataset=pytest.importorskip("datasets").Dataset.from_list(
                [{"prompt": f"Where is cup {n}?", "completion": " kitchen"} for n in range(8)]
            ),
            processing_class=tokenizer,
            fisher=page["read_fisher"](work / "fisher"),
            strength=strength,
        )
        trainer.train()
        base = trainer.model.unload()
    difference = np.subtract(seen[STRENGTH], seen[0.0])
    np.testing.assert_allclose(difference, trainer.penalty().item() / 2, rtol=1e-4)
    assert len(difference) == 4


def test_the_second_block_trains_and_what_it_saves_is_read_here(work, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fisher").symlink_to(work / "fisher")
    code = (
        blocks()[1]
        .replace('"my-model"', repr(str(work / "model")))
        .replace("max_steps=10", "max_steps=2, use_cpu=True")
    )
    names = {**page, "dataset": features(work)}
    exec(compile(code, str(PAGE), "exec"), names)
    given = ["--model", str(work / "model"), "--adapter", "adapter", "--data", str(work / "general.jsonl")]
    assert main(["eval", "perplexity", *given, "--max-length", "32"]) == 0
