"""What a model cannot be judged on: tokens without a row, scores that are not finite, too long examples."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ids_of

from e2wm_jax.cli import main
from e2wm_jax.data.source import Question
from e2wm_jax.data.tokenize import check_ids
from e2wm_jax.errors import InputError, NonFiniteError
from e2wm_jax.evaluate import perplexity
from e2wm_jax.evaluate.model import Evaluated, load_evaluated, open_evaluated
from e2wm_jax.evaluate.questions.answer_rows import pack
from e2wm_jax.evaluate.questions.answer_scores import answer_scores, fitting
from e2wm_jax.evaluate.results import power
from e2wm_jax.evaluate.table import number, show_scores
from e2wm_jax.evaluate.texts import generation
from e2wm_jax.evaluate.texts.prompting import Need, Prompting, fit
from e2wm_jax.models.decoding.generate import Decoding

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUESTION = {"input": "Where is Mary?\nAnswer:", "answer": "kitchen", "answer_list": ["kitchen", "bedroom"]}


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Evaluated:
    return load_evaluated(str(tiny_llama))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def lines(name: str, *rows: Any) -> Path:
        path = tmp_path / name
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return path

    return lines


# ------------------------------------------------------------------------------------------------- tokens without a row


@pytest.fixture(scope="module")
def larger_tokenizer(save_llama: Callable[..., Any], tiny_tokenizer: Any, tmp_path_factory: Any) -> Path:
    """A model of 320 rows whose tokenizer was given <x>, token 320."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("larger")
    save_llama(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<x>"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "row", "place"),
    [
        (["eval", "perplexity"], "Mary opens the <x> fridge.\n", "document 1"),
        (["eval", "qa"], {**QUESTION, "input": "Mary <x>"}, ":1"),
        (["eval", "qa"], {**QUESTION, "answer_list": ["kitchen", "<x>"]}, ":1"),
        (["eval", "generate"], {"input": "Mary <x>", "ref": "kitchen"}, ":1"),
    ],
)
def test_a_token_without_a_row_is_named_before_weights_are_read(
    larger_tokenizer: Path, write: Any, words: list[str], row: Any, place: str, capsys: Any, monkeypatch: Any
) -> None:
    name = words[1]
    monkeypatch.setattr("e2wm_jax.evaluate.model.load", lambda *args, **options: pytest.fail("weights were read"))
    path = write({"perplexity": "a.txt", "qa": "act_recog.json", "generate": "plan_gen.json"}[name], row)
    assert main([*words, "--model", str(larger_tokenizer), "--data", str(path), "--json"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {path}")
    assert f"{place}: token 320 (<x>), the model has 320 rows" in error


def test_a_larger_tokenizer_is_fine_where_its_token_does_not_occur(larger_tokenizer: Path, tiny: Evaluated) -> None:
    larger = load_evaluated(str(larger_tokenizer))
    question = Question("Where is Mary?", ("kitchen", "bedroom"), 0, "here")
    np.testing.assert_array_equal(
        answer_scores(larger, [question], "normalized"), answer_scores(tiny, [question], "normalized")
    )


def test_ids_are_checked_against_the_rows(tiny_tokenizer: Any) -> None:
    check_ids(tiny_tokenizer, 320, [("a:1", [0, 319]), ("a:2", [])])
    with pytest.raises(InputError, match=r"^a:2: token 7 \(.*\), the model has 7 rows; give the tokenizer"):
        check_ids(tiny_tokenizer, 7, [("a:1", [6, 0]), ("a:2", np.array([3, 7, 9]))])


# ------------------------------------------------------------------------------------------- scores that are not finite


@pytest.fixture(scope="module", params=[math.nan, math.inf])
def broken(tiny: Evaluated, request: Any) -> Evaluated:
    """A model with one weight of its first layer that is NaN."""
    layers = tiny.params["layers"]
    up = layers["up"]["weight"].at[0, 0, 0].set(request.param)
    return tiny._replace(params={**tiny.params, "layers": {**layers, "up": {**layers["up"], "weight": up}}})


def test_scores_that_are_no_numbers_are_refused(broken: Evaluated) -> None:
    question = Question("Where is Mary?", ("kitchen", "bedroom"), 0, "qa.json:7")
    for rule in ("normalized", "calibrated"):
        with pytest.raises(NonFiniteError, match=r"(qa\.json:7|calibration): the model's scores are not finite"):
            answer_scores(broken, [question], rule)
    with pytest.raises(NonFiniteError, match=r"a\.txt: document 2: the model's scores are not finite"):
        perplexity.predict(broken, {1: "Mary walks."}, max_length=16, name="a.txt")


@pytest.mark.parametrize("beams", [1, 2])
def test_nothing_is_written_with_scores_that_are_no_numbers(broken: Evaluated, beams: int, tmp_path: Path) -> None:
    from e2wm_jax.data.source import TaskExample

    path = tmp_path / "predictions.jsonl"
    with pytest.raises(NonFiniteError, match=r"plan\.json:3: the model's scores are not finite"):
        generation.predict(
            broken, {2: TaskExample("Mary", "x", 1.0, "plan.json:3")}, Decoding(8, num_beams=beams), path=path
        )
    assert not path.exists()


# --------------------------------------------------------------------------------------------------- beyond float64


def test_powers_beyond_float64_are_none() -> None:
    assert power(math.e, 1.0) == math.e
    assert power(math.e, 709.0) == math.exp(709)
    assert power(math.e, 710.0) is None
    assert power(2, 1023.0) == 2.0**1023
    assert power(2, 1024.0) is None
    assert number(None) == "above 1e308"


def test_a_perplexity_beyond_float64_is_null_and_its_nats_are_right(
    save_llama: Callable[..., Any], torch_oracle: Any, tmp_path: Path, write: Any, capsys: Any
) -> None:
    torch = torch_oracle
    model = save_llama(tmp_path / "model")
    with torch.no_grad():
        model.lm_head.weight.mul_(3e3)
    model.save_pretrained(tmp_path / "model")
    text = "The quick brown fox jumps over 13 lazy dogs."
    words = ["eval", "perplexity", "--model", str(tmp_path / "model"), "--data", str(write("a.txt", text))]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    ids = torch.tensor([ids_of(load_evaluated(str(tmp_path / "model")).tokenizer, text)])
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    assert expected > 1024
    assert found["nats"] == pytest.approx(expected, rel=1e-4)
    assert found["perplexity"] is found["perplexity_2_nats"] is None
    assert found["intervals"]["perplexity"] == [None, None]
    show_scores(found)
    assert "perplexity         above 1e308  [above 1e308, above 1e308]" in capsys.readouterr().out


def test_tokens_that_stand_for_no_text_have_no_bits_per_byte() -> None:
    records = [{"nats": 2.0, "tokens": 1, "bytes": 0}, {"nats": 3.0, "tokens": 1, "bytes": 0}]
    assert perplexity.summary(records)["bits_per_byte"] is None
    assert perplexity.summary(records)["nats"] == 2.5
    assert "bits_per_byte" not in perplexity.intervals(records)


# ------------------------------------------------------------------------------------------------------------- too long


def test_examples_that_fit_by_hand(capsys: Any) -> None:
    examples, needs = {3: "a", 5: "b", 9: "c"}, {3: Need("f:4", 8), 5: Need("f:6", 9), 9: Need("f:10", 7)}
    assert fit(examples, needs, 9, "refuse") == (examples, 0, "refuse")
    with pytest.raises(InputError, match=r"f:6: 9 tokens, the model has 8 positions \(1 of 3 .*--too-long truncate"):
        fit(examples, needs, 8, "refuse")
    skipped = fit(examples, needs, 8, "skip")
    assert skipped.examples == {3: "a", 9: "c"}
    assert skipped.counts == {"skipped": 1}
    truncated = fit(examples, needs, 7, "truncate")
    assert (truncated.examples, truncated.counts) == (examples, {"truncated": 2})
    assert "2 of 3 examples are cut" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"all 3 examples .* 6 positions; leave the file out, or use --too-long trun"):
        fit(examples, needs, 6, "skip")


@pytest.fixture(scope="module")
def short(save_llama: Callable[..., Any], tmp_path_factory: Any) -> Path:
    """A model of 24 positions."""
    folder = tmp_path_factory.mktemp("short")
    save_llama(folder, max_position_embeddings=24)
    return folder


LONG = "Mary walks to the kitchen. " * 6 + "Where is Mary?"


def test_a_cut_question_scores_as_pytorch_scores_its_end(short: Path, torch_oracle: Any) -> None:
    from transformers import AutoModelForCausalLM

    torch, model = torch_oracle, load_evaluated(str(short))
    question = Question(LONG, ("kitchen", "the table"), 0, "here")
    (ours,) = answer_scores(model, [question], "normalized", Prompting(too_long="truncate"))
    whole = [ids_of(model.tokenizer, f"{LONG} {answer}") for answer in question.answers]
    over = max(map(len, whole)) - 24
    start = len(ids_of(model.tokenizer, LONG)) - over
    theirs = AutoModelForCausalLM.from_pretrained(short).eval()
    for score, ids in zip(ours, whole, strict=True):
        kept = torch.tensor([ids[over:]])
        with torch.no_grad():
            scores = theirs(kept).logits.log_softmax(-1)[0, start - 1 : -1]
        expected = scores[torch.arange(len(scores)), kept[0, start:]].mean().item()
        assert score == pytest.approx(expected, abs=1e-5)


def test_an_answer_must_leave_room_for_its_question(short: Path) -> None:
    model = open_evaluated(str(short))
    question = Question("Mary", ("kitchen " * 40, "b"), 0, "qa.json:1")
    with pytest.raises(InputError, match=r"qa\.json:1: an answer leaves no room for its question in 24 tokens"):
        fitting(model, {0: question}, Prompting(too_long="truncate"))
    with pytest.raises(InputError, match="no room"):
        pack(model.tokenizer, question, False, limit=24)


def test_too_long_examples_are_counted_in_results(short: Path, write: Any, capsys: Any) -> None:
    common = ["--model", str(short), "--json"]
    qa = write("obj_move.json", QUESTION, {**QUESTION, "input": LONG})
    plans = write("obj_move_path.json", {"input": LONG, "ref": "kitchen"}, {"input": "Mary", "ref": "kitchen"})
    text = write("news.txt", f"{LONG}\n\nMary walks.")
    generate = ["eval", "generate", "--data", str(plans), "--beams", "1", "--max-new-tokens", "4"]
    for command in (["eval", "qa", "--data", str(qa)], generate, ["eval", "perplexity", "--data", str(text)]):
        assert main([*command, *common]) == 2
        assert "tokens, the model has 24 positions (1 of 2" in capsys.readouterr().err
        for rule, count in (("skip", "skipped"), ("truncate", "truncated")):
            assert main([*command, *common, "--too-long", rule]) == 0
            found = json.loads(capsys.readouterr().out.splitlines()[-1])
            assert found[count] == 1
            assert found.get("n", found.get("documents")) == (1 if rule == "skip" else 2)


@pytest.mark.parametrize(("words", "way_out"), [(4, "lower --max-new-tokens to "), (40, "shorten the prompt")])
def test_the_way_out_is_one_that_helps(words: int, way_out: str, short: Path, capsys: Any) -> None:
    """Fewer new tokens are no way out of a prompt that is too long by itself."""
    prompt, new = "Mary " * words, "--max-new-tokens"
    generate = ["generate", "--model", str(short), "--prompt", prompt]
    assert main([*generate, new, "23"]) == 2
    said = capsys.readouterr().err
    assert f"positions; {way_out}" in said
    if "lower" in way_out:
        room = said.partition("--max-new-tokens to ")[2].partition(",")[0]
        assert main([*generate, new, str(int(room) + 1)]) == 2
        assert main([*generate, new, room]) == 0


@pytest.mark.parametrize(("words", "way_out"), [(4, "lower --max-new-tokens to "), (40, "--too-long truncate")])
def test_an_evaluation_offers_what_helps(words: int, way_out: str, short: Path, write: Any, capsys: Any) -> None:
    plans = write("plans.json", {"input": "Mary " * words, "ref": "kitchen"}, {"input": "Mary", "ref": "kitchen"})
    assert main(["eval", "generate", "--model", str(short), "--data", str(plans), "--max-new-tokens", "23"]) == 2
    assert f"examples are too long); {way_out}" in capsys.readouterr().err


def test_a_cut_prompt_is_continued_as_its_end(short: Path, tmp_path: Path) -> None:
    from e2wm_jax.data.source import TaskExample

    model, decoding = load_evaluated(str(short)), Decoding(4)
    example = TaskExample(LONG, "x", 1.0, "f:1")
    ends = ids_of(model.tokenizer, LONG)[-20:]
    text = model.tokenizer.decode(ends)
    assert ids_of(model.tokenizer, text) == ends
    whole = generation.predict(model, {0: example}, decoding, Prompting(too_long="truncate"))
    cut = generation.predict(model, {0: TaskExample(text, "x", 1.0, "f:1")}, decoding)
    assert whole == cut


# ----------------------------------------------------------------------------------------------- in the other commands


@pytest.mark.parametrize("command", ["train", "fisher", "validation"])
def test_training_and_fisher_name_a_token_without_a_row(
    larger_tokenizer: Path, write: Any, command: str, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("e2wm_jax.models.weights.load", lambda *args, **options: pytest.fail("weights were read"))
    task = write("task.json", {"input": "Mary", "ref": "opens"}, {"input": "Mary", "ref": "<x>"})
    good = write("good.json", {"input": "Mary", "ref": "opens"})
    text = write("text.txt", "Mary opens.\n\nMary <x>")
    data = {"fisher": [text], "train": [task], "validation": [good, "--validation", task]}[command]
    words = ["fisher" if command == "fisher" else "train", "--model", str(larger_tokenizer), "--data", *map(str, data)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    place = f"{text}:3" if command == "fisher" else f"{task}:2"
    assert f"error: {place}: token 320 (<x>), the model has 320 rows" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_comparison_finds_what_is_too_long_before_it_reads_weights(
    short: Path, write: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    from e2wm_jax.compare.plan import make_plan
    from e2wm_jax.compare.settings import CompareSettings

    monkeypatch.setattr("e2wm_jax.models.weights.load", lambda *args, **options: pytest.fail("weights were read"))
    task = write("task.json", {"input": "Mary", "ref": "opens"})
    qa, text = write("obj_move.json", QUESTION, {**QUESTION, "input": LONG}), write("news.txt", "Mary walks.")
    words = ["compare", "--model", str(short), "--data", str(task), "--eval", str(qa), "--text", str(text)]
    assert main([*words, "--regularizers", "none", "--out", str(tmp_path / "out")]) == 2
    assert "obj_move.json:2: " in (error := capsys.readouterr().err)
    assert "the model has 24 positions (1 of 2 examples are too long); --too-long truncate" in error
    assert not (tmp_path / "out").exists()
    settings = CompareSettings(
        out=tmp_path / "out",
        model=str(short),
        data=(str(task),),
        eval=(qa,),
        text=(str(text),),
        regularizers=("none",),
        too_long="skip",
    )
    assert make_plan(settings).evaluation.too_long == "skip"


def test_json_has_no_nan() -> None:
    from e2wm_jax.storage.files import json_text

    assert json_text({"a": [math.nan, 1.0, (math.inf, "b")], "c": {"d": -math.inf}}) == (
        '{"a": [null, 1.0, [null, "b"]], "c": {"d": null}}'
    )
    assert json_text({"é": 1}, ensure_ascii=False) == '{"é": 1}'


# --------------------------------------------------------------------------------------------------------- compilations


def test_questions_and_prompts_of_many_lengths_compile_few_programs(tiny: Evaluated, monkeypatch: Any) -> None:
    from e2wm_jax.data.source import TaskExample
    from e2wm_jax.evaluate.questions import answer_scores as scoring
    from e2wm_jax.evaluate.texts import continuations

    shapes, lengths = set(), set()
    monkeypatch.setattr(
        scoring, "row_nll", lambda _, batch: shapes.add((batch.ids.shape, batch.targets.shape)) or batch.weights * 1.0
    )

    def counted(config: Any, params: Any, prompts: Any, *args: Any, **options: Any) -> list[list[int]]:
        longest = max(map(len, prompts))
        lengths.add(next(length for length in options["padded_lengths"] if length >= longest))
        return [[0]] * len(prompts)

    monkeypatch.setattr(continuations, "generate", counted)
    texts = ["Mary walks. " * number for number in range(1, 40)]
    questions = [Question(text, ("kitchen", "the table " * (1 + i % 7)), 0, "here") for i, text in enumerate(texts)]
    answer_scores(tiny, questions, "normalized", batch_size=2)
    assert len(shapes) <= 3
    examples = {i: TaskExample(text, "x", 1.0, "here") for i, text in enumerate(texts)}
    generation.predict(tiny, examples, Decoding(4), batch_size=2)
    assert len(lengths) <= 3


def test_documents_are_measured_as_they_are_trained(tiny: Evaluated, write: Any) -> None:
    """The tokens of plain text in training, less the end that is learned, are those whose nats are counted."""
    from e2wm_jax.data.source import parse_mixture, read_documents, read_mixture
    from e2wm_jax.data.tokenize import document_rows, task_rows

    path = write("news.txt", "Mary walks.\n\n  The quick brown fox\njumps.  \n\nHow many cafés?\n")
    trained, _ = task_rows(tiny.tokenizer, read_mixture(parse_mixture((str(path),))), max_length=800, append_eos=False)
    measured, _ = document_rows(tiny.tokenizer, read_documents(str(path)), max_length=800, special_tokens=False)
    assert [row.ids.tolist() for row in trained] == [row.ids.tolist() for row in measured]
    assert [row.first_target for row in trained] == [row.first_target for row in measured]
