"""Chat templates, ends of turns and generation_config.json in `e2wm generate` and `e2wm eval`, against transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import byte_tokenizer

from e2wm_jax.cli import main
from e2wm_jax.compare.plan import as_config, from_config, make_plan
from e2wm_jax.compare.sets import evaluate as compare_evaluate
from e2wm_jax.compare.settings import CompareSettings
from e2wm_jax.data.chat import as_messages, end_of_turn
from e2wm_jax.data.source import Question
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.model import ending_tokens, load_evaluated, open_evaluated
from e2wm_jax.evaluate.questions.answer_scores import answer_scores
from e2wm_jax.evaluate.settings import GenerateSettings
from e2wm_jax.evaluate.texts.continuations import sampling
from e2wm_jax.evaluate.texts.generation_config import GenerationConfig, read_generation_config
from e2wm_jax.evaluate.texts.prompting import Prompting
from e2wm_jax.models.decoding.sampling import Sampling, cut
from e2wm_jax.storage.model_files import ModelFiles

pytestmark = pytest.mark.usefixtures("quick_compilation")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|end|>")  # 256, 257, 258; the text ends with the last


@pytest.fixture(scope="module")
def talking(save_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model with a chat template whose turns end otherwise than its texts, and the same in torch."""
    folder = tmp_path_factory.mktemp("talking")
    model = save_llama(folder, vocab_size=259, eos_token_id=258, bos_token_id=256)
    byte_tokenizer(special=SPECIAL, chat_template=CHATML).save_pretrained(folder)
    return folder, model


def written(folder: Path, capsys: Any, *words: str) -> tuple[dict[str, Any], str]:
    """The result and the messages of `e2wm generate`."""
    assert main(["generate", "--model", str(folder), "--json", *words]) == 0
    said = capsys.readouterr()
    return json.loads(said.out.splitlines()[-1]), said.err


def torch_text(model: Any, tokenizer: Any, ids: list[int], new: int, ends: list[int], **options: Any) -> str:
    import torch

    rows = torch.tensor([ids])
    with torch.no_grad():
        found = model.generate(
            rows, attention_mask=torch.ones_like(rows), max_new_tokens=new, do_sample=False, eos_token_id=ends,
            pad_token_id=0, **options,
        )  # fmt: skip
    return str(tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True))


# ----------------------------------------------------------------------------------------------------------------- chat


@pytest.mark.parametrize(("beams", "system"), [(1, None), (1, "Be short."), (3, None)])
def test_a_chat_is_continued_as_by_transformers(talking: Any, capsys: Any, beams: int, system: str | None) -> None:
    folder, model = talking
    words = ["--chat", "--prompt", "What is gravity?", "--max-new-tokens", "24", "--beams", str(beams)]
    result, said = written(folder, capsys, *words, *([] if system is None else ["--system", system]))
    tokenizer = load_evaluated(str(folder)).tokenizer
    messages = as_messages("What is gravity?", system)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    expected = torch_text(model, tokenizer, ids, 24, [257, 258], num_beams=beams)
    assert result == {
        "outputs": [{"prompt": "What is gravity?", "text": expected}],
        "chat": True,
        "sampling": None,
    }
    assert "chat template" not in said


def test_a_chat_ends_with_its_turn(talking: Any, torch_oracle: Any, tmp_path: Path, capsys: Any) -> None:
    """A head that says <|im_end|> third: the texts of the same model without --chat go on."""
    folder, model = talking
    assert end_of_turn(byte_tokenizer(special=SPECIAL, chat_template=CHATML)) == 257
    evaluated = load_evaluated(str(folder))
    assert (ending_tokens(evaluated), ending_tokens(evaluated, chat=True)) == ({258}, {257, 258})
    long, _ = written(folder, capsys, "--chat", "--prompt", "a", "--max-new-tokens", "8")
    (tmp_path / "generation_config.json").write_text("{}")
    # What stands third is said to end the text: as any token of the list does.
    ids = evaluated.tokenizer.apply_chat_template(as_messages("a"), add_generation_prompt=True, return_dict=False)
    rows = torch_oracle.tensor([ids])
    with torch_oracle.no_grad():
        new = model.generate(rows, attention_mask=torch_oracle.ones_like(rows), max_new_tokens=8, do_sample=False)
    third = int(new[0, len(ids) + 2])
    first = [int(token) for token in new[0, len(ids) :]].index(third)
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [third, 258]}))
    short, _ = written(copy, capsys, "--chat", "--prompt", "a", "--max-new-tokens", "8")
    expected = evaluated.tokenizer.decode(new[0, len(ids) : len(ids) + first + 1], skip_special_tokens=True)
    assert short["outputs"][0]["text"] == expected
    assert long["outputs"][0]["text"].startswith(expected)


@pytest.mark.parametrize(
    ("behind", "ends"),
    [("<|im_end|>\n", 257), (" <|end|>", 258), ("\n", None)],
)
def test_the_end_of_a_turn_is_what_the_template_writes_behind_it(behind: str, ends: int | None) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '" + behind.replace("\n", "\\n") + "' }}"
    assert end_of_turn(byte_tokenizer(special=SPECIAL, chat_template=template + "{% endfor %}")) == ends


@pytest.mark.parametrize("rule", ["normalized", "calibrated"])
def test_answers_of_a_chat_score_as_in_pytorch(talking: Any, torch_oracle: Any, rule: Any) -> None:
    folder, model = talking
    evaluated = load_evaluated(str(folder))
    question = Question("Where is Mary?", ("kitchen", "bed"), 0, "here")
    (ours,) = answer_scores(evaluated, [question], rule, Prompting(chat=True))

    def log_p(text: str, answer: str) -> Any:
        tokenizer = evaluated.tokenizer
        asked = tokenizer.apply_chat_template(as_messages(text), add_generation_prompt=True, return_dict=False)
        ids = [*asked, *tokenizer(answer, add_special_tokens=False)["input_ids"]]
        with torch_oracle.no_grad():
            scores = model(torch_oracle.tensor([ids])).logits.log_softmax(-1)[0, len(asked) - 1 : -1]
        return scores[torch_oracle.arange(len(scores)), torch_oracle.tensor(ids[len(asked) :])]

    for score, answer in zip(ours, question.answers, strict=True):
        own = log_p(question.input, answer)
        expected = own.mean() if rule == "normalized" else own.sum() - log_p("Answer:", answer).sum()
        assert score == pytest.approx(expected.item(), abs=2e-5)


def test_evaluations_take_chats(talking: Any, tmp_path: Path, capsys: Any) -> None:
    folder, model = talking
    rows = {
        "obj_move": {"input": "Where is Mary?", "answer": "bed", "answer_list": ["kitchen", "bed"]},
        "obj_move_path": {"input": "Where?", "ref": "kitchen"},
    }
    for name, row in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(row) + "\n")
    words = ["--model", str(folder), "--chat", "--beams", "1", "--max-new-tokens", "12", "--json"]
    assert main(["eval", "all", "--data", str(tmp_path), "--out", str(tmp_path / "out"), *words]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["settings"]["chat"] is True
    (record,) = map(json.loads, (tmp_path / "out/predictions/obj_move_path.jsonl").read_text().splitlines())
    tokenizer = load_evaluated(str(folder)).tokenizer
    ids = tokenizer.apply_chat_template(as_messages("Where?"), add_generation_prompt=True, return_dict=False)
    expected = torch_text(model, tokenizer, ids, 12, [257, 258])
    assert record["prediction"] == expected.split("\n")[0].strip()


def test_babi_takes_chats(talking: Any, tmp_path: Path, capsys: Any) -> None:
    """A question with its examples is one turn of the user; `eval all` asks in the same way."""
    folder, model = talking
    story = "1 Mary went to the hall.\n2 Where is Mary?\thall\t1\n"
    for split in ("train", "test"):
        (tmp_path / f"qa1_made-up_{split}.txt").write_text(story)
    tokenizer = load_evaluated(str(folder)).tokenizer
    passage = "Passage: Mary went to the hall.\nQuestion: Where is Mary?\nAnswer:"
    ids = tokenizer.apply_chat_template(
        as_messages(f"{passage} hall\n\n{passage}"), add_generation_prompt=True, return_dict=False
    )
    expected = torch_text(model, tokenizer, ids, 12, [257, 258]).split("\n")[0].strip()
    words = ["eval", "babi", "--model", str(folder), "--data", str(tmp_path), "--tasks", "1", "--max-new-tokens", "12"]
    said = {}
    for more in ((), ("--chat",)):
        out = tmp_path / f"out{len(more)}.jsonl"
        assert main([*words, "--shots", "1", "--predictions", str(out), *more]) == 0
        said[more] = json.loads(out.read_text())["prediction"]
    assert said["--chat",] == expected != said[()]
    assert main([*words, "--shots", "1", "--chat", "--special-tokens"]) == 2
    assert "--special-tokens with --chat" in capsys.readouterr().err


def test_comparisons_take_chats(talking: Any, tmp_path: Path) -> None:
    """In evaluation and, unless [train] says otherwise, in training."""
    folder, model = talking
    (tmp_path / "task.json").write_text('{"input": "Where?", "ref": "kitchen"}\n')
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/obj_move_path.json").write_text('{"input": "Where?", "ref": "kitchen"}\n')
    (tmp_path / "text.txt").write_text("The quick brown fox.\n")
    (tmp_path / "plain.toml").write_text("[train]\nchat = false\n")
    options = {
        "model": str(folder), "data": (str(tmp_path / "task.json"),), "eval": (tmp_path / "eval",), "steps": 1,
        "text": (str(tmp_path / "text.txt"),), "regularizers": ("none",), "beams": 1, "max_new_tokens": 12,
    }  # fmt: skip
    plan = make_plan(CompareSettings(out=tmp_path / "out", chat=True, **options))
    assert plan.train_settings(plan.arms[0], 0).chat
    plain = make_plan(CompareSettings(out=tmp_path / "out", chat=True, config=tmp_path / "plain.toml", **options))
    assert not plain.train_settings(plain.arms[0], 0).chat
    again = from_config(json.loads(json.dumps(as_config(plan))), plan.out)
    evaluated = load_evaluated(str(folder))
    compare_evaluate(evaluated, again.sets, (), again.evaluation, tmp_path / "out")
    (record,) = map(json.loads, (tmp_path / "out/predictions/obj_move_path.jsonl").read_text().splitlines())
    ids = evaluated.tokenizer.apply_chat_template(as_messages("Where?"), add_generation_prompt=True, return_dict=False)
    expected = torch_text(model, evaluated.tokenizer, ids, 12, [257, 258])
    assert record["prediction"] == expected.split("\n")[0].strip()


def test_what_does_not_go_with_a_chat_is_refused(talking: Any, tiny_llama: Path, capsys: Any) -> None:
    folder, _ = talking
    for words, message in (
        (["--model", str(tiny_llama), "--chat"], "error: prompt 1 'Hi': the model's tokenizer has no chat template"),
        (["--model", str(folder), "--chat", "--special-tokens"], "error: --special-tokens with --chat"),
        (["--model", str(folder), "--system", "x"], "error: --system needs --chat"),
    ):
        assert main(["generate", "--prompt", "Hi", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_chat_template_that_is_not_used_is_said(talking: Any, tiny_llama: Path, capsys: Any) -> None:
    result, said = written(talking[0], capsys, "--prompt", "Hi", "--max-new-tokens", "2")
    assert "the tokenizer has a chat template; --chat puts each prompt into it" in said
    assert result["chat"] is False
    _, said = written(tiny_llama, capsys, "--prompt", "Hi", "--max-new-tokens", "2")
    assert "chat" not in said


# ---------------------------------------------------------------------------------------------- generation_config.json


def config_of(folder: Path, **values: Any) -> GenerationConfig:
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    (folder / "generation_config.json").write_text(json.dumps(values))
    return read_generation_config(ModelFiles("m", folder, "hf"))


def test_the_checkpoint_s_own_values_are_read(tmp_path: Path) -> None:
    said = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "min_p": 0.0}
    found = config_of(tmp_path, eos_token_id=[2, 7], **said)
    assert found == GenerationConfig((2, 7), True, 0.6, 20, 0.9, ("repetition_penalty 1.1",))
    assert config_of(tmp_path) == GenerationConfig((5,))
    assert config_of(tmp_path, eos_token_id=3).ends == (3,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": "2"}, "eos_token_id is '2'; expected a token's number, or a list of such"),
        ({"eos_token_id": [2, None]}, r"eos_token_id is \[2, None\]"),
        ({"temperature": "hot"}, "temperature is 'hot'; expected a number"),
        ({"top_p": [1]}, r"top_p is \[1\]"),
        ({"top_k": True}, "top_k is True"),
    ],
)
def test_values_of_another_kind_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"generation_config\.json: {message}"):
        config_of(tmp_path, **values)


@pytest.mark.parametrize(
    ("flags", "config", "expected"),
    [
        ({}, {"do_sample": True, "temperature": 0.6}, None),
        ({"sample": True}, {}, (1.0, 50, None)),
        ({"temperature": 0.8}, {}, (0.8, 50, None)),
        ({"temperature": 0.8, "top_k": 0}, {}, (0.8, None, None)),
        ({"top_p": 1.0, "top_k": 7}, {"top_p": 0.5}, (1.0, 7, None)),
        ({"sample": True}, {"temperature": 0.6, "top_k": 20, "top_p": 0.9}, (0.6, 20, 0.9)),
        ({"temperature": 0.2}, {"temperature": 0.6, "top_k": 0, "top_p": 0.9}, (0.2, None, 0.9)),
    ],
)
def test_tokens_are_drawn_as_by_transformers(
    talking: Any,
    tmp_path: Path,
    torch_oracle: Any,
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any],
    config: dict[str, Any],
    expected: Any,
) -> None:
    """The distribution of the first token is that of transformers' `generate` with the same arguments and file."""
    found = sampling(GenerateSettings(model="m", **flags), config_of(tmp_path, **config))
    assert found == (None if expected is None else Sampling(*expected))
    if found is None:
        return
    from transformers import GenerationConfig as Theirs

    _, model = talking
    monkeypatch.setattr(model, "generation_config", Theirs(**config, eos_token_id=258, pad_token_id=0))
    own = {name: value for name, value in flags.items() if name != "sample"}
    rows = torch_oracle.tensor([[5, 9, 30]])
    drawn = model.generate(
        rows, attention_mask=torch_oracle.ones_like(rows), do_sample=True, max_new_tokens=1, output_scores=True,
        output_logits=True, return_dict_in_generate=True, **own,
    )  # fmt: skip
    ours = cut(jnp.asarray(drawn.logits[0].numpy()), found)
    np.testing.assert_allclose(np.asarray(ours), drawn.scores[0].numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; to draw with, it must be above 0; give --temperature"),
        ({"top_k": -1}, "top_k is -1; to draw with, it must be a whole number, 0 or more; give --top-k"),
        ({"top_k": 2.5}, "top_k is 2.5; to draw with, it must be a whole number"),
        ({"top_p": -1}, "top_p is -1; to draw with, it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5; to draw with, it must be above 0 and at most 1; give --top-p"),
    ],
)
def test_values_that_cannot_be_drawn_with(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    """They mean nothing where the likeliest token is taken, or others are asked for."""
    config = config_of(tmp_path, do_sample=True, **values)
    assert sampling(GenerateSettings(model="m"), config) is None
    with pytest.raises(InputError, match=rf"generation_config\.json: {message}"):
        sampling(GenerateSettings(model="m", sample=True), config)
    asked: dict[str, Any] = {"temperature": 0.5, "top_k": 3, "top_p": 0.5}
    assert sampling(GenerateSettings(model="m", **asked), config) == Sampling(**asked)


def test_texts_of_other_bytes_than_utf8(talking: Any, capsys: Any) -> None:
    words = ["generate", "--model", str(talking[0]), "--chat", "--prompt", "a"]
    for option in ("prompt", "stop", "system"):
        assert main([*words, f"--{option}", "caf\udce9"]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == f"error: --{option} 'caf\\udce9': holds bytes that are no UTF-8 text; give it in UTF-8"


def test_what_is_not_applied_is_said(talking: Any, tmp_path: Path, capsys: Any) -> None:
    for path in talking[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    said = {"eos_token_id": 258, "do_sample": True, "temperature": 0.5, "repetition_penalty": 1.2}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    words = ["--prompt", "Hi", "--max-new-tokens", "4"]
    greedy, message = written(tmp_path, capsys, *words)
    assert "greedy; generation_config.json says do_sample with temperature 0.5: --sample draws so" in message
    assert "generation_config.json: repetition_penalty 1.2: not applied here" in message
    assert greedy["sampling"] is None
    drawn, message = written(tmp_path, capsys, *words, "--sample", "--seed", "3")
    assert drawn["sampling"] == {"temperature": 0.5, "top_k": 50, "top_p": None, "seed": 3}
    assert "greedy" not in message
    assert drawn == written(tmp_path, capsys, *words, "--temperature", "0.5", "--seed", "3")[0]


def test_prompts_come_from_files_in_two_forms(tmp_path: Path, talking: Any, capsys: Any) -> None:
    (tmp_path / "p.jsonl").write_text('{"input": "a"}\n{"prompt": "b"}\n')
    words = ["--max-new-tokens", "2", "--prompts"]
    result, _ = written(talking[0], capsys, *words, str(tmp_path / "p.jsonl"))
    assert [output["prompt"] for output in result["outputs"]] == ["a", "b"]
    (tmp_path / "none.txt").write_text("\n\n")
    assert main(["generate", "--model", str(talking[0]), *words, str(tmp_path / "none.txt")]) == 2
    assert "none.txt: no prompt in it" in capsys.readouterr().err


@pytest.mark.slow
def test_the_embedded_model_answers(smollm2_gguf: Path, capsys: Any) -> None:
    result, _ = written(
        Path("smollm2-135m"), capsys, "--chat", "--prompt", "What is gravity?", "--max-new-tokens", "24"
    )
    assert "gravity" in result["outputs"][0]["text"].lower()
    assert open_evaluated("smollm2-135m").tokenizer.chat_template
