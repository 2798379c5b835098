"""`e2wm replay` says in words what happened, compares what `collect` wrote with the world, and lists what there is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.cli import main
from e2wm_jax.storage.files import read_json_lines
from e2wm_jax.worlds.household.graph import Scene
from e2wm_jax.worlds.household.homes import robothow, scenes


def written(scene: Scene, path: Path) -> Path:
    """A scene as a graph of VirtualHome."""
    nodes = [
        {
            "id": node.id,
            "class_name": node.class_name,
            "category": node.category,
            "properties": sorted(node.properties),
            "states": sorted(node.states),
        }
        for node in scene.nodes.values()
    ]
    edges = [{"from_id": a, "relation_type": relation, "to_id": b} for a, relation, b in scene.edges]
    path.write_text(json.dumps({"nodes": nodes, "edges": edges}))
    return path


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home of one's own and what was lived there: stories of three people, and a plan."""
    folder = tmp_path_factory.mktemp("lived")
    home = written(scenes.household(5), folder / "home.json")
    random = ("--policy", "random", "--episodes", "3", "--workers", "1", "--scene", str(home))
    assert main(["collect", *random, "--style", "track", "--out", str(folder / "track")]) == 0
    assert main(["collect", *random, "--dialect", "e2wm", "--out", str(folder / "carry")]) == 0
    goal = {"scene": "home.json", "task": "light up", "goal": ["light || ON"]}
    (folder / "goals.jsonl").write_text(json.dumps(goal))
    plan = ("--policy", "mcts", "--search", "best-first", "--simulations", "50", "--workers", "1")
    assert main(["collect", *plan, "--goals", str(folder / "goals.jsonl"), "--out", str(folder / "plans")]) == 0
    return folder


def replay(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["replay", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out.strip().splitlines()[-1]) if code != 2 else {}


@pytest.mark.parametrize("name", ["track", "carry", "plans"])
def test_what_collect_wrote_goes_as_it_went(lived: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    records = [record for _, record in read_json_lines(lived / name / "shard-00000.jsonl")]
    steps = sum(len(record["steps"]) for record in records)
    assert steps
    for what in (lived / name, lived / name / "shard-00000.jsonl"):
        code, result = replay(capsys, "--trajectories", what)
        assert (code, result) == (0, {"trajectories": len(records), "steps": steps, "differences": []})
    out = lived / f"{name}-again.jsonl"
    assert replay(capsys, "--trajectories", lived / name, "--out", out)[0] == 0
    assert [record for _, record in read_json_lines(out)] == records


def test_what_went_otherwise_is_said(lived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(lived / "track" / "scenes", tmp_path / "scenes")
    records = [record for _, record in read_json_lines(lived / "track" / "shard-00000.jsonl")]
    first, second = records[0]["steps"][:2]
    first["ok"] = 0
    second["e+"] = [[1, "ON", 2]]
    path = tmp_path / "shard-00000.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    code, result = replay(capsys, "--trajectories", path)
    assert code == 1
    assert result["differences"][0] == f"{path}:1: step 1 {first['a']}: failed there, works here"
    assert result["differences"][1].startswith(f"{path}:1: step 2 {second['a']}: e+ [[1, 'ON', 2]] there, ")
    assert len(result["differences"]) == 2
    assert main(["replay", "--trajectories", str(path)]) == 1
    assert capsys.readouterr().out.endswith("2 differences\n")


def test_nothing_to_replay_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    assert main(["replay", "--trajectories", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl: no trajectories in it; collect some" in capsys.readouterr().err


def test_scenes_of_trajectories_that_are_gone_are_named(
    lived: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copy(lived / "carry" / "shard-00000.jsonl", tmp_path))
    assert main(["replay", "--trajectories", str(path)]) == 2
    assert f"error: {path}:1: scene scenes/home-" in capsys.readouterr().err
    assert replay(capsys, "--trajectories", path, "--scenes", lived / "carry" / "scenes")[0] == 0


CRASH = "VirtualHome 2.3 itself crashes here (TypeError), which dialect vh23 keeps; it works with --dialect e2wm"


def test_steps_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = scenes.household(5)
    home = written(scene, tmp_path / "home.json")
    far = next(node for node in scene.nodes.values() if node.class_name == "table" or "SURFACES" in node.properties)
    wall, *_ = scene.by_class["wall"]
    cups = scene.by_class["cup"]
    script = tmp_path / "script.txt"
    lines = (
        f"[Find] <{far.class_name}> ({far.id})",
        f"[Walk] <cup> ({wall.id})",
        "[Walk] <unicorn> (424242)",
        f"[Walk] <{far.class_name}> ({far.id})",
        f"[TurnTo] <{far.class_name}> ({far.id})",
        f"[TurnTo] <{far.class_name}> ({far.id})",
    )
    script.write_text("\n".join(lines))
    code, result = replay(capsys, "--script", script, "--scene", home)
    assert code == 1
    assert [step["ok"] for step in result["steps"]] == [0, 1, 0, 1, 1, 1]
    said = [step.get("note", "") for step in result["steps"]]
    assert said[0] == CRASH
    assert said[1].startswith(f"{wall.id} is a wall, and only the number counts (cup: {cups[0].id}")
    assert said[2] == "no node 424242 in the scene (there is no unicorn)"
    assert said[3:] == ["", "", ""]
    assert main(["replay", "--script", str(script), "--scene", str(home)]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"FAIL  {lines[0]}  {CRASH}"
    assert shown[5] == f"ok    {lines[5]}  nothing changed"
    assert shown[6] == "4 of 6 steps succeeded"
    script.write_text(lines[3])
    assert replay(capsys, "--script", script, "--scene", home)[0] == 0


def test_what_a_scene_holds_and_which_programs_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    scene = scenes.household(5)
    _, result = replay(capsys, "--scene", "procedural:5")
    found = {**result["rooms"], **result["classes"]}
    assert found == {name: [node.id for node in nodes] for name, nodes in scene.by_class.items()}
    assert set(result["rooms"]) == {node.class_name for node in scene.nodes.values() if node.is_room}
    if robothow.has_robothow():
        assert replay(capsys, "--scene", "robothow")[1]["programs"]["file1003_2"] == "Write an email"
        assert main(["replay", "--scene", "robothow"]) == 0
        assert "robothow:file1003_2  Write an email" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--script", "s", "--scene", "x.json", "--out", "o"), "--out goes with --trajectories"),
        (("--script", "s"), "give --script FILE with --scene"),
        (("--trajectories", "t", "--script", "s"), "--trajectories goes without --script"),
        (("--trajectories", "."), "no experiences (no manifest.json)"),
        (("--dialect", "vh1", "--scene", "procedural:1"), "dialect 'vh1': unknown"),
    ],
)
def test_options_that_do_not_go_together(
    words: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["replay", *words]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_reference_trajectories_without_steps_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(scenes.household(5), tmp_path / "TrimmedTestScene9_graph.json")
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"id": "a", "init": "scene:9", "steps": [{"a": "[StandUp]"}]}))
    assert main(["replay", "--trajectories", str(path), "--scenes", str(tmp_path)]) == 2
    assert f'{path}:1: step 1 has no "ok", so there is nothing to compare; give --out FILE' in capsys.readouterr().err
    out = tmp_path / "out.jsonl"
    assert replay(capsys, "--trajectories", path, "--scenes", tmp_path, "--out", out) == (
        0,
        {"trajectories": 1, "steps": 1},
    )
    code, result = replay(capsys, "--trajectories", out, "--scenes", tmp_path)
    assert (code, result["differences"]) == (0, [])
