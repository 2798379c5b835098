"""From a user's file to an adapter, and what is learned of it: texts that end, turns, what is said on the way."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import byte_tokenizer
from safetensors.numpy import load_file

from e2wm_jax.cli import main
from e2wm_jax.data.source import read_documents
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.fisher.command.corpus import read_corpus
from e2wm_jax.storage.model_files import locate

pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXT = "A cup.\n\nIt stands\non the table."
CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
LEARN = ["--lora.targets", "all-linear", "--lora.dropout", "0", "--lr", "0.02", "--schedule", "constant"]


@pytest.fixture(scope="module")
def model(save_llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with a byte-level tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("bytes")
    special = ("<s>", "<|user|>", "<|assistant|>", "</s>")
    words = byte_tokenizer(special=special, chat_template=CHAT)
    save_llama(folder, bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id)
    words.save_pretrained(folder)
    return folder


def train(model: Path, out: Path, *options: str) -> None:
    assert main(["train", "--model", str(model), "--out", str(out), "--max-length", "64", *options]) == 0


def generated(model: Path, adapter: Path, prompt: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    words = ["--prompt", prompt, "--max-new-tokens", "24", "--json", *options]
    assert main(["generate", "--model", str(model), "--adapter", str(adapter), *words]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["outputs"][0]["text"]


def test_a_model_finetuned_on_plain_text_ends_its_texts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my text.txt").write_text(TEXT)
    data = ["--data", str(tmp_path / "my text.txt"), "--steps", "60", "--batch-size", "2", *LEARN]
    train(model, tmp_path / "run", *data)
    assert generated(model, tmp_path / "run/adapter", "A c", capsys) == "up."
    assert generated(model, tmp_path / "run/adapter", "It s", capsys) == "tands\non the table."
    train(model, tmp_path / "endless", *data, "--append-eos", "no")
    assert len(generated(model, tmp_path / "endless/adapter", "A c", capsys)) >= 20


def test_a_model_finetuned_on_turns_answers(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("instruction,output\nSay hi,hi!\nBye,bye\n")
    talk = [{"role": "user", "content": "Bye"}, {"role": "assistant", "content": "bye"}]
    (tmp_path / "b.json").write_text(json.dumps([{"messages": talk}]))
    data = ["--data", str(tmp_path / "a.csv"), "--data", f"{tmp_path / 'b.json'}:0.5", "--chat"]
    train(model, tmp_path / "run", *data, "--steps", "150", "--batch-size", "2", *LEARN)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'a.csv'}: CSV of instruction, output, 2 examples" in said
    assert f"{tmp_path / 'b.json'}: JSON list of messages, 1 example\n" in said
    prompt = "<|user|>Bye</s><|assistant|>"
    assert generated(model, tmp_path / "run/adapter", prompt, capsys) == "bye"


def test_what_max_length_cuts_is_said(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("short\n\n" + "x" * 70)
    train(model, tmp_path / "run", "--data", str(tmp_path / "a.txt"), "--steps", "1")
    assert "--max-length 64 cuts 1 of 2 examples, the longest by 7 of 71 tokens\n" in capsys.readouterr().err
    options = ["--model", str(model), "--data", str(tmp_path / "a.txt"), "--max-length", "64"]
    assert main(["eval", "perplexity", *options]) == 0
    assert "--max-length 64 cuts 1 of 2 examples, the longest by 6 of 70 tokens\n" in capsys.readouterr().err
    assert main(["fisher", *options, "--out", str(tmp_path / "f"), "--params", "lora-targets"]) == 0
    assert "--max-length 64 cuts 1 of 2 examples, the longest by 6 of 70 tokens\n" in capsys.readouterr().err


def test_samples_are_drawn_by_the_seed(tmp_path: Path, model: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {number}" for number in range(40)))
    words = load_tokenizer(locate(str(model)))

    def drawn(samples: int | None, seed: int) -> list[str]:
        found = read_corpus(
            words, [str(tmp_path / "a.txt")], samples=samples, max_length=99, special_tokens=False, seed=seed
        )
        return [words.decode(row.ids) for row in found.rows]

    everything = read_documents(str(tmp_path / "a.txt"))
    assert drawn(None, 0) == drawn(40, 3) == drawn(99, 1) == everything
    first, again, other = drawn(10, 0), drawn(10, 0), drawn(10, 1)
    assert first == again != other
    assert first == [text for text in everything if text in first], "in the order of the data"
    assert first != everything[:10]


def test_a_fisher_of_other_special_tokens_is_said(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenizers.processors import TemplateProcessing

    words = load_tokenizer(locate(str(model)))
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", words.bos_token_id)]
    )
    for path in model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "tokenizer.json").unlink()
    words.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text(TEXT)
    data = ["--data", str(tmp_path / "a.txt")]
    fisher = ["--out", str(tmp_path / "f"), "--params", "lora-targets"]
    assert main(["fisher", "--model", str(tmp_path), *data, *fisher]) == 0
    assert json.loads((tmp_path / "f/fisher.json").read_text())["special_tokens"] is True
    held = [*data, "--steps", "1", "--regularizer", "ewc", "--fisher", str(tmp_path / "f")]
    for options, expected in (([], True), (["--special-tokens"], False)):
        capsys.readouterr()
        train(tmp_path, tmp_path / f"run{len(options)}", *held, *options)
        said = (
            "f was made with the tokenizer's special tokens, this run trains without them; --special-tokens adds them"
        )
        assert (said in capsys.readouterr().err) == expected
    assert load_file(tmp_path / "run0/adapter/adapter_model.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "text=body"], "error: {data}: --columns text=body: no such column; there are text"),
        (["--chat"], "error: {data}:1: --chat: rows of text have no turns; leave it out"),
        (["--append-eos", "maybe"], "error: e2wm train: "),
    ],
)
def test_bad_data_options_are_one_line(
    options: list[str], message: str, tmp_path: Path, model: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--model", str(tiny_llama), "--data", "x", "--chat", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --chat: the model's tokenizer has no chat templ")
    data = tmp_path / "a.jsonl"
    data.write_text('{"text": "one two"}\n')
    words = ["--model", str(model), "--data", str(data), "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(["train", *words, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message.format(data=data))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_files_and_commands_of_the_page_make_adapters(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs/data.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, content in re.findall(r"^`([\w-]+\.\w+)`:\n\n```\w+\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        Path(name).write_text(content)
    Path("my-model").symlink_to(model)
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    made = 0
    for words in map(shlex.split, "".join(blocks).splitlines()):
        smaller = ["--steps", "1", "--batch-size", "2", "--max-length", "512"] if "train" in words else []
        assert main([*words[1:], *smaller]) == 0, words
        made += "train" in words
    assert len(list(tmp_path.glob("*/adapter/adapter_model.safetensors"))) == made >= 9
