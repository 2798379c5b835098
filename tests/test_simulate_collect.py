"""Exploration and collection: seeded, resumable, the same bytes however they came about."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.simulate import scenes, shards, virtualhome, workers
from e2wm_jax.simulate.actions import parse_action
from e2wm_jax.simulate.explorer import explore
from e2wm_jax.simulate.replay import replay
from e2wm_jax.simulate.scenes import load
from e2wm_jax.simulate.shards import load_trajectories
from e2wm_jax.simulate.virtualhome import VirtualHome
from e2wm_jax.simulate.workers import CollectSettings, collect

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


@pytest.mark.parametrize("style", ["carry", "uniform"])
def test_exploration_is_seeded_and_legal(style):
    world, scene = VirtualHome(), load("robothow:file1003_2")
    steps = explore(world, scene, length=15, seed=1, style=style)
    assert len(steps) == 15
    assert all(step.ok for step in steps)
    assert steps == explore(world, scene, length=15, seed=1, style=style)
    assert steps != explore(world, scene, length=15, seed=2, style=style)
    assert steps == replay(world, scene, [parse_action(step.action) for step in steps])


def test_carrying_puts_things_on_surfaces():
    world, scene = VirtualHome(), load("robothow:file1003_2")
    put = [
        step
        for seed in range(10)
        for step in explore(world, scene, length=20, seed=seed)
        if step.action.startswith("[PutBack]")
    ]
    assert len(put) >= 20
    for step in put:
        thing, surface = (thing.id for thing in parse_action(step.action).things)
        assert (thing, "ON", surface) in step.edges_added


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


def test_the_number_of_workers_does_not_matter(tmp_path):
    collect(settings(tmp_path / "one"))
    collect(settings(tmp_path / "two", workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
    collect(settings(tmp_path / "whole"))
    play = workers._episode

    def interrupted(job):
        if job.episode == 5:
            raise KeyboardInterrupt
        return play(job)

    monkeypatch.setattr(workers, "_episode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(settings(tmp_path / "run"))
    assert len(list(load_trajectories([tmp_path / "run"]))) == 5
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["statistics"]["episodes"] == 5
    monkeypatch.setattr(workers, "_episode", play)
    assert collect(settings(tmp_path / "run"))["collected"] == 1
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


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
        "from pathlib import Path; from e2wm_jax.simulate.workers import *\n"
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
        ({"dialect": "vh19"}, "runs only vh23"),
        ({"scene": ("nowhere.json",)}, r"nowhere\.json: no such file"),
        ({"goals": "robothow"}, "--goals is for --policy mcts"),
        ({"policy": "mcts", "scene": ("a.json",)}, "--scene is for --policy random"),
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
    code = "import sys, e2wm_jax.simulate.workers; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
