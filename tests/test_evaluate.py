"""Scores against plain PyTorch: one sequence at a time, no padding."""

import gzip
import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import independent_scores
import numpy as np
import pytest
from helpers import ids_of

from e2wm_jax.data.source import Question, read_questions
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate import perplexity as perplexity_command
from e2wm_jax.evaluate.model import Evaluated, load_evaluated
from e2wm_jax.evaluate.perplexity import PerplexitySettings, perplexity
from e2wm_jax.evaluate.questions import qa as qa_command
from e2wm_jax.evaluate.questions.answer_scores import answer_scores
from e2wm_jax.evaluate.questions.qa import QaSettings, accuracy, task_name
from e2wm_jax.evaluate.sets import find_sets, read_set
from e2wm_jax.evaluate.statistics import bootstrap_interval
from e2wm_jax.evaluate.suite import SuiteOptions, evaluate_sets
from e2wm_jax.evaluate.texts.generation import example_scores, summary
from e2wm_jax.evaluate.texts.prompting import Prompting
from e2wm_jax.storage.model_files import locate

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Options of different lengths, with a common first token, one the beginning of another, one a single character, twice
# the same question with others, and inputs whose last token changes when an answer follows.
QUESTIONS = [
    ("Mary walks to the kitchen. Where is Mary? Answer:", ["kitchen", "kitchen table", "kit", "the bedroom"]),
    ("How many apples are there?", ["1", "13", "27 apples on the table"]),
    (
        "Given a plan: 1. Walk to the bedroom 2. Lie on the bed. What is this activity? Answer:",
        ["go to sleep", "make coffee"],
    ),
    ("ends in a space ", ["plate", "plates", "p"]),
    ("x", ["x", "y", "x y z", "x", "Mary grabs the apple and puts the apple on the table."]),
    ("How many apples are there?", ["2", "the fridge"]),
    ("The quick brown fox", ["jumps", "jumps over", "jumps over 13 lazy dogs", "jump"]),
]


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return [Question(text, tuple(answers), 0, f"made-up:{i}") for i, (text, answers) in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def tiny(tiny_llama) -> Evaluated:
    return load_evaluated(str(tiny_llama), None)


@pytest.fixture(scope="module")
def tiny_torch(tiny_llama) -> Any:
    return torch_model(tiny_llama)


def torch_model(folder: Path) -> Any:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def peft_adapter(tiny_llama, tmp_path_factory) -> tuple[Path, Any]:
    """A random adapter as PEFT writes it, on most linear maps, and the torch model that wears it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
        rank_pattern={"layers.1.self_attn.q_proj": 2},
    )
    model = peft.get_peft_model(torch_model(tiny_llama), config).eval()
    folder = tmp_path_factory.mktemp("peft")
    model.save_pretrained(folder)
    return folder, model


def torch_scores(model: Any, tokenizer: Any, question: Question, rule: str) -> np.ndarray:
    encode = partial(tokenizer, add_special_tokens=False)
    return independent_scores.answer_scores(
        model, encode, question.input, question.answers, calibrated=rule == "calibrated"
    )


# ------------------------------------------------------------------------------------------------------------------- qa


@pytest.mark.parametrize("rule", ["normalized", "calibrated"])
def test_scores_equal_pytorch_answer_by_answer(tiny, tiny_torch, questions, rule):
    found = answer_scores(tiny, questions, rule)
    expected = [torch_scores(tiny_torch, tiny.tokenizer, question, rule) for question in questions]
    worst = max(float(np.max(np.abs(ours - theirs))) for ours, theirs in zip(found, expected, strict=True))
    print(f"{rule}: scores differ by at most {worst:.1e} nats")
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)
    assert found[4][0] == pytest.approx(found[4][3], abs=1e-6)  # the same answer twice


def test_the_independent_scorer_s_cache_plays_no_role(tiny, tiny_torch, questions):
    encode = partial(tiny.tokenizer, add_special_tokens=False)
    for text, answers in ((question.input, question.answers) for question in questions):
        found = independent_scores.answer_log_probabilities(tiny_torch, encode, text, answers)
        start = max(len(ids_of(tiny.tokenizer, text)), 1)
        for one, answer in zip(found, answers, strict=True):
            ids = ids_of(tiny.tokenizer, f"{text} {answer}")
            whole = independent_scores.log_probabilities(tiny_torch, ids, start)
            np.testing.assert_allclose(one, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rule", ["normalized", "calibrated"])
def test_batch_size_plays_no_role(tiny, questions, rule):
    reference = answer_scores(tiny, questions, rule, batch_size=1)
    for batch_size in (3, 8):
        for ours, theirs in zip(answer_scores(tiny, questions, rule, batch_size=batch_size), reference, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)


def test_a_question_scores_alone_as_among_others(tiny, questions):
    together = answer_scores(tiny, questions, "calibrated")
    np.testing.assert_allclose(answer_scores(tiny, questions[2:3], "calibrated")[0], together[2], atol=1e-5)


def test_many_answers_are_calibrated_in_rows_of_sixteen(tiny, tiny_torch):
    """Over forty distinct answers: the priors come from three rows."""
    questions = [Question("How many?", tuple(str(7 * i + j) for j in range(10)), 0, "here") for i in range(5)]
    found = answer_scores(tiny, questions, "calibrated")
    for ours, question in zip(found, questions, strict=True):
        np.testing.assert_allclose(ours, torch_scores(tiny_torch, tiny.tokenizer, question, "calibrated"), atol=2e-5)


def test_an_empty_input_is_scored_from_the_second_token(tiny, tiny_torch):
    """Nothing comes before the first token, so it cannot be predicted."""
    question = Question("", ("Mary walks to the kitchen", "Mary grabs the plate", "27 cats"), 0, "here")
    expected = torch_scores(tiny_torch, tiny.tokenizer, question, "normalized")
    np.testing.assert_allclose(answer_scores(tiny, [question], "normalized")[0], expected, rtol=1e-5, atol=1e-5)


def test_rouge_equals_a_plain_one_on_all_official_plans(shared_data):
    """Each plan against the next one of its file."""
    for one in find_sets(shared_data / "e2wm/eval"):
        if one.kind == "generate" and one.name != "obj_move_path":
            plans = [example.ref for example in read_set(one)]
            pairs = list(itertools.pairwise(plans))
            records = [{"prediction": ours, "reference": theirs} for ours, theirs in pairs]
            found = summary(example_scores("plan_gen", records))
            expected = [independent_scores.rouge(*pair) for pair in pairs]
            assert 0.1 < found["rouge2"] < found["rougeL"] < found["rouge1"] < 0.9
            for name, value in found.items():
                assert value == pytest.approx(np.mean([scores[name] for scores in expected]), abs=1e-9), one.name


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.slow
def test_eval_all_equals_an_independent_scorer_on_every_official_set(
    shared_data, smollm2, smollm2_torch, tmp_path, monkeypatch, capsys
):
    """The shortest example of each of the eleven sets, from the file to the score; PyTorch is to be done soon."""
    tokenizer = load_tokenizer(locate("smollm2-135m"))
    for one in find_sets(shared_data / "e2wm/eval"):
        lines = gzip.decompress(one.path.read_bytes()).decode().split("\n")
        (tmp_path / f"{one.name}.json").write_text(min(filter(None, lines), key=len) + "\n")
    options = SuiteOptions(batch_size=1, max_new_tokens=8)
    out = tmp_path / "out"
    evaluated = Evaluated(smollm2.config, smollm2.params, tokenizer)
    (out / "predictions").mkdir(parents=True)
    write_results(out, "smollm2", tmp_path, options, evaluate_sets(evaluated, find_sets(tmp_path), options, out))
    monkeypatch.setattr(independent_scores, "loaded", lambda model: (smollm2_torch, tokenizer))
    assert independent_scores.main(["--out", str(out)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 11
    assert all(line.startswith("same ") for line in printed)


def write_results(out: Path, model: str, data: Path, options: SuiteOptions, sets: dict[str, Any]) -> None:
    """As `eval all` does."""
    settings = {"beams": options.beams, "max_new_tokens": options.max_new_tokens, "special_tokens": False}
    settings |= {"data": [str(data)], "base_dtype": "float32"}
    (out / "results.json").write_text(json.dumps({"model": model, "adapter": [], "settings": settings, "sets": sets}))


def test_the_independent_scorer_finds_a_wrong_score(tiny, tiny_llama, qa_file, tmp_path, capsys):
    out, data = tmp_path / "out", tmp_path / "data"
    data.mkdir()
    qa_file.rename(data / "count.json")
    results = evaluate_sets(tiny, find_sets(data), SuiteOptions(), out)
    write_results(out, str(tiny_llama), data, SuiteOptions(), results)
    words = ["--out", str(out)]
    assert independent_scores.main(words) == 0
    predictions = out / "predictions/count.jsonl"
    *others, last = map(json.loads, predictions.read_text().splitlines())
    last["scores"][0] += 1e-2
    predictions.write_text("\n".join(json.dumps(row) for row in [*others, last]))
    assert independent_scores.main(words) == 1
    same, different = capsys.readouterr().out.splitlines()
    assert same.split()[0] == "same"
    assert different.split()[0] == "DIFFERENT"
    (data / "count.json").rename(data / "elsewhere.json")
    assert independent_scores.main(words) == 1
    assert capsys.readouterr().out.startswith("nothing to check")


def test_rule_follows_the_name_of_the_file():
    assert task_name(Path("somewhere/act_recog.json.gz")) == "act_recog"
    assert {name for name, rule in qa_command.RULES.items() if rule == "normalized"} == {
        "act_recog",
        "count",
        "obj_move",
    }
    assert {name for name, rule in qa_command.RULES.items() if rule == "calibrated"} == {
        "housework_qa",
        "neg_housework_qa",
        "act_infer",
    }


def test_accuracy_and_majority_by_hand():
    questions = [Question("q", ("a", "b", "c"), gold, "here") for gold in (0, 2, 2, 1, 2)]
    scores = [np.array(row) for row in ([1, 0, 0], [0, 0, 1], [3, 2, 1], [0, 1, 1], [5, 5, 5.0])]
    # Right: 0, 1 and 3 (a tie goes to the first).  The gold answer stands last in three of five.
    assert accuracy(questions, scores) == {"accuracy": 0.6, "n": 5, "majority": 0.6}


@pytest.fixture
def qa_file(tmp_path) -> Path:
    path = tmp_path / "count.json"
    rows = [{"input": text, "answer": answers[1], "answer_list": answers} for text, answers in QUESTIONS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("with_adapter", [False, True])
def test_qa_command_writes_predictions_and_wears_a_peft_adapter(
    tiny_llama, tiny, tiny_torch, peft_adapter, qa_file, tmp_path, with_adapter
):
    folder, adapted = peft_adapter
    adapter, theirs = (folder, adapted) if with_adapter else (None, tiny_torch)
    out = tmp_path / "made/predictions.jsonl"
    settings = QaSettings(model=str(tiny_llama), data=qa_file, adapter=adapter, predictions=out, samples=6)
    result = qa_command.run(settings)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    questions = read_questions(qa_file)[:6]
    assert [row["index"] for row in rows] == list(range(6))
    assert [row["gold"] for row in rows] == [question.gold for question in questions]
    for row, question in zip(rows, questions, strict=True):
        assert row.keys() == {"index", "scores", "choice", "gold"}
        expected = torch_scores(theirs, tiny.tokenizer, question, "normalized")
        np.testing.assert_allclose(row["scores"], expected, rtol=1e-4, atol=1e-5)
        assert row["choice"] == np.argmax(expected)
    correct = sum(row["choice"] == row["gold"] for row in rows)
    interval = bootstrap_interval([float(row["choice"] == row["gold"]) for row in rows])
    assert result == {
        "task": "count",
        "accuracy": correct / 6,
        "n": 6,
        "majority": 1.0,
        "intervals": {"accuracy": interval},
    }


def test_task_option_overrides_the_file_name(tiny_llama, qa_file, tmp_path):
    path = qa_file.rename(tmp_path / "mine.json")
    with pytest.raises(InputError, match=r"mine\.json: its name is that of no known task.*Give --task, one of"):
        qa_command.run(QaSettings(model=str(tiny_llama), data=path))
    assert (
        qa_command.run(QaSettings(model=str(tiny_llama), data=path, task="act_infer", samples=1))["task"] == "act_infer"
    )


# ----------------------------------------------------------------------------------------------------------- perplexity

DOCUMENTS = [
    "Mary walks to the kitchen. Mary grabs the apple and puts the apple on the table.",
    "The quick brown fox jumps over 13 lazy dogs, 27 cats and the fridge; where is the plate?",
    "x",  # predicts nothing
    "How many cafés are there? Zwölf.",
    "12",
]


def torch_nll(model: Any, tokenizer: Any, documents: list[str], limit: int) -> tuple[float, int]:
    rows = [ids_of(tokenizer, document)[:limit] for document in documents]
    values = [-independent_scores.log_probabilities(model, ids) for ids in rows if len(ids) > 1]
    return float(sum(value.sum() for value in values)), sum(map(len, values))


@pytest.mark.parametrize("limit", [800, 9])
def test_perplexity_equals_pytorch_document_by_document(tiny, tiny_torch, limit):
    total, tokens = torch_nll(tiny_torch, tiny.tokenizer, DOCUMENTS, limit)
    found = perplexity(tiny, DOCUMENTS, max_length=limit)
    nats = total / tokens
    assert found["tokens"] == tokens
    assert found["documents"] == 4
    assert found["nats"] == pytest.approx(nats, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats), rel=1e-4)
    assert found["perplexity_2_nats"] == pytest.approx(2**nats, rel=1e-4)
    size = 0
    for document in DOCUMENTS:
        ids = tiny.tokenizer(document, add_special_tokens=False)["input_ids"][:limit]
        predicted = len(tiny.tokenizer.decode(ids[1:]).encode()) if len(ids) > 1 else 0
        size += predicted
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_perplexity_does_not_depend_on_batch_size(tiny):
    results = [perplexity(tiny, DOCUMENTS, max_length=800, batch_size=size) for size in (1, 3, 8)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-6)


def test_longer_documents_than_max_length_predict_one_token_less_than_it(tiny):
    found = perplexity(tiny, [DOCUMENTS[0]] * 3, max_length=7)
    assert found["tokens"] == 3 * 6


@pytest.mark.parametrize("with_adapter", [False, True])
def test_perplexity_command_reads_files_and_wears_a_peft_adapter(
    tiny_llama, tiny, tiny_torch, peft_adapter, tmp_path, with_adapter
):
    folder, adapted = peft_adapter
    adapter, theirs = (folder, adapted) if with_adapter else (None, tiny_torch)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS[:3]))
    (tmp_path / "text.txt").write_text("\n\n".join(DOCUMENTS[:3]) + "\n")
    total, tokens = torch_nll(theirs, tiny.tokenizer, DOCUMENTS[:2], 800)
    for name in ("text.jsonl", "text.txt"):
        settings = PerplexitySettings(model=str(tiny_llama), data=str(tmp_path / name), adapter=adapter)
        found = perplexity_command.run(settings)
        assert found["tokens"] == tokens
        assert found["nats"] == pytest.approx(total / tokens, rel=1e-5)


def test_special_tokens_are_added_only_when_asked(tiny, tiny_torch, tiny_llama, tmp_path):
    """With a tokenizer that begins every text with <|begin|>, the first token of a document is predicted too."""
    import shutil

    shutil.copytree(tiny_llama, tmp_path / "m")
    path = tmp_path / "m/tokenizer.json"
    record = json.loads(path.read_text())
    record["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [0], "tokens": ["<|begin|>"]}},
    }
    path.write_text(json.dumps(record))
    begins = load_evaluated(str(tmp_path / "m"), None)
    text = DOCUMENTS[0]
    plain, with_begin = (perplexity(begins, [text], Prompting(flag), max_length=800) for flag in (False, True))
    assert plain["nats"] == pytest.approx(perplexity(tiny, [text], max_length=800)["nats"], rel=1e-6)
    ids = [0, *tiny.tokenizer(text, add_special_tokens=False)["input_ids"]]
    expected = -independent_scores.log_probabilities(tiny_torch, ids)
    assert with_begin["tokens"] == len(ids) - 1 == plain["tokens"] + 1
    assert with_begin["nats"] == pytest.approx(float(expected.mean()), rel=1e-5)
    # Every byte of the text is predicted now.
    assert with_begin["bits_per_byte"] == pytest.approx(float(expected.sum()) / math.log(2) / len(text), rel=1e-5)


def test_perplexity_on_pydoc_needs_no_file(tiny_llama):
    settings = PerplexitySettings(model=str(tiny_llama), data="pydoc:held-out", samples=2, max_length=32)
    assert perplexity_command.run(settings)["tokens"] == 2 * 31


def test_impossible_settings_are_refused(tiny_llama, tmp_path):
    with pytest.raises(InputError, match="--max-length 1: must be at least 2"):
        perplexity_command.run(PerplexitySettings(model=str(tiny_llama), data="pydoc:held-out", max_length=1))
    (tmp_path / "short.txt").write_text("x\n\ny")
    with pytest.raises(InputError, match="no document of two tokens or more"):
        perplexity_command.run(PerplexitySettings(model=str(tiny_llama), data=str(tmp_path / "short.txt")))
    for samples, batch_size in ((0, 8), (2, 0)):
        settings = PerplexitySettings(str(tiny_llama), "pydoc:held-out", samples=samples, batch_size=batch_size)
        with pytest.raises(InputError, match="0: must be at least 1"):
            perplexity_command.run(settings)
        with pytest.raises(InputError, match="0: must be at least 1"):
            qa_command.run(QaSettings(str(tiny_llama), tmp_path / "count.json", samples=samples, batch_size=batch_size))
