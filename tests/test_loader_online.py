"""Data made on demand: the same whoever makes them, wherever a run starts, and whatever happens to the workers."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2wm_jax.data.batch import Row
from e2wm_jax.data.loader import Loader, StepBatch
from e2wm_jax.data.online import generate
from e2wm_jax.data.online.generate import UNIT, examples
from e2wm_jax.data.online.held_out import FILES
from e2wm_jax.data.online.names import OnlineTask, parse_online
from e2wm_jax.data.online.rows import OnlineRows, RowMaker, Unit, online_rows
from e2wm_jax.errors import InputError
from e2wm_jax.running.processes import ATTEMPTS, WorkerDiedError, Workers
from e2wm_jax.storage.files import write_json_lines
from e2wm_jax.tasks import leakage
from e2wm_jax.worlds.household.homes import robothow, scenes
from e2wm_jax.worlds.household.oracle import virtualhome

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[1]
MAX_LENGTH = 4096
# Smallest searches: what is tested is the loader, not the plans.
WORLDLY = ("online:count", "online:plan_gen?simulations=10")


@pytest.fixture(scope="module")
def world() -> None:
    """Tests with this fixture simulate."""
    if not (virtualhome.is_installed() and scenes.has_robothow()):
        pytest.skip("needs virtualhome and virtualhome-eval; `make setup` installs them")


def task(name: str) -> OnlineTask:
    return parse_online(name)[0]


@contextmanager
def open_loader(
    tokenizer: Any, *names: str, workers: int = 0, rows: tuple[Row, ...] = (), **changes: Any
) -> Iterator[Loader]:
    maker = RowMaker(tokenizer, tuple((0.5, task(name)) for name in names), seed=0, max_length=MAX_LENGTH)
    with online_rows(maker, workers=workers) as online:
        options = {"batch_size": 6, "accumulate": 1, "max_length": MAX_LENGTH, "seed": 0, **changes}
        yield Loader(rows, online=online, **options)


def steps_of(tokenizer: Any, *names: str, first: int = 1, last: int = 8, **changes: Any) -> list[StepBatch]:
    with open_loader(tokenizer, *names, **changes) as loader:
        return list(loader.batches(first, last))


def assert_same_steps(found: list[StepBatch], expected: list[StepBatch]) -> None:
    assert [step.examples for step in found] == [step.examples for step in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        for a, b in zip(one.batch, other.batch, strict=True):
            np.testing.assert_array_equal(a, b)


def file_rows(count: int) -> tuple[Row, ...]:
    """Row i is five tokens i."""
    return tuple(Row(np.full(5, index, np.int32), 2) for index in range(count))


# ------------------------------------------------------------------------------------------------------------ examples


@pytest.mark.slow
@pytest.mark.parametrize("name", ["online:obj_move", *WORLDLY])
def test_units_depend_on_seed_and_number_alone(name: str, request: pytest.FixtureRequest) -> None:
    if name in WORLDLY:
        request.getfixturevalue("world")
    units = [examples(task(name), seed=seed, unit=unit) for seed, unit in ((0, 0), (0, 1), (1, 0))]
    assert [len(unit) for unit in units] == [UNIT] * 3
    assert len({example.input for unit in units for example in unit}) == 3 * UNIT
    assert examples(task(name), seed=0, unit=1) == units[1]


@pytest.mark.slow
def test_examples_have_the_official_forms(world: None) -> None:
    shots = {
        "online:obj_move": ("Question: What is the order of the rooms where the ", 3),
        "online:count": ("How many items are there on the ", 4),
        "online:plan_gen?simulations=10": ("Q: How to ", 3),
        "online:act_recog?simulations=10": ("Q: What is the name of the activity?", 3),
    }
    for name, (question, times) in shots.items():
        for example in examples(task(name), seed=5, unit=3):
            assert example.input.count(question) == times
            assert example.input.endswith((":", "A:"))
            assert example.ref.strip() == example.ref != ""


@pytest.mark.slow
def test_nothing_is_made_of_what_a_directory_of_tasks_holds_out(tmp_path: Path, world: None) -> None:
    """Units go through all activities: two that are unseen, and the questions of others, would come up."""
    plain = [example for unit in range(3) for example in examples(task(WORLDLY[1]), seed=0, unit=unit)]
    for name, held in (("gen/plan_gen_unseen", plain[:2]), ("gen/plan_gen", plain[2:8])):
        write_json_lines(tmp_path / f"eval/{name}.json", [example.to_json() for example in held])
    asked = {fact for name in FILES[:2] for fact in leakage.facts(name, plain[:2] if "unseen" in name else plain[2:8])}
    made = {}
    for kind, file in (("plan_gen", "train/train_plan_gen.json"), ("act_recog", "train/train_act_recog.json")):
        name = f"online:{kind}?simulations=10&exclude={tmp_path}"
        made[kind] = [example for unit in range(3) for example in examples(task(name), seed=0, unit=unit)]
        assert not leakage.facts(file, made[kind]) & asked
        assert made[kind][:UNIT] == examples(task(name), seed=0, unit=0)
    assert leakage.facts("train/train_plan_gen.json", plain[8:]) & asked
    # All goals held out: said so, after as many tries as ever.
    unseen = [{"input": f"Q: How to {title}?\nA:", "ref": "Walk."} for title in generate._titles()]
    write_json_lines(tmp_path / "all/eval/gen/plan_gen_unseen.json", unseen)
    with pytest.raises(InputError, match=r"too few plans reach their goals \(.*'held out': \d+"):
        examples(task(f"online:plan_gen?simulations=10&exclude={tmp_path / 'all'}"), seed=0, unit=0)


@pytest.mark.slow
@pytest.mark.parametrize("search", ["mcts", "best-first"])
def test_what_was_made_before_makes_no_difference(world: None, search: str) -> None:
    name = f"online:act_recog?simulations=20&search={search}"
    first = examples(task(name), seed=0, unit=7)
    examples(task(name), seed=1, unit=7)
    generate._scene.cache_clear()
    generate._goal.cache_clear()
    generate._selected.cache_clear()
    robothow._DECODED.clear()
    assert examples(task(name), seed=0, unit=7) == first


def test_scenes_without_material_are_refused(tmp_path: Path, world: None) -> None:
    character = {"id": 1, "class_name": "character", "category": "Characters", "properties": [], "states": []}
    room = {"id": 2, "class_name": "kitchen", "category": "Rooms", "properties": [], "states": []}
    inside = [{"from_id": 1, "relation_type": "INSIDE", "to_id": 2}]
    path = tmp_path / "empty.json"
    lamp = {"id": 3, "class_name": "light", "category": "Lamps", "properties": ["HAS_SWITCH"], "states": ["OFF"]}
    inside.append({"from_id": 3, "relation_type": "INSIDE", "to_id": 2})
    path.write_text(json.dumps({"nodes": [character, room, lamp], "edges": inside}))
    with pytest.raises(InputError, match=r"online:count\?scene=.*empty\.json: .* too few stories"):
        examples(task(f"online:count?scene={path}"), seed=0, unit=0)
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        examples(task("online:count?scene=nowhere.json"), seed=0, unit=0)


# --------------------------------------------------------------------------------------------------------------- rows


def test_rows_that_do_not_fit_are_refused_or_replaced(tiny_tokenizer: Any) -> None:
    tasks = ((1.0, task("online:obj_move")),)
    whole = RowMaker(tiny_tokenizer, tasks, seed=0, max_length=MAX_LENGTH)(Unit(0, 0))
    inputs = sorted(row.first_target for row in whole)
    limit = inputs[UNIT // 2]
    with pytest.raises(InputError, match=rf"online:obj_move/\d: --max-length {limit} leaves no answer token"):
        RowMaker(tiny_tokenizer, tasks, seed=0, max_length=limit)(Unit(0, 0))
    maker = RowMaker(tiny_tokenizer, tasks, seed=0, max_length=limit, skip_truncated=True)
    rows = maker(Unit(0, 0))
    assert len(rows) == UNIT
    assert all(row.first_target < len(row.ids) <= limit for row in rows)
    fitting = [row.ids[:limit].tolist() for row in whole if row.first_target < limit]
    assert [row.ids.tolist() for row in rows][: len(fitting)] == fitting
    with pytest.raises(InputError, match="cuts away the answers of most examples"):
        RowMaker(tiny_tokenizer, tasks, seed=0, max_length=50, skip_truncated=True)(Unit(0, 0))


def test_weights_and_tokens_are_those_of_the_texts(tiny_tokenizer: Any) -> None:
    (step,) = steps_of(tiny_tokenizer, "online:obj_move", last=1)
    assert step.examples == [f"online:obj_move/{item}" for item in range(6)]
    texts = [f"{e.input} {e.ref}\n" for e in examples(task("online:obj_move"), seed=0, unit=0)[:6]]
    batch = step.batch
    for text, ids, segments, weights in zip(texts, batch.ids[0], batch.segments[0], batch.weights[0], strict=True):
        assert tiny_tokenizer.decode(ids[segments == 0]) == text
        assert set(weights.tolist()) == {0.0, 0.5}


def test_an_epoch_of_a_mixture_has_every_row_once_and_the_next_items_in_order(tiny_tokenizer: Any) -> None:
    with open_loader(tiny_tokenizer, "online:obj_move", rows=file_rows(500), batch_size=100) as loader:
        assert loader.steps_per_epoch == 15
        drawn = [name for step in range(1, 31) for name in (loader._name(*source) for source in loader._drawn(step))]
    for epoch in range(2):
        here = drawn[1500 * epoch : 1500 * (epoch + 1)]
        assert sorted(name for name in here if isinstance(name, int)) == list(range(500))
        items = [name for name in here if isinstance(name, str)]
        assert items == [f"online:obj_move/{item}" for item in range(1000 * epoch, 1000 * (epoch + 1))]
        # Well mixed: each hundred places have about a third of file rows.
        shares = [sum(isinstance(name, int) for name in here[i : i + 100]) for i in range(0, 1500, 100)]
        assert 15 <= min(shares) <= max(shares) <= 55


# ------------------------------------------------------------------------------------------------------------- workers


@pytest.mark.slow
@pytest.mark.parametrize("pack", [False, True])
def test_batches_do_not_depend_on_the_number_of_workers(tiny_tokenizer: Any, pack: bool) -> None:
    """Each worker hashes strings in its own way."""
    options: dict[str, Any] = {"rows": file_rows(40), "last": 12, "pack": pack}
    expected = steps_of(tiny_tokenizer, "online:obj_move", **options)
    for workers in (1, 4):
        assert_same_steps(steps_of(tiny_tokenizer, "online:obj_move", workers=workers, **options), expected)


@pytest.mark.slow
def test_simulated_batches_do_not_depend_on_the_number_of_workers(tiny_tokenizer: Any, world: None) -> None:
    expected = steps_of(tiny_tokenizer, *WORLDLY, last=2)
    assert {str(name).split("/")[0] for step in expected for name in step.examples} == set(WORLDLY)
    assert_same_steps(steps_of(tiny_tokenizer, *WORLDLY, workers=2, last=2), expected)


@pytest.mark.parametrize("first", [2, 5, 9])
def test_a_resumed_loader_continues_at_the_same_example(tiny_tokenizer: Any, first: int) -> None:
    options: dict[str, Any] = {"rows": file_rows(300), "last": 10}
    whole = steps_of(tiny_tokenizer, "online:obj_move", **options)
    assert_same_steps(steps_of(tiny_tokenizer, "online:obj_move", first=first, **options), whole[first - 1 :])


def test_shards_of_two_hosts_together_are_the_batch_of_one(tiny_tokenizer: Any) -> None:
    rows = file_rows(300)
    whole = steps_of(tiny_tokenizer, "online:obj_move", rows=rows, last=4, accumulate=2)
    shards = [
        steps_of(tiny_tokenizer, "online:obj_move", rows=rows, last=4, accumulate=2, mine=(host,), parts=2, apart=True)
        for host in range(2)
    ]
    for step, *parts in zip(whole, *shards, strict=True):
        assert all(part.examples == step.examples for part in parts)
        assert len({part.batch.ids.shape for part in parts}) == 1
        length = step.batch.ids.shape[-1]
        for field in ("ids", "segments"):
            pieces = np.concatenate([getattr(part.batch, field) for part in parts], axis=1)
            np.testing.assert_array_equal(pieces[..., :length], getattr(step.batch, field))
            assert set(np.unique(pieces[..., length:]).tolist()) == {0 if field == "ids" else -1}
    with pytest.raises(ValueError, match="packing online rows"):
        steps_of(tiny_tokenizer, "online:obj_move", pack=True, parts=2, mine=(0,), apart=True)


@pytest.mark.slow
def test_killed_workers_are_replaced_and_nothing_is_lost(
    tiny_tokenizer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = steps_of(tiny_tokenizer, "online:obj_move", last=120)
    maker = RowMaker(tiny_tokenizer, ((0.5, task("online:obj_move")),), seed=0, max_length=MAX_LENGTH)
    found = []
    with Workers(maker, 2) as workers:
        rows = OnlineRows(workers, 0, task("online:obj_move"))
        for step in Loader((), 6, 1, MAX_LENGTH, 0, online=[rows]).batches(1, 120):
            found.append(step)
            if len(found) % 30 == 7:
                for pid in workers.pids:
                    os.kill(pid, signal.SIGKILL)
    assert_same_steps(found, expected)
    assert (
        "a worker process was killed (SIGKILL; out of memory?); a new one does its work again" in capfd.readouterr().err
    )


def test_a_job_that_kills_its_workers_ends_with_an_error_and_others_go_on() -> None:
    started = time.monotonic()
    with Workers(eval, 2) as workers:
        deadly = workers.submit("__import__('os').kill(__import__('os').getpid(), 9)")
        leaving = workers.submit("__import__('os')._exit(7)")
        others = [workers.submit(f"{number} ** 2") for number in range(20)]
        assert [future.result(30) for future in others] == [number**2 for number in range(20)]
        with pytest.raises(WorkerDiedError, match=rf"{ATTEMPTS} worker processes died of one job, .*SIGKILL"):
            deadly.result(30)
        with pytest.raises(WorkerDiedError, match="the last ended with exit code 7"):
            leaving.result(30)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("count", [0, 1])
def test_errors_of_jobs_are_the_callers(count: int) -> None:
    with Workers(eval, count) as workers:
        refused = (
            "exec('from e2wm_jax.errors import InputError') or (_ for _ in ()).throw(locals()['InputError']('no'))"
        )
        assert workers.submit("6 * 7").result(30) == 42
        with pytest.raises(InputError, match=r"^no$"):
            workers.submit(refused).result(30)
        with pytest.raises(RuntimeError if count else ZeroDivisionError, match="division by zero"):
            workers.submit("1 / 0").result(30)
        assert workers.submit("7 * 6").result(30) == 42


def test_leaving_ends_busy_processes_and_cancels_what_waits() -> None:
    with Workers(eval, 1) as workers:
        assert workers.submit("1").result(30) == 1
        (pid,) = workers.pids
        busy, waiting = workers.submit("__import__('time').sleep(1000)"), workers.submit("2")
        time.sleep(0.1)
    for future in (busy, waiting, workers.submit("3")):
        assert future.cancelled() or isinstance(future.exception(0), BaseException)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "from e2wm_jax.running.processes import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(eval, 2) as workers:\n"
        "        for _ in range(4): workers.submit('__import__(\"time\").sleep(0.5)')\n"
        "        import time; time.sleep(2.5)\n"
        "        print(*workers.pids, flush=True)\n"
        "        time.sleep(1000)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_workers_never_import_jax(tiny_tokenizer: Any) -> None:
    maker = RowMaker(tiny_tokenizer, ((1.0, task("online:obj_move")),), seed=0, max_length=MAX_LENGTH)
    make = f"len(__import__('pickle').loads({pickle.dumps(maker)!r})(__import__('e2wm_jax.data.online.rows'"
    make += ", fromlist=['Unit']).Unit(0, 0)))"
    with Workers(eval, 1) as workers:
        assert workers.submit(make).result(60) == UNIT
        assert workers.submit("'jax' in __import__('sys').modules").result(60) is False
        assert workers.submit("__import__('os').environ['JAX_PLATFORMS']").result(60) == "cpu"


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.slow
def test_training_reads_online_data_like_files_and_resumes_after_sigkill(tiny_llama: Path, tmp_path: Path) -> None:
    """Whatever the number of workers: a killed and resumed run has the numbers of one left alone."""
    from e2wm_jax.train.run import run
    from e2wm_jax.train.settings import TrainSettings

    lines = [json.dumps({"input": f"How to count to {n}?", "ref": f"Say {n}."}) + "\n" for n in range(1000)]
    (tmp_path / "file.json").write_text("".join(lines))
    options: dict[str, Any] = {
        "model": str(tiny_llama),
        "data": f"1 online:obj_move 0.5 {tmp_path / 'file.json'}",
        "batch_size": 2,
        "steps": 4,
        "max_length": 2048,
        "checkpoint_every": 2,
    }
    whole = run(TrainSettings(out=tmp_path / "whole", workers=0, **options))
    assert whole["steps"] == 4
    rows = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    names = [name for row in rows for name in json.loads(row)["examples"]]
    assert {type(name) for name in names} == {int, str}

    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "e2wm_jax",
            "train",
            "--workers=1",
            f"--out={out}",
            *words,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").is_file() or (out / "metrics.jsonl").read_bytes().count(b"\n") < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    run(TrainSettings(out=out, workers=0, resume=True, **options))
    for name in ("metrics.jsonl", "adapter/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(InputError, match=r"--resume: .* was run with pack = False"):
        run(TrainSettings(out=out, resume=True, pack=True, **options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "--data: online:obj_move has no end; say how far to go with --steps N"),
        ({"workers": -1}, "--workers -1: must be at least 0"),
        ({"data": "online:nothing"}, "--data online:nothing: no online task 'nothing'"),
        ({"max_length": 20}, "online:obj_move/0: --max-length 20 leaves no answer token"),
    ],
)
def test_impossible_online_settings_are_refused_and_nothing_is_written(
    tiny_llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    from e2wm_jax.train.run import run
    from e2wm_jax.train.settings import TrainSettings

    settings = {"model": str(tiny_llama), "data": "online:obj_move", "steps": 1, "workers": 0, **changes}
    with pytest.raises(InputError, match=re.escape(message)):
        run(TrainSettings(out=tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()
