"""The benchmarks of the world, of searches and of the loader: all engines play the same lines, and sums are right."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2wm_jax.bench import loader, search, world
from e2wm_jax.bench.settings import LoaderBenchSettings, SearchBenchSettings, WorldBenchSettings
from e2wm_jax.errors import InputError
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.native.world import ArrayWorld
from e2wm_jax.worlds.household.oracle import virtualhome

pytestmark = pytest.mark.skipif(
    not (virtualhome.is_installed() and scenes.has_robothow()),
    reason="needs virtualhome and virtualhome-eval; `make setup` installs them",
)
LINES = WorldBenchSettings(environments=(2,), episodes=2, length=6, rounds=1)


def test_the_report_of_searches(capsys: Any) -> None:
    settings = SearchBenchSettings(goals=2, methods=("best-first",), simulations=40, reference_simulations=2)
    report = search.run(settings)
    names = ("best-first, compiled", "mcts on virtualhome's executor", "people's programs")
    ours, reference, people = map(report["searches"].__getitem__, names)
    assert reference["ratio"] == 1
    paces = ours["simulations_per_second"], reference["simulations_per_second"]
    assert ours["ratio"] == pytest.approx(paces[0] / paces[1], abs=0.1)
    assert 0 <= ours["goals_reached"] <= ours["facts_achieved"] <= 1
    assert (people["simulations_per_second"], people["mean_reward"]) == (None, None)
    assert people["mean_lines"] > 0
    search.show(report)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "2 goals, dialect vh23, 40 simulations"
    assert shown[1].split() == ["sims/s", "ratio", "s/goal", "reached", "facts", "lines", "reward"]
    with pytest.raises(InputError, match="--methods astar: choose among mcts"):
        search.run(replace(settings, methods=("astar",)))  # type: ignore[arg-type]


def test_the_compiled_engine_plays_the_lines() -> None:
    """As many lines succeed as step by step."""
    scene = scenes.load(LINES.scene)
    lines = world._draw(scene, LINES)
    assert lines.numbers.shape == (2, 6, 3)
    engine, expected = ArrayWorld(LINES.dialect), 0
    for episode in lines.actions:
        state = engine.initial(scene)
        for action in episode:
            state, step = engine.step(state, action)
            expected += step.ok
    assert 0 < expected < 12
    times, play = world._native(scene, LINES, lines)["array on one CPU core, compiled", 1, False]
    assert play() * 12 == expected * times
    with pytest.raises(InputError, match="--environments 0: must be at least 1"):
        world.run(replace(LINES, environments=(2, 0)))


@pytest.mark.slow
def test_the_report_of_engines(capsys: Any) -> None:
    report = world.run(LINES)
    assert [row["environments"] for row in report["engines"]] == [1, 1, 1, 1, 1, 2, 2]
    assert report["engines"][0]["ratio"] == 1
    assert report["lines"] == 12
    first, *_, last = report["engines"]
    assert last["ratio"] == pytest.approx(last["steps_per_second"] / first["steps_per_second"], abs=0.01)
    world.show(report)
    assert "legal masks" in capsys.readouterr().out
    scene = scenes.load(LINES.scene)
    lines = world._draw(scene, LINES)
    native = world._native(scene, LINES, lines)["array on one CPU core, compiled", 1, False]
    batched = world._batched(scene, LINES, lines, 2, False)
    assert int(np.asarray(batched())) * native[0] == native[1]() * 12


def test_the_report_of_the_loader(tiny_llama: Path, capsys: Any) -> None:
    settings = LoaderBenchSettings(str(tiny_llama), tasks=("obj_move",), workers=(0,), seconds=0.05, steps=1)
    report = loader.run(replace(settings, max_length=2048))
    assert report.keys() == {"train_step", "files", "online"}
    assert list(report["files"]) == ["plain loop", "loader", "loader, packed"]
    (online,) = report["online"].values()
    assert list(online) == ["plain loop", "0 workers"]
    for paces in (report["files"], online):
        plain, *others = paces.values()
        assert plain["over_plain"] == 1
        for pace in others:
            over = pace["examples_per_second"] / plain["examples_per_second"]
            assert pace["over_plain"] == pytest.approx(over, rel=0.02, abs=0.001)
    loader.show(report)
    assert "files, loader, packed" in capsys.readouterr().out
    with pytest.raises(InputError, match="--workers -1: must be at least 0"):
        loader.run(replace(settings, workers=(1, -1)))
