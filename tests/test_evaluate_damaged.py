"""Predictions, results and questions of another form than they should have: one line, or made again."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2wm_jax.data.source import read_questions, read_task
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate import perplexity
from e2wm_jax.evaluate.benchmarks import babi
from e2wm_jax.evaluate.page.evaluations import read_evaluation
from e2wm_jax.evaluate.page.run import sections
from e2wm_jax.evaluate.plans.run import read_predictions
from e2wm_jax.evaluate.predictions import Predictions, partial_of
from e2wm_jax.evaluate.questions import qa
from e2wm_jax.evaluate.results import read_results
from e2wm_jax.evaluate.texts import generation

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["qa", "babi"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
QUICK = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RESULTS = {
    "version": 1,
    "model": "m",
    "adapter": [],
    "settings": {"data": ["nowhere"]},
    "sets": {
        "obj_move": {
            "kind": "qa",
            "accuracy": 0.5,
            "n": 2,
            "majority": 0.5,
            "intervals": {"accuracy": [0.1, 0.9]},
            "clean": {"accuracy": 0.5, "n": 1, "without": ["ambiguous"]},
            "defects": ["odd"],
        },
        "plan_gen": {"kind": "generate", "rouge1": 0.1, "rougeL": 0.2, "n": 2, "intervals": {"rougeL": [0.1, 0.3]}},
        "babi": {
            "kind": "babi",
            "accuracy": {"1": 0.5},
            "mean": 0.5,
            "n": {"1": 2},
            "majority": {"1": 0.5},
            "intervals": {"1": [0.0, 1.0]},
        },
        "news": {
            "kind": "perplexity",
            "nats": 800.0,
            "perplexity": None,
            "n": 1,
            "intervals": {"perplexity": [2.0, None]},
        },
    },
}
RECORDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "obj_move": (qa, {"scores": [-1.0, -2.0], "choice": 0, "gold": 1}),
    "plan_gen": (generation, {"prediction": "Walk.", "reference": "Sit."}),
    "babi": (babi, {"task": 1, "prediction": "hall", "answer": "hall", "correct": True}),
    "news": (perplexity, {"nats": 3.0, "tokens": 2, "bytes": 5}),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@st.composite
def damaged(draw: st.DrawFn, whole: Any) -> Any:
    """The value with another one somewhere inside, or without that key."""
    found = copy.deepcopy(whole)
    path = draw(st.sampled_from(places(whole)[1:]))
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    if isinstance(holder, dict) and draw(st.booleans()):
        del holder[path[-1]]
    else:
        holder[path[-1]] = draw(VALUES)
    return found


@contextmanager
def one_line(names: str = "") -> Iterator[None]:
    """Nothing goes wrong, or it is said in one line that names something."""
    try:
        yield
    except InputError as error:
        if "\n" in str(error) or names not in str(error):
            raise AssertionError(str(error)) from error


def text_of(value: Any) -> str:
    return json.dumps(value)


@QUICK
@given(record=damaged(RESULTS))
def test_damaged_results_are_one_line_or_a_page(record: Any, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text_of(record))
    with one_line():
        first = read_evaluation(tmp_path, "after")
        sections([read_evaluation(tmp_path, "before"), first], 2)


@QUICK
@given(data=st.data())
def test_damaged_predictions_are_one_line_or_a_page(data: Any, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(sorted(RECORDS)))
    rows = [{"index": 0, **RECORDS[name][1]}, data.draw(damaged({"index": 1, **RECORDS[name][1]}))]
    (tmp_path / "predictions").mkdir(exist_ok=True)
    for old in (tmp_path / "predictions").iterdir():
        old.unlink()
    (tmp_path / f"predictions/{name}.jsonl").write_text("".join(text_of(row) + "\n" for row in rows))
    (tmp_path / "results.json").write_text(text_of(RESULTS))
    with one_line():
        sections([read_evaluation(tmp_path, label) for label in ("before", "after")], 2)


@QUICK
@given(data=st.data())
def test_damaged_lines_are_made_again(data: Any, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(sorted(RECORDS)))
    module, whole = RECORDS[name]
    path = tmp_path / "p.jsonl"
    path.unlink(missing_ok=True)
    Predictions(path, {}, 3).add([{"index": 0, **whole}])
    torn = data.draw(damaged({"index": 1, **whole}))
    with partial_of(path).open("a") as file:
        file.write(text_of(torn) + "\n" + '{"index": 2')
    found = Predictions(path, {}, 3, resume=True, is_record=module._is_record)
    found.add([{"index": index, **whole} for index in found.missing()])
    records = found.finish()
    assert [record["index"] for record in records] == [0, 1, 2]
    if module in (qa, perplexity):
        module.summary(records)
        module.intervals(records)
    if module is generation:
        generation.summary(generation.example_scores("plan_gen", records))


@QUICK
@given(row=damaged({"input": "Where?", "answer": "a", "answer_list": ["a", "b"]}))
def test_damaged_questions_are_one_line(row: Any, tmp_path: Path) -> None:
    (tmp_path / "count.json").write_text(text_of(row) + "\n")
    for read in (read_questions, read_task):
        with one_line():
            read(tmp_path / "count.json")


@QUICK
@given(row=damaged({"index": 0, "prediction": "Walk.", "reference": "Sit."}))
def test_damaged_predictions_of_plans_are_one_line(row: Any, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text('{"input": "How?", "ref": "Sit."}\n')
    (tmp_path / "p.jsonl").write_text(text_of(row) + "\n")
    with one_line("p.jsonl:1: "):
        read_predictions(tmp_path / "p.jsonl", read_task(tmp_path / "task.json"))


def test_what_is_wrong_with_results_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text_of(RESULTS))
    assert read_results(path)["sets"].keys() == RESULTS["sets"].keys()
    for keys, value, message in (
        (("sets",), [], "no results by set"),
        (("settings", "data"), 3, "'data' is no list of names"),
        (("sets", "news", "kind"), "music", "set news: no result of a kind that is known"),
        (("sets", "news", "nats"), "many", "set news: no score"),
        (("sets", "babi", "n"), {"1": "two"}, "set babi: 'n' is not of the form"),
    ):
        record = copy.deepcopy(RESULTS)
        holder: Any = record
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = value
        path.write_text(text_of(record))
        with pytest.raises(InputError, match=rf"results\.json: (settings: )?{message}"):
            read_results(path)


def test_pages_mark_right_and_wrong_and_say_why_steps_failed(tmp_path: Path) -> None:
    question = {"input": "Where is Mary?", "answer": "hall", "answer_list": ["bed", "hall"]}
    (tmp_path / "obj_move.json").write_text(text_of(question) + "\n")
    (tmp_path / "predictions").mkdir()
    record = {"index": 0, "scores": [-1.0, -2.0], "choice": 0, "gold": 1}
    (tmp_path / "predictions/obj_move.jsonl").write_text(text_of(record) + "\n")
    results = copy.deepcopy(RESULTS)
    results["settings"]["data"] = [str(tmp_path / "obj_move.json")]
    (tmp_path / "results.json").write_text(text_of(results))
    page = "".join(part for one in sections([read_evaluation(tmp_path, "tuned")], 3) for part in one.blocks)
    assert "Where is Mary?" in page
    assert "bed  ✗ wrong" in page
    (tmp_path / "predictions/obj_move.jsonl").write_text(text_of({**record, "choice": 1}) + "\n")
    page = "".join(part for one in sections([read_evaluation(tmp_path, "tuned")], 3) for part in one.blocks)
    assert "hall  ✓ right" in page
    steps = [
        {"sentence": "Walk to hall.", "action": "[Walk] <hall> (1)", "trouble": None, "message": ""},
        {"sentence": "Grab cup.", "action": None, "trouble": "no such object", "message": "there is no cup"},
    ]
    plan = {"index": 0, "goal": ["a", "b"], "prediction": {"steps": steps, "reached": ["a"]}}
    (tmp_path / "plans.jsonl").write_text(text_of(plan) + "\n")
    page = "".join(
        part for one in sections([read_evaluation(tmp_path / "plans.jsonl", "tuned")], 3) for part in one.blocks
    )
    assert "✓ Walk to hall.\n✗ Grab cup. (no such object: there is no cup)\ngoal facts reached: 1 of 2" in page
