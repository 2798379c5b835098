"""Trackers: what TensorBoard reads back, what the services are told, and that none of them can stop a training."""

import importlib.util
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.train.watch import trackers as module
from e2wm_jax.train.watch.trackers import TENSORBOARD_FOLDER, Names, check_trackers, trackers

SETTINGS = {"model": "tiny", "out": Path("runs/one"), "lora": {"rank": 8}}


# ---------------------------------------------------------------------------------------------------------- TensorBoard


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) bit by bit, then masked as TFRecord does."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    """A TFRecord file: length uint64, its masked CRC, the bytes, their masked CRC."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        head, body = data[at : at + 8], data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 8) == (crc32c(head),)
        assert struct.unpack_from("<I", data, at + 12 + length) == (crc32c(body),)
        yield body
        at += length + 16


def shown(folder: Path) -> tuple[dict[tuple[str, int], float], str]:
    """What TensorBoard shows: scalars by (name, step), after a start at step s none of before from s on; and texts."""
    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")
    scalars: dict[tuple[str, int], float] = {}
    text = ""
    for path in sorted(folder.iterdir()):
        for record in records(path):
            event = event_pb2.Event.FromString(record)
            if event.HasField("session_log"):
                assert event.session_log.status == event_pb2.SessionLog.START
                scalars = {key: value for key, value in scalars.items() if key[1] < event.step}
            for value in event.summary.value:
                if value.HasField("tensor"):
                    text += b"".join(value.tensor.string_val).decode()
                else:
                    scalars[value.tag, event.step] = value.simple_value
    return scalars, text


def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with trackers(["tensorboard"], tmp_path, SETTINGS) as log:
        for step in range(1, 6):
            log(step, {"loss": float(step), "tokens_per_second": 7.0})
    with trackers(["tensorboard"], tmp_path, SETTINGS) as log:  # its last checkpoint was after step 3
        for step in range(4, 7):
            log(step, {"loss": 10.0 * step})
    scalars, text = shown(tmp_path / "tensorboard")
    losses = {step: value for (name, step), value in scalars.items() if name == "loss"}
    assert losses == {1: 1, 2: 2, 3: 3, 4: 40, 5: 50, 6: 60}
    assert {step for name, step in scalars if name == "tokens_per_second"} == {1, 2, 3}
    assert text.count('"model": "tiny"') == 1
    assert '"out": "runs/one"' in text


def test_a_run_that_logs_nothing_writes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with trackers(["tensorboard"], tmp_path, SETTINGS):
        pass
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- services


class Service:
    """Stands for wandb or trackio: remembers runs by id or name, and what was logged."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished: list[int | None] = []
        self.step = 0
        self.fails_at: int | None = None

    def init(self, **options: Any) -> "Service":
        print("a service likes to talk")
        self.inits.append(options)
        return self

    def log(self, numbers: dict[str, float], step: int) -> None:
        if step == self.fails_at:
            raise OSError("the line is dead\nlong trace")
        self.logged.append((step, numbers))
        self.step = step

    def finish(self, exit_code: int | None = None) -> None:
        self.finished.append(exit_code)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str) -> Service:
    service, made = Service(), ModuleType(name)
    made.init, made.finish = service.init, service.finish  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, made)
    for variable in ("WANDB_PROJECT", "WANDB_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    return service


def test_wandb_is_told_which_run_it_is_and_no_step_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = stand_in(monkeypatch, "wandb")
    with trackers(["wandb"], tmp_path, SETTINGS) as log:
        for step in (1, 2, 3):
            log(step, {"loss": float(step)})
    service.step += 1  # as a resumed run of wandb has it: the step that comes next
    with trackers(["wandb"], tmp_path, SETTINGS) as log:
        for step in (3, 4):
            log(step, {"loss": float(step)})
    assert service.logged == [(step, {"loss": float(step)}) for step in (1, 2, 3, 4)]
    assert service.finished == [0, 0]
    first, second = service.inits
    assert first == second
    expected = {"project": "e2wm", "name": tmp_path.name, "resume": "allow", "dir": str(tmp_path)}
    assert expected.items() <= first.items()
    assert first["config"] == {"model": "tiny", "out": "runs/one", "lora": {"rank": 8}}
    assert len(first["id"]) == 16
    assert capsys.readouterr().out == ""  # stdout is for results


def test_a_run_has_the_name_and_the_project_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    services = {name: stand_in(monkeypatch, name) for name in ("wandb", "trackio")}
    monkeypatch.setenv("WANDB_PROJECT", "the-environment's")
    with trackers(["wandb", "trackio", "tensorboard"], tmp_path, SETTINGS, Names("first try", "kitchen")) as log:
        log(1, {"loss": 1.0})
    for service in services.values():
        assert [(init["name"], init["project"]) for init in service.inits] == [("first try", "kitchen")]
    assert shown(tmp_path / TENSORBOARD_FOLDER / "first try")[0] == {("loss", 1): 1.0}


def test_another_folder_is_another_run_and_a_moved_one_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = stand_in(monkeypatch, "trackio")
    one, other, moved = tmp_path / "one", tmp_path / "other", tmp_path / "moved"
    one.mkdir()
    other.mkdir()
    for folder in (one, other, moved):
        if folder is moved:
            one.rename(moved)
        with trackers(["trackio"], folder, SETTINGS) as log:
            log(1, {"loss": 1.0})
    first, second, third = service.inits
    assert first == third  # trackio knows a run by its name
    assert (first["project"], first["resume"]) == ("e2wm", "allow")
    assert [options["name"].rpartition("-")[0] for options in service.inits] == ["one", "other", "one"]
    assert first["name"].rpartition("-")[2] != second["name"].rpartition("-")[2]
    assert service.logged == [(1, {"loss": 1.0})] * 3
    assert len(service.finished) == 3


def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb, trackio = stand_in(monkeypatch, "wandb"), stand_in(monkeypatch, "trackio")
    wandb.fails_at = 2
    with trackers(["wandb", "trackio"], tmp_path, SETTINGS) as log:
        for step in (1, 2, 3):
            log(step, {"loss": 0.5})
    assert [step for step, _ in wandb.logged] == [1]
    assert [step for step, _ in trackio.logged] == [1, 2, 3]
    assert (wandb.finished, trackio.finished) == ([1], [None])
    said = capsys.readouterr().err
    assert said.count("wandb: the line is dead; nothing more is logged there") == 1
    assert "long trace" not in said


def test_a_run_that_dies_is_said_to_have_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = stand_in(monkeypatch, "wandb")
    with pytest.raises(KeyboardInterrupt), trackers(["wandb"], tmp_path, SETTINGS):
        raise KeyboardInterrupt
    assert service.finished == [1]


def test_a_service_that_cannot_start_is_an_input_error_and_closes_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wandb, trackio = stand_in(monkeypatch, "wandb"), stand_in(monkeypatch, "trackio")

    def refuse(**_: Any) -> None:
        raise RuntimeError("no API key; run wandb login")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with (
        pytest.raises(InputError, match="--trackers wandb: cannot start: no API key; run wandb login"),
        trackers(["trackio", "wandb"], tmp_path, SETTINGS),
    ):
        pytest.fail("the run must not start")
    assert (wandb.finished, trackio.finished) == ([], [None])


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("tensorboard", "tensorboardX", "trackers"), ("wandb", "wandb", "wandb"), ("trackio", "trackio", "trackers")],
)
def test_a_missing_package_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: Any, package: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, package, raising=False)
    found = importlib.util.find_spec
    finder = SimpleNamespace(find_spec=lambda asked: None if asked == package else found(asked))
    monkeypatch.setattr(module.importlib, "util", finder)
    with pytest.raises(InputError, match=rf"{name}: {package} is not installed; pip install 'e2wm_jax\[{extra}\]'"):
        check_trackers([name])
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_named_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "wandb")
    with pytest.raises(InputError, match="--trackers wandb: named twice"):
        check_trackers(["wandb", "wandb"])
    check_trackers([])
    check_trackers(["wandb"])


def test_none_is_no_tracker(tmp_path: Path) -> None:
    check_trackers(["none"])
    with trackers(["none"], tmp_path, SETTINGS) as log:
        log(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="--trackers none wandb: none stands alone"):
        check_trackers(["none", "wandb"])


def test_extras_install_what_the_trackers_import() -> None:
    tomllib = importlib.import_module("tomllib")
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for kind in module._TRACKERS.values():
        assert any(entry.startswith(kind.module) for entry in extras[kind.extra]), json.dumps(extras)
