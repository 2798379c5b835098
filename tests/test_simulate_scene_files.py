"""Scenes of the user's own go where the experiences and tasks go, and errors say who asks for one."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.cli import main
from e2wm_jax.errors import InputError
from e2wm_jax.experience.collect.shards import load_trajectories
from e2wm_jax.storage.files import read_json, read_json_lines
from e2wm_jax.tasks.run import load_experiences
from e2wm_jax.worlds.household.homes import files as scene_files

KEYS = ("from_id", "relation_type", "to_id")
GOALS = {"light the room": "light || ON", "open up": "cupboard || OPEN", "carry a cup": "character || HOLDS_RH || cup"}


def flat() -> dict[str, Any]:
    """A bedroom with a lamp, a kitchen with a cupboard and a cup."""

    def node(number: int, name: str, properties: str = "", states: str = "", category: str = "Props") -> dict[str, Any]:
        lists = {"properties": properties.split(), "states": states.split()}
        return {"id": number, "class_name": name, "category": category, **lists}

    nodes = [
        node(1, "bedroom", category="Rooms"),
        node(2, "kitchen", category="Rooms"),
        node(3, "character", category="Characters"),
        node(10, "light", "HAS_SWITCH", "OFF"),
        node(20, "cupboard", "CAN_OPEN", "CLOSED"),
        node(30, "cup", "GRABBABLE MOVABLE"),
    ]
    edges = [dict(zip(KEYS, (one, "INSIDE", room), strict=True)) for one, room in ((3, 1), (10, 1), (20, 2), (30, 2))]
    return {"nodes": nodes, "edges": edges}


def run(*words: str | Path) -> int:
    return main([*map(str, words), "--json"])


def collected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Experiences towards three goals in a scene of one's own, all named as from within the folder."""
    folder.mkdir(parents=True)
    (folder / "flat.json.gz").write_bytes(gzip.compress(json.dumps(flat()).encode()))
    goals = [{"scene": "flat.json.gz", "task": task, "goal": [fact]} for task, fact in GOALS.items()]
    (folder / "goals.jsonl").write_text("".join(json.dumps(goal) + "\n" for goal in goals))
    monkeypatch.chdir(folder)
    search = ("--policy", "mcts", "--search", "best-first", "--simulations", 200, "--workers", 1)
    assert run("collect", "--out", "lived", "--goals", "goals.jsonl", *map(str, search)) == 0
    return folder


def last(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return found


def test_plans_are_carried_out_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = collected(tmp_path / "here", monkeypatch)
    assert run("tasks", "--experiences", "lived", "--out", "tasks", "--eval-share", "1") == 0
    (kept,) = (here / "tasks" / "scenes").iterdir()
    assert kept.read_bytes() == (here / "flat.json.gz").read_bytes()
    assert kept.name.startswith("flat-")
    assert kept.name.endswith(".json.gz")
    (also,) = (here / "lived" / "scenes").iterdir()
    assert also.name == kept.name
    there = tmp_path / "other machine"
    there.mkdir()
    shutil.move(here / "tasks", there / "renamed")
    shutil.rmtree(here)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for folder in (there / "renamed", Path("other machine/renamed")):
        data, records = folder / "eval/gen/plan_gen.json", tmp_path / "records.jsonl"
        assert run("eval", "plans", "--data", data, "--records", records) == 0
        result = last(capsys)
        assert result["n"] == len(GOALS)
        assert result["references"]["goals_complete"] == 1
        assert {Path(record["scene"]).name for _, record in read_json_lines(records)} == {kept.name}


def test_experiences_are_moved_and_collected_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A renamed folder, from outside: same tasks, same evaluation, and the collection is the same, not another one."""
    here = collected(tmp_path / "here", monkeypatch)
    assert run("tasks", "--experiences", "lived", "--out", "tasks", "--eval-share", "1") == 0
    there = tmp_path / "there"
    monkeypatch.chdir(tmp_path)
    here.rename(there)
    assert run("tasks", "--experiences", "there/lived", "--out", "there/tasks", "--eval-share", "1") == 0
    (there / "tasks/eval/gen/plan_gen.json.sources").unlink()
    data = there / "tasks/eval/gen/plan_gen.json"
    capsys.readouterr()
    assert run("eval", "plans", "--data", data, "--experiences", "there/lived") == 0
    assert last(capsys)["references"]["goals_complete"] == 1
    words = ("collect", "--out", "there/lived", "--policy", "mcts", "--search", "best-first", "--simulations", "200")
    assert run(*words, "--goals", "there/goals.jsonl", "--workers", "1") == 0
    assert last(capsys)["collected"] == 0
    settings = read_json(there / "lived/manifest.json")["settings"]
    assert settings["goals"] == "goals.jsonl"
    assert settings["scene"] == [f"scenes/{next((there / 'lived/scenes').iterdir()).name}"]


def test_a_changed_scene_is_another_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat.json").write_text(json.dumps(flat()))
    words = ("collect", "--policy", "random", "--episodes", "2", "--episode-length", "3", "--workers", "1")
    words = (*words, "--out", str(tmp_path / "lived"), "--scene", str(tmp_path / "flat.json"))
    assert run(*words) == 0
    scenes = {Path(found.scene) for found in load_trajectories([tmp_path / "lived"])}
    assert all(path.is_file() and path.parent == tmp_path / "lived/scenes" for path in scenes)
    (tmp_path / "flat.json").write_text(json.dumps(flat(), indent=1))
    capsys.readouterr()
    assert run(*words) == 2
    assert "lived: holds another run (scene is ['scenes/flat-" in capsys.readouterr().err


def test_sets_of_earlier_versions_name_who_asks_for_a_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = collected(tmp_path / "here", monkeypatch)
    assert run("tasks", "--experiences", "lived", "--out", "tasks", "--eval-share", "1") == 0
    path = here / "tasks/eval/gen/plan_gen.json.sources"
    records = [record for _, record in read_json_lines(path)]
    path.write_text("".join(json.dumps({**record, "scene": "flat.json.gz"}) + "\n" for record in records))
    assert run("eval", "plans", "--data", path.with_suffix("")) == 0  # where it was made
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert run("eval", "plans", "--data", path.with_suffix("")) == 2
    said = capsys.readouterr().err
    assert f"error: {path}:1: scene {tmp_path}/flat.json.gz: no such file; " in said
    assert said.endswith("; give --scenes FOLDER if it has moved\n")
    assert run("eval", "plans", "--data", path.with_suffix(""), "--scenes", here) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dialect": "vh1"}, "dialect 'vh1': unknown"),
        ({"goal": ["a || b || c || d"]}, "'a || b || c || d' is no fact"),
        ({"goal": [3]}, "3 is no fact"),
        ({"scene": "procedural:x"}, "procedural:x: the seed of a household must be a number"),
        ({"scene": "a" * 5000}, "File name too long"),
        ({"things": [float("inf")]}, "not the source of an example"),
    ],
)
def test_what_is_wrong_with_a_source_is_said_with_its_line(
    change: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"trajectory": "t", "scene": "procedural:1", "dialect": "vh23", "goal": ["light || ON"], "things": []}
    example = json.dumps({"input": "Q: How to light up? A:", "ref": "Walk to light. Switch on light."}) + "\n"
    (tmp_path / "plan_gen.json").write_text(example * 2)
    sources = tmp_path / "plan_gen.json.sources"
    sources.write_text("".join(json.dumps(record) + "\n" for record in (good, {**good, **change})))
    assert run("eval", "plans", "--data", tmp_path / "plan_gen.json") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"error: {sources}:2: ")
    assert says in said


def test_tasks_of_scenes_that_are_gone_are_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = collected(tmp_path / "here", monkeypatch)
    shutil.rmtree(here / "lived/scenes")
    capsys.readouterr()
    assert run("tasks", "--experiences", "lived", "--out", "tasks", "--eval-share", "1") == 0
    (note,) = [note for note in last(capsys)["notes"] if note.startswith("scenes/")]
    assert "--scenes" in note


def test_episodes_of_several_collections_have_ids_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (collected(tmp_path / name, monkeypatch) / "lived" for name in ("one", "two"))
    other = shutil.copytree(one, tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    ids = [found.id for found in load_experiences([one, other])]
    assert ids[:3] == ["lived/mcts-0-000000", "lived/mcts-0-000001", "lived/mcts-0-000002"]
    assert ids[3:] == ["other/mcts-0-000000", "other/mcts-0-000001", "other/mcts-0-000002"]
    assert {found.id.partition("/")[0] for found in load_experiences([one, two])} == {"lived-1", "lived-2"}
    assert [found.id for found in load_experiences([one])] == [f"mcts-0-00000{number}" for number in range(3)]
    capsys.readouterr()
    assert run("tasks", "--experiences", one, tmp_path / "one" / ".." / "one" / "lived", "--out", "tasks") == 2
    assert f"--experiences {one}: given twice; name each directory once" in capsys.readouterr().err


def test_names_of_scenes() -> None:
    for name in ("robothow:file1_2", "procedural", "procedural:7", "procedural:7+robothow:file1_2"):
        assert scene_files.path_of(name) is None
        assert scene_files.located(name, Path("there")) == name
    prepared = "a b/flat.json+robothow:file1_2"
    assert scene_files.path_of(prepared) == Path("a b/flat.json")
    assert scene_files.renamed(prepared, {Path("a b/flat.json"): "scenes/x.json"}, "../") == (
        "../scenes/x.json+robothow:file1_2"
    )
    assert scene_files.kept_names(["\0", "a" * 9999, "nowhere.json"]) == {}


def test_a_goal_of_a_scene_that_is_not_there_names_its_line(tmp_path: Path) -> None:
    from e2wm_jax.worlds.household.goals import read_goals

    path = tmp_path / "goals.jsonl"
    path.write_text(json.dumps({"scene": "gone.json", "task": "t", "goal": ["light || ON"]}))
    with pytest.raises(InputError, match=r"goals\.jsonl:1: gone\.json: no such file"):
        read_goals(path)
