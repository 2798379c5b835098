"""Checkpoints: what comes back is what was saved, whatever happens to the files and to the disk."""

import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from e2wm_jax.errors import InputError
from e2wm_jax.storage.checkpoint import Checkpoints

ROOT = Path(__file__).parents[1]


class Moments(NamedTuple):
    mean: Any
    count: Any


@flax.struct.dataclass
class State:
    """Leaves of several kinds, and places without any."""

    step: jax.Array
    adapters: dict[str, Any]
    optimizer: Any
    path: Any


def a_state(seed: int, width: int = 48, sharding: Any = None) -> State:
    rng = np.random.default_rng(seed)
    factors = {
        "a": jnp.asarray(rng.normal(size=(2, 4, width)), jnp.float32),
        "b": jnp.asarray(rng.normal(size=(2, width, 4)), jnp.bfloat16),
    }
    state = State(
        step=jnp.int32(seed),
        adapters={"blocks/attn.q": factors},
        optimizer=(Moments({"a": factors["a"] * 2}, jnp.int32(seed)), (), {"none": jnp.zeros((0, 3))}),
        path=None if width == 48 else {},
    )
    return jax.device_put(state, sharding) if sharding is not None else state


def assert_same(found: Any, expected: Any) -> None:
    """To the byte, and the same kind of tree."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def position(step: int) -> dict[str, Any]:
    return {"step": step, "loader": {"epoch": 1, "drawn": [step, 7]}, "lr": 0.1 + 1e-17}


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """A folder with checkpoints 1, 2 and 3; copy it before changing it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder, keep=5) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, a_state(step), position(step))
    return folder


@pytest.fixture
def copy(three, tmp_path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "copy"))


# --------------------------------------------------------------------------------------------------- saved and restored


def test_newest_state_and_position_come_back(three):
    with Checkpoints(three, keep=5) as checkpoints:
        assert checkpoints.steps() == [1, 2, 3]
        restored = checkpoints.newest(a_state(0))
    assert restored.step == 3
    assert_same(restored.state, a_state(3))
    assert restored.position == position(3)


def test_folder_without_checkpoints_restores_nothing(tmp_path, capsys):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.newest(a_state(0)) is None
    assert capsys.readouterr().err == ""


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    """Training goes on in the memory of what is still being written."""
    width = 100_000
    update = jax.jit(lambda state: jax.tree.map(lambda x: -x, state), donate_argnums=0)
    state, first = a_state(1, width), jax.tree.map(np.array, a_state(1, width))
    update(a_state(2, width))  # compiled before
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        for _ in range(21):
            state = update(state)
        checkpoints.save(22, state, {})
        state = update(state)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.newest(state).state, jax.tree.map(lambda x: -x, first))
        shutil.rmtree(tmp_path / "22")
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.newest(state).state, first)


def test_saving_under_a_number_that_is_there_changes_nothing(copy):
    with Checkpoints(copy, keep=5) as checkpoints:
        checkpoints.save(3, a_state(9), {})
        assert_same(checkpoints.newest(a_state(0)).state, a_state(3))


@pytest.mark.parametrize("saved_on", ["one device", "eight"])
def test_restored_onto_another_mesh(tmp_path, saved_on):
    """Replicated or split over `like`'s devices, from wherever it was saved: the same bytes, in its place."""
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto, AxisType.Auto))
    replicated = NamedSharding(mesh, PartitionSpec())
    split = jax.tree.map(
        lambda x: NamedSharding(mesh, PartitionSpec("data", None, "tensor") if x.ndim == 3 else PartitionSpec()),
        a_state(0),
    )
    eight = jax.device_put(a_state(0), split)
    start, other = (a_state(1), eight) if saved_on == "one device" else (a_state(1, sharding=split), a_state(0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, start, {})
        for like in (other, start, a_state(0, sharding=replicated)):
            found = checkpoints.newest(like).state
            assert_same(found, a_state(1))
            for one, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
                assert one.sharding.is_equivalent_to(wanted.sharding, one.ndim)


def test_state_of_another_run_is_refused_by_name_and_left_alone(copy, capsys):
    before = sorted(path.name for path in copy.iterdir())
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(InputError, match=r"copy/3: holds the state of another run: .*\['a'\] is .*48.* here .*64"):
            checkpoints.newest(a_state(0, width=64))
        with pytest.raises(InputError, match=r"\.path is None, here \['float32', \[1\]\]"):
            checkpoints.newest(a_state(0).replace(path=jnp.ones(1)))
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in copy.iterdir()) == before


# ----------------------------------------------------------------------------------------------------------------- kept


def kept_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def test_newest_are_kept_by_count_and_besides_them_the_best(tmp_path):
    metrics = {1: 3.0, 2: 0.5, 3: 2.0, 4: float("nan"), 5: None, 6: 1.0, 7: 4.0, 8: 5.0}
    for part in ((1, 2, 3), (4, 5), (6, 7, 8)):  # what is best is known again after each restart
        with Checkpoints(tmp_path, keep=2, keep_best=2) as checkpoints:
            for step in part:
                checkpoints.save(step, a_state(step), {}, metric=metrics[step])
    assert kept_steps(tmp_path) == [2, 6, 7, 8]
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(9, a_state(9), {})
    assert kept_steps(tmp_path) == [9]


def test_one_with_a_torn_record_is_not_among_the_best(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        for step, metric in ((1, 1.0), (2, 2.0)):
            checkpoints.save(step, a_state(step), {}, metric)
    (tmp_path / "1/position/metadata").write_text('{"metric": 0')
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        checkpoints.save(3, a_state(3), {}, metric=3.0)
    assert kept_steps(tmp_path) == [2, 3]


# -------------------------------------------------------------------------------------------------------------- damaged


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes] | None] = {
    "deleted": None,
    "emptied": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "one bit": flip,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damaged_file_is_harmless_or_noticed(three, tmp_path, capsys, damage):
    """Of every file that a checkpoint consists of."""
    change, noticed = DAMAGES[damage], set()
    files = [path.relative_to(three / "3") for path in sorted((three / "3").rglob("*")) if path.is_file()]
    assert len(files) > 5
    for number, name in enumerate(files):
        folder = shutil.copytree(three, tmp_path / str(number))
        path = folder / "3" / name
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes()))
        with Checkpoints(folder, keep=5) as checkpoints:
            restored = checkpoints.newest(a_state(0))
        assert_same(restored.state, a_state(restored.step))
        assert restored.position == position(restored.step)
        said = capsys.readouterr().err
        if restored.step == 3:
            assert said == ""
        else:
            assert restored.step == 2
            assert said.startswith(f"{folder}/3: damaged checkpoint (")
            assert said.endswith("; using checkpoint 2\n")
            assert said.count("\n") == 1
            noticed.add(name.parts[0] if name.name == "metadata" else str(name))
    assert "position" in noticed
    assert any("ocdbt.process_0/d" in name for name in noticed)  # the arrays


def test_another_number_in_the_position_is_noticed(copy, capsys):
    path = copy / "3/position/metadata"
    record = json.loads(path.read_text())
    record["position"]["loader"]["drawn"][0] += 1
    path.write_text(json.dumps(record))
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.newest(a_state(0)).step == 2
    assert "3: damaged checkpoint (position is not what was saved); using checkpoint 2" in capsys.readouterr().err


def tear(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / f"{step}/state/manifest.ocdbt").write_bytes(b"")


def test_one_before_another_until_one_is_whole(copy, capsys):
    tear(copy, 2, 3)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.newest(a_state(0)).step == 1
        assert checkpoints.steps() == [1]
    said = capsys.readouterr().err.splitlines()
    assert [line.rpartition("; ")[2] for line in said] == ["using checkpoint 2", "using checkpoint 1"]


def test_none_is_whole(copy, capsys):
    tear(copy, 1, 2, 3)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.newest(a_state(0)) is None
    assert capsys.readouterr().err.endswith("there is no other, so nothing is restored\n")


def test_damaged_one_stands_in_nobodys_way(copy):
    """It does not count as kept, its number can be saved again, and it is still there to be looked at."""
    tear(copy, 3)
    with Checkpoints(copy, keep=1) as checkpoints:
        assert checkpoints.newest(a_state(0)).step == 2
        assert kept_steps(copy) == [1, 2, 3]  # reading changes nothing
        checkpoints.save(3, a_state(33), {"again": True})
    assert sorted(path.name for path in copy.iterdir()) == ["3", "3.damaged"]
    with Checkpoints(copy, keep=1) as checkpoints:
        restored = checkpoints.newest(a_state(0))
        assert (restored.step, restored.position) == (3, {"again": True})
        assert_same(restored.state, a_state(33))


@pytest.mark.parametrize("of_an_earlier_version", [False, True])
def test_a_folder_that_was_renamed_is_named(copy, of_an_earlier_version):
    """Under its number it goes on."""
    if of_an_earlier_version:
        path = copy / "3/position/metadata"
        record = {name: part for name, part in json.loads(path.read_text()).items() if name not in ("step", "sha256")}
        digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({**record, "sha256": digest}))
    (copy / "3").rename(copy / "9")
    with (
        Checkpoints(copy) as checkpoints,
        pytest.raises(InputError, match="/9: holds the checkpoint of step 3; rename"),
    ):
        checkpoints.newest(a_state(0))
    (copy / "9").rename(copy / "3")
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.newest(a_state(0)).step == 3


def test_other_things_in_the_folder(copy, capsys):
    """A write that was killed, a directory with a number but nothing in it, and what somebody left there."""
    for name in ("4.orbax-checkpoint-tmp/state", "9", "notes", "007"):
        (copy / name).mkdir(parents=True)
    (copy / "8").write_text("a file")
    with Checkpoints(copy, keep=5) as checkpoints:
        assert checkpoints.newest(a_state(0)).step == 3
        checkpoints.save(4, a_state(4), {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("damaged") == 1
    assert {path.name for path in copy.iterdir()} == {"1", "2", "3", "4", "9.damaged", "8", "notes", "007"}


# ------------------------------------------------------------------------------------------------------------- the disk


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write more into any file: as on a full disk, but for this process only."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_is_said_and_earlier_checkpoints_stay(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, a_state(1), {})
        with (
            files_of_at_most(10_000),
            pytest.raises(InputError, match=r"write the checkpoint of step 2: File too large; make room .*newest is 1"),
        ):
            checkpoints.save(2, a_state(2), {})
        assert kept_steps(tmp_path) == [1]
        checkpoints.save(2, a_state(2), {})  # there is room again
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.steps() == [2]
        assert_same(checkpoints.newest(a_state(0)).state, a_state(2))


def test_failed_save_is_said_beside_the_error_on_its_way(tmp_path, monkeypatch, capsys):
    def no_room(self: Checkpoints) -> None:
        raise InputError("no room")

    monkeypatch.setattr(Checkpoints, "wait", no_room)
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "error: no room\n"
    with pytest.raises(InputError, match="no room"), Checkpoints(tmp_path):
        pass


@pytest.mark.parametrize(
    ("name", "message"), [("file", "is a file; checkpoints need a directory"), ("file/below", "Not a directory")]
)
def test_folder_that_is_no_folder_is_refused(tmp_path, name, message):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=message):
        Checkpoints(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


# Save 1; then, for each disk trouble, a save that is refused, and another when it is over. It prints the refusals.
TROUBLED = """
import json, sys
sys.path.insert(0, {tests!r})
from test_checkpoint import *
folder, errors = Path("checkpoints"), []
with Checkpoints(folder, keep=1) as checkpoints:
    checkpoints.save(1, a_state(1, 1000), {{}})
for step, (trouble, remedy) in enumerate({troubles!r}, start=2):
    exec(trouble)
    try:
        with Checkpoints(folder, keep=1) as checkpoints:
            checkpoints.newest(a_state(0, 1000))
            checkpoints.save(step, a_state(step, 1000), {{}})
    except InputError as error:
        errors.append(str(error))
    exec(remedy)
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == [str(step - 1)]
    with Checkpoints(folder, keep=1) as checkpoints:
        assert_same(checkpoints.newest(a_state(0, 1000)).state, a_state(step - 1, 1000))
        checkpoints.save(step, a_state(step, 1000), {{}})
    with Checkpoints(folder, keep=1) as checkpoints:
        assert_same(checkpoints.newest(a_state(0, 1000)).state, a_state(step, 1000))
print(json.dumps(errors))
"""


def refusals(folder: Path, troubles: list[tuple[str, str]], *, within: Sequence[str] = ()) -> tuple[list[str], str]:
    """The errors, and what else was said, of `TROUBLED` in a process of its own."""
    code = TROUBLED.format(tests=str(ROOT / "tests"), troubles=troubles)
    done = subprocess.run(
        [*within, sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout), done.stderr.decode()


def test_disk_without_room_and_one_that_became_read_only(tmp_path):
    """On a disk of the process's own."""
    mount = f"mount -t tmpfs -o size=4m none {tmp_path} && cd {tmp_path} && exec "
    within = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount + '"$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*within, "true"], check=False).returncode:
        pytest.skip("nobody may mount a disk of their own here")
    fill = "Path('big').write_bytes(bytes(shutil.disk_usage('.').free - (1 << 19)))"
    remount = f"subprocess.run(['mount', '-o', 'remount,{{}}', {str(tmp_path)!r}], check=True)"
    troubles = [(fill, "Path('big').unlink()"), (remount.format("ro"), remount.format("rw"))]
    (full, read_only), said = refusals(tmp_path, troubles, within=within)
    assert "cannot write the checkpoint of step 2: No space left on device; make room and --resume" in full
    assert full.endswith("earlier checkpoints are kept, the newest is 1")
    assert "cannot write the checkpoint of step 3: Read-only file system; make it writable and --resume" in read_only
    assert read_only.endswith("earlier checkpoints are kept, the newest is 2")
    assert said == ""


def test_disk_that_fills_while_a_checkpoint_is_written(tmp_path):
    """There was room when the save began; the error is that of the threads which write."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, -1))"
    late = f"check = Checkpoints._check_room; Checkpoints._check_room = lambda *_: {limit.format(9000)}"
    over = f"{limit.format(-1)}; Checkpoints._check_room = check"
    (error,), _ = refusals(tmp_path, [(late, over)])
    assert error.endswith(
        "write a checkpoint: File too large; make room and --resume: earlier checkpoints are kept, the newest is 1"
    )


# ------------------------------------------------------------------------------------------------------------ processes

HOST = """
import sys
sys.path.insert(0, {tests!r})
from test_checkpoint import *
from e2wm_jax.sharding import join_hosts
join_hosts()
from jax.experimental.multihost_utils import sync_global_devices
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
def spread(state):
    def place(x):
        split = PartitionSpec(None, None, "data") if x.ndim == 3 and x.shape[2] % 8 == 0 else PartitionSpec()
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, split), lambda index: np.asarray(x)[index])
    return jax.tree.map(place, state)
folder = Path("checkpoints")
with Checkpoints(folder, keep=5) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, spread(a_state(step)), position(step))
if jax.process_index() == 1:
    tear(folder, 3)
sync_global_devices("torn")
with Checkpoints(folder, keep=1) as checkpoints:
    restored = checkpoints.newest(spread(a_state(0)))
    assert (restored.step, restored.position) == (2, position(2))
    for one, other in zip(jax.tree.leaves(restored.state), jax.tree.leaves(spread(a_state(2))), strict=True):
        assert one.sharding == other.sharding
        for part, wanted in zip(one.addressable_shards, other.addressable_shards, strict=True):
            assert np.asarray(part.data).tobytes() == np.asarray(wanted.data).tobytes()
    checkpoints.save(3, spread(a_state(33)), {{}})
"""


@pytest.mark.slow
def test_two_processes_save_and_restore_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    words = [sys.executable, "-c", HOST.format(tests=str(ROOT / "tests"))]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    hosts = [subprocess.Popen(words, env={**environment, "JAX_PROCESS_ID": str(index)}, **pipes) for index in range(2)]
    said = [host.communicate(timeout=180)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert ["damaged checkpoint" in text for text in said] == [True, False]  # only the first process speaks
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "3.damaged"]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert_same(checkpoints.newest(a_state(0)).state, a_state(33))
