"""Predictions on disk: what an interruption leaves, and what may go on with it."""

import json
from pathlib import Path

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.predictions import Predictions, content_digest, partial_of, settings_of

SETTINGS = {"model": "abc", "beams": 4}


def record(index: int) -> dict[str, object]:
    return {"index": index, "prediction": f"kitchen\u2028 {index}"}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "made" / "count.jsonl"


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_they_grow_and_get_their_name_when_complete(path):
    predictions = Predictions(path, SETTINGS, 3)
    predictions.add([record(2)])
    assert read(partial_of(path)) == [record(2)]
    assert not path.exists()
    with pytest.raises(ValueError, match=r"2 predictions are missing, e\.g\. of example 0"):
        predictions.finish()
    predictions.add([record(1), record(0)])
    assert predictions.finish() == read(path) == [record(0), record(1), record(2)]
    assert sorted(file.name for file in path.parent.iterdir()) == ["count.jsonl", "count.jsonl.settings.json"]


@pytest.mark.parametrize("torn", ['{"index": 0, "predic', '{"index": 0}', '{"no": 1}\n', "[]\n", "\n"])
def test_a_torn_last_line_is_dropped(path, torn):
    Predictions(path, SETTINGS, 3).add([record(2), record(1)])
    with partial_of(path).open("a") as file:
        file.write(torn)
    again = Predictions(path, SETTINGS, 3, resume=True)
    assert again.missing() == [0]
    again.add([record(0), {"index": 1, "prediction": "made again"}])
    assert again.finish() == read(path) == [record(0), record(1), record(2)]  # what was there has stayed


def test_a_finished_file_is_left_alone(path):
    predictions = Predictions(path, SETTINGS, [5, 3])
    predictions.add([record(3), record(5)])
    predictions.finish()
    before = path.stat().st_mtime_ns, path.read_bytes()
    again = Predictions(path, SETTINGS, [5, 3], resume=True)
    assert again.missing() == []
    assert again.finish() == [record(3), record(5)]
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused(path, finished):
    predictions = Predictions(path, SETTINGS, 1)
    predictions.add([record(0)])
    if finished:
        predictions.finish()
    with pytest.raises(InputError, match=r"count\.jsonl: .*\(beams is 4 there, 1 here\); give another file, or remove"):
        Predictions(path, {**SETTINGS, "beams": 1}, 1, resume=True)
    settings_of(path).unlink()
    with pytest.raises(InputError, match=r"no count\.jsonl\.settings\.json says what it is of; remove it, or leave"):
        Predictions(path, SETTINGS, 1, resume=True)


def test_without_resume_they_begin_anew(path):
    Predictions(path, SETTINGS, 2).add([record(0)])
    assert Predictions(path, {"model": "other"}, 2).missing() == [0, 1]
    assert partial_of(path).read_text() == ""


def test_resume_of_nothing_begins(path):
    assert Predictions(path, SETTINGS, 2, resume=True).missing() == [0, 1]


def test_examples_that_are_not_asked_for_are_left_out(path):
    Predictions(path, SETTINGS, 9).add([record(7), record(1)])
    again = Predictions(path, SETTINGS, [1, 2], resume=True)
    assert again.missing() == [2]


def test_without_a_path_they_are_kept_in_memory(tmp_path):
    predictions = Predictions(None, SETTINGS, 2, resume=True)
    predictions.add([record(1), record(0)])
    assert predictions.finish() == [record(0), record(1)]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="is a directory; give a file"):
        Predictions(tmp_path, SETTINGS, 1)


def test_a_digest_tells_contents_apart():
    assert content_digest([[0, "a", ("b",)]]) == content_digest([[0, "a", ["b"]]]) != content_digest([[1, "a", ["b"]]])
