"""Exploration and collection: seeded, resumable, the same bytes however they came about."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.experience.collect import command as collect_command
from e2wm_jax.experience.collect import jobs, shards
from e2wm_jax.experience.collect.command import CollectSettings, collect
from e2wm_jax.experience.collect.shards import load_trajectories
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.goals import robothow_order
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.homes.scenes import load
from e2wm_jax.worlds.household.oracle import virtualhome
from e2wm_jax.worlds.household.oracle.virtualhome import VirtualHome
from e2wm_jax.worlds.household.world import replay

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (virtualhome.is_installed() and scenes.has_robothow()),
    reason="virtualhome and virtualhome-eval are not installed: run make setup",
)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_SIZE", 4)


def settings(out: Path, **changes) -> CollectSettings:
    small = CollectSettings(out=out, policy="random", episodes=6, episode_length=8, workers=1, seed=3)
    return replace(small, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_collect_random(tmp_path):
    result = collect(settings(tmp_path / "run"))
    trajectories = list(load_trajectories([tmp_path / "run"]))
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [
        "manifest.json",
        "shard-00000.jsonl",
        "shard-00001.jsonl",
    ]
    assert result["episodes"] == len(trajectories) == 6
    assert result["steps"] == 48
    assert len({trajectory.id for trajectory in trajectories}) == len({t.scene for t in trajectories}) == 6
    for trajectory in trajectories:
        scene = load(trajectory.scene)
        assert list(trajectory.steps) == replay(
            VirtualHome(), scene, [parse_action(s.action) for s in trajectory.steps]
        )
        assert all(scene.nodes[node].class_name == name for node, name in trajectory.classes.items())


def test_collect_plans(tmp_path):
    result = collect(settings(tmp_path, policy="mcts", simulations=60, episodes=3))
    trajectories = list(load_trajectories([tmp_path]))
    assert len({trajectory.task for trajectory in trajectories}) == 3
    for trajectory in trajectories:
        assert all(step.ok for step in trajectory.steps)
        assert set(trajectory.achieved) <= set(trajectory.goal)
    reached = sum(set(t.goal) == set(t.achieved) for t in trajectories)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert result["goals_reached"] == manifest["statistics"]["goals_reached"] == reached
    assert manifest["complete"]
    assert manifest["settings"]["simulations"] == 60
    assert {(trajectory.policy, trajectory.search["method"]) for trajectory in trajectories} == {("mcts", "mcts")}
    collect(settings(tmp_path / "other", policy="mcts", search="best-first", simulations=20, episodes=1))
    (other,) = load_trajectories([tmp_path / "other"])
    assert (other.policy, other.search["method"]) == ("best-first", "best-first")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"style": "track", "scene": ("procedural", "procedural:1", "robothow:file1003_2")},
        {"policy": "mcts", "simulations": 20, "scene": ("procedural",)},
    ],
)
def test_the_number_of_workers_does_not_matter(tmp_path, change):
    collect(settings(tmp_path / "one", **change))
    collect(settings(tmp_path / "two", workers=2, **change))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_every_episode_has_a_household_of_its_own(tmp_path):
    collect(settings(tmp_path, scene=("procedural", "robothow:file1003_2"), style="track"))
    trajectories = list(load_trajectories([tmp_path]))
    assert [t.scene for t in trajectories[1::2]] == ["robothow:file1003_2"] * 3
    assert [t.scene for t in trajectories[::2]] == [f"procedural:{t.seed}" for t in trajectories[::2]]
    assert len({t.scene for t in trajectories}) == 4
    for trajectory in trajectories:
        assert trajectory.search == {"style": "track"}
        assert {step.actor for step in trajectory.steps} == {0, 1, 2}
        nodes = load(trajectory.scene).nodes
        assert all(nodes[node].class_name == name for node, name in trajectory.classes.items())
    assert json.loads((tmp_path / "manifest.json").read_text())["settings"]["engine"] == "array"


def test_goals_are_searched_for_in_other_scenes(tmp_path):
    base = "robothow:file1003_2"
    collect(settings(tmp_path, policy="mcts", simulations=60, scene=("procedural", base), episodes=4))
    trajectories = list(load_trajectories([tmp_path]))
    programs = robothow_order(3)
    expected = [f"procedural:{trajectory.seed}" if n % 2 == 0 else base for n, trajectory in enumerate(trajectories)]
    assert [t.scene for t in trajectories] == [
        f"{scene}+robothow:{program}" for scene, program in zip(expected, programs[:4], strict=True)
    ]
    for trajectory in trajectories:
        actions = [parse_action(step.action) for step in trajectory.steps]
        assert list(trajectory.steps) == replay(VirtualHome(), load(trajectory.scene), actions)
        assert trajectory.goal
        assert trajectory.items
        assert trajectory.conditions


def test_goals_that_a_scene_does_not_suit_are_skipped_with_the_reason(tmp_path):
    scene = load("robothow:file1003_2")
    beds = {node.id for node in scene.nodes.values() if node.class_name in ("bed", "toilet", "couch", "computer")}
    graph = {
        "nodes": [
            {**asdict(node), "properties": sorted(node.properties), "states": sorted(node.states)}
            for node in scene.nodes.values()
            if node.id not in beds
        ],
        "edges": [
            {"from_id": source, "relation_type": relation, "to_id": target}
            for source, relation, target in scene.edges
            if not beds & {source, target}
        ],
    }
    flat = tmp_path / "flat.json"
    flat.write_text(json.dumps(graph))
    collect(settings(tmp_path / "run", policy="mcts", simulations=5, scene=(str(flat),), episodes=8))
    order, skipped = robothow_order(3), 0
    (kept,) = (tmp_path / "run" / "scenes").iterdir()
    assert kept.read_bytes() == flat.read_bytes()
    for number, trajectory in enumerate(load_trajectories([tmp_path / "run"])):
        reasons = trajectory.search.get("skipped", {})
        assert trajectory.scene == f"{kept}+robothow:{order[number + len(reasons)]}"
        assert list(reasons) == order[number : number + len(reasons)]
        assert all("the program needs a " in reason for reason in reasons.values())
        skipped += len(reasons)
    assert skipped


def test_more_scenes_are_filled_with_every_goal():
    scenes_given = ("procedural:1", "procedural:2", "procedural:3")
    found = jobs.subjects(settings(Path("run"), policy="mcts", scene=scenes_given))
    pairs = [subject.rsplit("+robothow:", 1) for subject in found]
    assert len({tuple(pair) for pair in pairs}) == len(pairs) == 3 * 518
    assert [scene for scene, _ in pairs[:4]] == [*scenes_given, scenes_given[0]]
    assert len({program for _, program in pairs[:518]}) == 518


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
    collect(settings(tmp_path / "whole"))
    play = collect_command.play

    def interrupted(job):
        if job.episode == 5:
            raise KeyboardInterrupt
        return play(job)

    monkeypatch.setattr(collect_command, "play", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(settings(tmp_path / "run"))
    assert len(list(load_trajectories([tmp_path / "run"]))) == 5
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["statistics"]["episodes"] == 5
    monkeypatch.setattr(collect_command, "play", play)
    assert collect(settings(tmp_path / "run"))["collected"] == 1
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_run_that_is_told_to_end_says_how_far_it_came(tmp_path, monkeypatch):
    """SIGTERM, as a cluster sends it, is as Ctrl-C: the manifest counts what is there."""
    played = collect_command._run

    def ended(jobs, processes):
        yield from list(played(jobs[:2], processes))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(collect_command, "_run", ended)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        collect(settings(tmp_path / "run"))
    assert signal.getsignal(signal.SIGTERM) is before
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["statistics"]["episodes"] == 2
    assert not manifest["complete"]
    monkeypatch.setattr(collect_command, "_run", played)
    collect(settings(tmp_path / "run"))
    collect(settings(tmp_path / "whole"))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_only_the_search_that_is_used_is_compiled(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(collect_command, "compile_engine", lambda *methods: asked.append(methods))
    collect(settings(tmp_path / "random", episodes=2, workers=2))
    planned = {"policy": "mcts", "simulations": 5, "episodes": 2, "workers": 2}
    collect(settings(tmp_path / "plans", search="best-first", **planned))
    assert asked == [(), ("best-first",)]


@pytest.mark.parametrize("name", ["shard-00000.jsonl", "shard-00001.jsonl"])
def test_a_torn_shard_is_mended(tmp_path, name):
    collect(settings(tmp_path))
    whole = contents(tmp_path)
    shard = tmp_path / name
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(lines[0] + lines[1][:50])
    collect(settings(tmp_path))
    assert contents(tmp_path) == whole
    shard.rename(tmp_path / name.replace(".jsonl", ".partial.jsonl"))  # killed before a full shard was put in order
    assert collect(settings(tmp_path))["collected"] == 0
    assert contents(tmp_path) == whole
    shard.unlink()
    collect(settings(tmp_path))
    assert contents(tmp_path) == whole


def test_a_killed_run_continues(tmp_path, monkeypatch):
    program = (
        "from pathlib import Path; from e2wm_jax.experience.collect.command import *\n"
        "if __name__ == '__main__':\n"
        f"    collect(CollectSettings(out=Path({str(tmp_path / 'run')!r}), policy='random', episodes=24, seed=3,"
        " episode_length=8, workers=2))\n"
    )
    (tmp_path / "main.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, tmp_path / "main.py"], env=environment)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.stat().st_size for path in (tmp_path / "run").glob("shard*")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    process.wait(timeout=30)
    monkeypatch.setattr(shards, "SHARD_SIZE", 64)  # what the killed process used
    collect(settings(tmp_path / "run", episodes=24))
    collect(settings(tmp_path / "whole", episodes=24))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_a_run_can_be_prolonged_but_not_changed(tmp_path):
    collect(settings(tmp_path / "run", episodes=2))
    collect(settings(tmp_path / "run", episodes=5))
    collect(settings(tmp_path / "whole", episodes=5))
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    before = contents(tmp_path / "run")
    for change in ({"seed": 4}, {"episodes": 2}, {"style": "uniform"}):
        with pytest.raises(InputError, match=f"holds another run .*{next(iter(change))}.*--out"):
            collect(settings(tmp_path / "run", **{"episodes": 5, **change}))
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 0}, "--episodes 0: must be at least 1"),
        ({"workers": 0}, "--workers 0"),
        ({"policy": "clever"}, "--policy clever: choose one of mcts, random"),
        ({"dialect": "vh19", "engine": "virtualhome"}, "runs only vh23"),
        ({"dialect": "vh24"}, "dialect 'vh24': unknown; choose one of vh23, vh19, e2wm"),
        (
            {"policy": "mcts", "engine": "virtualhome", "search": "best-first"},
            "--search best-first needs the array engine",
        ),
        ({"scene": ("nowhere.json",)}, r"nowhere\.json: no such file"),
        ({"goals": "robothow"}, "--goals is for --policy mcts"),
        ({"policy": "mcts", "scene": ("nowhere.json",)}, r"nowhere\.json: no such file"),
        ({"policy": "mcts", "scene": ("procedural",), "goals": "g.jsonl"}, "--scene goes with --goals robothow"),
        ({"scene": ("procedural:x",)}, "procedural:x: the seed of a household must be a number"),
        ({"style": "wild"}, "--style wild: choose one of carry, uniform, track"),
        ({"policy": "mcts", "goals": "nowhere.jsonl"}, r"nowhere\.jsonl: no such file"),
    ],
)
def test_bad_settings_leave_nothing_behind(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        collect(settings(tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_other_directories_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty and not a run of collect"):
        collect(settings(tmp_path))
    with pytest.raises(InputError, match="is a file"):
        collect(settings(tmp_path / "thesis.txt"))
    with pytest.raises(InputError, match="no experiences"):
        list(load_trajectories([tmp_path]))


def test_malformed_trajectories_are_named(tmp_path):
    collect(settings(tmp_path, episodes=2))
    shard = tmp_path / "shard-00000.jsonl"
    first, second = shard.read_text().splitlines()
    record = json.loads(second)
    del record["steps"]
    shard.write_text(first + "\n" + json.dumps(record) + "\n")
    with pytest.raises(InputError, match=r"shard-00000\.jsonl:2: not a trajectory: no 'steps'"):
        list(load_trajectories([tmp_path]))
    shard.write_text(first + "\n{broken\n")
    with pytest.raises(InputError, match=r"shard-00000\.jsonl:2: not valid JSON"):
        list(load_trajectories([tmp_path]))


def test_workers_do_not_import_jax():
    code = "import sys, e2wm_jax.experience.collect.command; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_records_of_format_1_are_read_and_later_ones_refused():
    old = {"id": "a", "scene": "robothow:x", "dialect": "vh23", "policy": "random", "seed": 1, "task": None}
    old |= {"goal": [], "achieved": [], "items": [], "conditions": [], "return": 0, "search": {}}
    old |= {"classes": {"1": "hall"}, "steps": [{"a": "[Walk] <hall> (1)", "ok": 1, "e+": [[2, "CLOSE", 1]]}]}
    read = shards.parse(old, "run/shard-00000.jsonl:1")
    assert read.world == "household"
    now = read.to_json()
    assert now == {"format": 2, "world": "household", **old}
    assert shards.parse(now, "run/shard-00000.jsonl:1") == read
    with pytest.raises(InputError, match=r"jsonl:1: not a trajectory: format 3, this version reads 1 and 2"):
        shards.parse({**now, "format": 3}, "run/shard-00000.jsonl:1")
