"""What a run writes on its way: --prompt at checkpoints."""

import json
from pathlib import Path

import pytest

from e2wm_jax.cli import main

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def train(tiny_llama, tmp_path, monkeypatch):
    """train(*options) -> the exit code of a run of four steps with two checkpoints."""
    monkeypatch.chdir(tmp_path)
    Path("data.json").write_text(json.dumps({"input": "Where is the cup?", "ref": "here"}) + "\n")
    words = f"train --model {tiny_llama} --data data.json --out run --steps 4 --batch-size 1 --checkpoint-every 2"

    def run(*options: str) -> int:
        return main([*words.split(), "--lr", "0.1", "--lora.targets", "all-linear", *options])

    return run


def test_prompts_are_continued_as_generate_does(train, tiny_llama, capsys):
    prompts = ("Where is the cup?", "Mary walks")
    assert train("--prompt", prompts[0], "--prompt", prompts[1]) == 0
    rows = [json.loads(line) for line in Path("run/samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[0]["samples"] != rows[-1]["samples"]
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert f"<figcaption>{prompts[1]}</figcaption>" in page.partition(">What the model wrote</h2>")[2]
    assert f"step 4: {prompts[1]!r} -> {rows[-1]['samples'][1]['text']!r}" in capsys.readouterr().err
    for row, adapter in ((rows[0], []), (rows[-1], ["--adapter", "run/adapter"])):
        words = ["generate", "--model", str(tiny_llama), *adapter, "--max-new-tokens", "32", "--json"]
        assert main([*words, "--prompt", prompts[0], "--prompt", prompts[1]]) == 0
        outputs = json.loads(capsys.readouterr().out.splitlines()[-1])["outputs"]
        assert row["samples"] == [{"prompt": one["prompt"], "text": one["text"]} for one in outputs]


def test_a_resumed_run_may_have_other_prompts(train):
    assert train() == 0
    assert not Path("run/samples.jsonl").exists()
    assert main([*_again(6), "--prompt", "Mary"]) == 0
    assert [json.loads(line)["step"] for line in Path("run/samples.jsonl").read_text().splitlines()] == [6]


def _again(steps: int) -> list[str]:
    config = json.loads(Path("run/config.json").read_text())
    return ["train", "--config", "run/config.json", "--model", config["model"], "--steps", str(steps), "--resume"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--prompt", "a" * 2000], "tokens; it needs 1 or more, and 32 of the model's 512 positions behind them"),
        (["--prompt", "a", "--mesh", "data=2"], "--prompt: continued on one device only"),
    ],
)
def test_what_cannot_be_continued_is_refused_before_the_model_is_read(train, options, says, capsys):
    assert train(*options) == 2
    assert says in capsys.readouterr().err
    assert not Path("run").exists()
