"""`e2wm eval all`: what it finds, what it writes, how it goes on, and that devices change nothing."""

import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from e2wm_jax.cli import main
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate import perplexity, suite
from e2wm_jax.evaluate.benchmarks import babi
from e2wm_jax.evaluate.model import load_evaluated
from e2wm_jax.evaluate.questions import answer_scores, qa
from e2wm_jax.evaluate.sets import babi_tasks, find_sets, sample
from e2wm_jax.evaluate.suite import SuiteOptions, SuiteSettings, averages, evaluate_sets
from e2wm_jax.evaluate.texts import continuations, generation
from e2wm_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUESTIONS = [
    ("Mary walks to the kitchen. Where is Mary?\nAnswer:", ["kitchen", "bedroom", "the table"], "bedroom"),
    ("How many apples are there?\nAnswer:", ["1", "13", "27"], "13"),
    ("Mary grabs the plate. Where is the plate?\nAnswer:", ["kitchen", "the fridge"], "kitchen"),
    ("The quick brown fox\nAnswer:", ["jumps", "sleeps", "wait"], "jumps"),
    ("How many cats are there?\nAnswer:", ["1", "2", "27"], "27"),
]
# At most 16 characters, hence tokens, and at least two prompts of a set: the beam search is compiled once.
PLANS = [
    ("Q: coffee?\nA:", "Walk to the kitchen. Grab the coffee."),
    ("Q: sleep?\nA:", "Walk to the bedroom. Lie on the bed."),
    ("Q: rest?\nA:", "Walk to the bed."),
    ("Q: eat?\nA:", "Walk to the kitchen. Grab the apple."),
]
PATHS = [("When?\nAnswer:", "kitchen, bedroom"), ("Where?\nAnswer:", "kitchen, bedroom")]
TEXTS = ["Mary walks to the kitchen.", "The quick brown fox jumps over 13 lazy dogs.", "How many cafés are there?"]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    write(
        folder / "qa/obj_move.json", [dict(zip(("input", "answer_list", "answer"), q, strict=True)) for q in QUESTIONS]
    )
    plans = [{"input": text, "ref": ref} for text, ref in PLANS]
    write(folder / "gen/plan_gen.json", plans)
    write(folder / "gen/plan_gen_unseen.json", plans[1:3])
    write(folder / "gen/obj_move_path.json", [{"input": text, "ref": ref} for text, ref in PATHS])
    (folder / "news.txt").write_text("\n\n".join(TEXTS))
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_llama):
    return load_evaluated(str(tiny_llama))


OPTIONS = SuiteOptions(batch_size=2, beams=2, max_new_tokens=8, max_length=32)


@pytest.fixture(scope="module")
def reference(tiny, data, tmp_path_factory) -> tuple[dict[str, Any], Path]:
    """All sets, without interruption, on one device."""
    out = tmp_path_factory.mktemp("whole")
    return evaluate_sets(tiny, find_sets(data), OPTIONS, out), out / suite.PREDICTIONS


# ----------------------------------------------------------------------------------------------------------------- sets


def test_sets_are_found_by_name(data, tmp_path):
    assert [one.name for one in find_sets(data)] == ["obj_move", "obj_move_path", "plan_gen", "plan_gen_unseen", "news"]
    assert [one.kind for one in find_sets(data)] == ["qa", *["generate"] * 3, "perplexity"]
    assert find_sets("pydoc:held-out") == (("pydoc", "perplexity", Path("pydoc:held-out")),)
    for name in ("train_count.json", "README.txt", "LICENSE.txt", "report.html", "babi/en/LICENSE.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"nothing to evaluate on; files are found by name: act_recog, .*plan_gen"):
        find_sets(tmp_path)
    for task in (3, 12):
        (tmp_path / f"babi/en/qa{task}_name_test.txt").write_text("1 Mary went.\n2 Where is Mary? \thall\t1\n")
    (found,) = find_sets(tmp_path)
    assert found == ("babi", "babi", tmp_path / "babi/en")
    assert babi_tasks(found.path) == (3, 12)
    with tarfile.open(tmp_path / "both.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "babi", "babi")
    assert find_sets(tmp_path / "both.tar.gz") == (("babi", "babi", tmp_path / "both.tar.gz"),)
    with pytest.raises(InputError, match=r"both\.tar\.gz: a set 'babi' is also in"):
        find_sets(tmp_path)
    (tmp_path / "x.tar.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"x\.tar\.gz: not a readable tar archive"):
        find_sets(tmp_path / "x.tar.gz")
    with pytest.raises(InputError, match="no such file or folder"):
        find_sets(tmp_path / "missing")


def test_all_official_sets_and_corpora_are_found(shared_data):
    found = find_sets(shared_data)
    assert [one.kind for one in found] == ["qa"] * 6 + ["generate"] * 5 + ["babi"] + ["perplexity"] * 3
    assert babi_tasks(found[11].path) == tuple(range(1, 21))


def test_a_sample_depends_on_seed_and_name_alone():
    assert sample("count", 5, None, 0) == sample("count", 5, 9, 0) == [0, 1, 2, 3, 4]
    drawn = sample("count", 100, 10, 0)
    assert drawn == sample("count", 100, 10, 0) == sorted(set(drawn))
    assert len(drawn) == 10
    assert len({tuple(sample(name, 100, 10, seed)) for name in ("count", "obj_move") for seed in (0, 1)}) == 4


# --------------------------------------------------------------------------------------------------------------- scores


def test_scores_are_those_of_the_single_commands(tiny_llama, data, reference, tmp_path):
    results, predictions = reference
    model = str(tiny_llama)
    common = {"batch_size": 2, "predictions": tmp_path / "single.jsonl"}
    single = {
        "obj_move": lambda: qa.run(qa.QaSettings(model, data / "qa/obj_move.json", **common)),
        "news": lambda: perplexity.run(
            perplexity.PerplexitySettings(model, str(data / "news.txt"), max_length=32, **common)
        ),
    }
    for name in ("plan_gen", "plan_gen_unseen", "obj_move_path"):
        settings = generation.GenerationSettings(model, data / f"gen/{name}.json", beams=2, max_new_tokens=8, **common)
        single[name] = lambda settings=settings: generation.run(settings)
    assert results.keys() == single.keys()
    for name, command in single.items():
        expected = command()
        expected.pop("task", None)
        assert {key: results[name][key] for key in expected} == expected
        assert (predictions / f"{name}.jsonl").read_bytes() == (tmp_path / "single.jsonl").read_bytes()


def test_results_hold_baselines_intervals_defects_and_cleaned_scores(reference):
    results, predictions = reference
    plans, paths = results["plan_gen"], results["obj_move_path"]
    rows = [json.loads(line) for line in (predictions / "plan_gen.jsonl").read_text().splitlines()]
    scores = generation.example_scores("plan_gen", rows)["rougeL"]
    assert plans["rougeL"] == pytest.approx(np.mean(scores))
    assert plans["clean"].items() >= {"n": 2, "without": ["in plan_gen_unseen"]}.items()
    assert plans["clean"]["rougeL"] == pytest.approx((scores[0] + scores[3]) / 2)
    assert plans["parts"]["in plan_gen_unseen"]["with"]["rougeL"] == pytest.approx(results["plan_gen_unseen"]["rougeL"])
    assert plans["defects"] == ["2 of 4 examples are also in plan_gen_unseen, which is all of it"]
    assert "majority" not in plans  # every reference once
    assert paths["majority"] == 1.0  # the same reference twice
    for name, result in results.items():
        for metric, (low, high) in result["intervals"].items():
            assert low <= result[metric] <= high, name
    rows = [json.loads(line) for line in (predictions / "news.jsonl").read_text().splitlines()]
    assert [row.keys() for row in rows] == [{"index", "nats", "tokens", "bytes"}] * 3
    assert results["news"]["nats"] == pytest.approx(
        sum(row["nats"] for row in rows) / sum(row["tokens"] for row in rows)
    )
    assert averages(results) == {
        "qa accuracy": results["obj_move"]["accuracy"],
        "rougeL": pytest.approx((plans["rougeL"] + results["plan_gen_unseen"]["rougeL"]) / 2),
    }


def test_babi_is_one_of_the_sets(tiny, tmp_path):
    story = "1 Mary went to the hall.\n2 Where is Mary? \thall\t1\n"
    for split in ("train", "test"):
        (tmp_path / f"qa7_x_{split}.txt").write_text(2 * story)
    options = SuiteOptions(samples=1, batch_size=1)
    (found,) = evaluate_sets(tiny, find_sets(tmp_path), options, tmp_path / "out").values()
    expected = babi.evaluate(tiny, tmp_path, (7,), babi.BabiOptions(samples=1, batch_size=1))
    assert found == {"kind": "babi", **expected}
    assert found["n"] == {"7": 1}
    assert (tmp_path / "out/predictions/babi.jsonl").is_file()


def test_the_command_prints_one_table_and_writes_results(tiny_llama, data, tmp_path, capsys):
    words = ["eval", "all", "--model", str(tiny_llama), "--data", str(data), "--sets", "qa", "perplexity"]
    assert main([*words, "--samples", "2", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"obj_move.*accuracy.*\d\.\d{3}.*\d\.\d{3}-\d\.\d{3}", printed)
    assert re.search(r"news.*nats", printed)
    record = json.loads((tmp_path / "out/results.json").read_text())
    assert record["version"] == 1
    assert record["sets"].keys() == {"obj_move", "news"}
    assert record["settings"]["samples"] == 2
    rows = (tmp_path / "out/predictions/obj_move.jsonl").read_text().splitlines()
    assert [json.loads(row)["index"] for row in rows] == sample("obj_move", 5, 2, 0)
    assert main([*words, "--samples", "2", "--out", str(tmp_path / "out")]) == 2
    assert "not empty; give a new directory, or --resume" in capsys.readouterr().err
    assert main([*words, "--samples", "2", "--out", str(tmp_path / "out"), "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == record
    assert main([*words, "--samples", "3", "--out", str(tmp_path / "out"), "--resume"]) == 2
    assert re.search(r"obj_move\.jsonl: predictions of something else \(data is", capsys.readouterr().err)


class Killed(Exception):
    """What stops a run in the middle."""


@pytest.mark.parametrize("calls", [1, 3])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tiny, data, reference, tmp_path, monkeypatch, calls):
    results, predictions = reference
    count = {"left": 0, "stops": 0}

    def stopping(function: Any) -> Any:
        def called(*args: Any, **options: Any) -> Any:
            count["left"] -= 1
            if count["left"] < 0:
                raise Killed
            return function(*args, **options)

        return called

    with monkeypatch.context() as patch:
        for module, name in ((answer_scores, "row_nll"), (perplexity, "row_nll"), (continuations, "generate")):
            patch.setattr(module, name, stopping(getattr(module, name)))
        for _ in range(20):
            count["left"] = calls
            try:
                found = evaluate_sets(tiny, find_sets(data), replace(OPTIONS, resume=True), tmp_path)
                break
            except Killed:
                count["stops"] += 1
    assert count["stops"] > 1
    assert found == results
    for path in predictions.iterdir():
        assert (tmp_path / "predictions" / path.name).read_bytes() == path.read_bytes()


# ------------------------------------------------------------------------------------------------------------- refusals


def test_bad_files_are_refused_before_a_model_is_loaded(data, tmp_path, monkeypatch):
    def loaded(*args: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(suite, "load_evaluated", loaded)
    monkeypatch.setattr(suite, "open_evaluated", loaded)
    write(tmp_path / "bad/count.json", [{"input": "x", "answer": "3", "answer_list": ["1", "2"]}])
    common = {"model": "smollm2-135m", "data": (str(data),)}
    for settings, message in (
        (SuiteSettings(**{**common, "data": (str(data), str(tmp_path))}), r"count\.json:1: the answer '3' is not in"),
        (SuiteSettings(**common, train=(tmp_path / "no.json",)), r"no\.json: no such file"),
        (SuiteSettings(**common, sets=("counting",)), "--sets counting: no such set; found: obj_move"),
        (SuiteSettings(**common, sets=("babi",)), "--sets babi: none of them is in --data"),
        (SuiteSettings(**common, samples=0), "--samples 0: must be at least 1"),
        (SuiteSettings(**common, beams=0), "--beams 0: must be at least 1"),
        (SuiteSettings(**common, out=data / "news.txt"), "is a file; give a directory"),
    ):
        with pytest.raises(InputError, match=message):
            suite.run(settings)


def test_long_examples_are_refused_before_any_is_evaluated(tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(answer_scores, "row_nll", lambda *args: pytest.fail("evaluated"))
    with pytest.raises(
        InputError,
        match=r"_path\.json:1: \d+ tokens and --max-new-tokens 505: 5\d\d tokens, the model has 512 ",
    ):
        evaluate_sets(tiny, find_sets(data), SuiteOptions(max_new_tokens=505))
    write(tmp_path / "count.json", [{"input": "Mary " * 600, "answer": "1", "answer_list": ["1", "2"]}])
    with pytest.raises(InputError, match=r"count\.json:1: \d+ tokens, the model has 512 .*--too-long truncate"):
        evaluate_sets(tiny, find_sets(tmp_path / "count.json"))
    (tmp_path / "long.txt").write_text("Mary " * 600)
    with pytest.raises(InputError, match=r"long\.txt: document 1: 8\d\d tokens, the model has 512 .*lower --max"):
        evaluate_sets(tiny, find_sets(tmp_path / "long.txt"), SuiteOptions(max_length=850))
    write(tmp_path / "plan_gen.json", [{"input": "", "ref": "x"}])
    with pytest.raises(InputError, match=r"plan_gen\.json:1: 'input' has no tokens"):
        evaluate_sets(tiny, find_sets(tmp_path / "plan_gen.json"))


# -------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("mesh", ["data=8", "data=2,fsdp=2,tensor=2"])
def test_scores_on_eight_devices_are_those_on_one(tiny_llama, data, reference, tmp_path, mesh):
    assert jax.device_count() == 8
    results, predictions = reference
    spread = load_evaluated(str(tiny_llama), mesh=make_mesh(mesh))
    found = evaluate_sets(spread, find_sets(data), OPTIONS, tmp_path)
    assert spread.params["layers"]["q"]["weight"].sharding.is_fully_replicated == (mesh == "data=8")
    for name, result in found.items():
        flat = {key: value for key, value in result.items() if isinstance(value, float | int)}
        assert flat == pytest.approx({key: results[name][key] for key in flat}, rel=1e-5), name
    for name in ("plan_gen", "obj_move_path"):  # the same words
        assert (tmp_path / f"predictions/{name}.jsonl").read_bytes() == (predictions / f"{name}.jsonl").read_bytes()
    for ours, theirs in zip(
        *((folder / "obj_move.jsonl").read_text().splitlines() for folder in (tmp_path / "predictions", predictions)),
        strict=True,
    ):
        np.testing.assert_allclose(json.loads(ours)["scores"], json.loads(theirs)["scores"], rtol=1e-5, atol=1e-5)


def test_a_mesh_that_does_not_fit_is_refused(tiny_llama, data):
    with pytest.raises(InputError, match="3 devices, but there are 8"):
        suite.run(SuiteSettings(model=str(tiny_llama), data=(str(data),), mesh="data=3"))
