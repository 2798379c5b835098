"""What all benchmarks share: candidates in turn, ratios within a round, and the processes of their sides."""

import os
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.bench.harness import in_turn, print_table, ratio, ratio_range, seconds_in_turn, seconds_of, spread
from e2wm_jax.bench.process import Peer
from e2wm_jax.errors import InputError

SIDES = """
import os
from e2wm_jax.errors import InputError

def ours(case):
    def leave():
        os._exit(3)

    def say(text):
        print("what an operation prints is no answer")
        return {"text": text + case["end"], "seconds": 2.5}

    def about():
        return {"cores": len(os.sched_getaffinity(0)), "threads": os.environ["OMP_NUM_THREADS"],
                "flags": os.environ["XLA_FLAGS"], "platforms": os.environ["JAX_PLATFORMS"]}

    return {"say": say, "about": about, "leave": leave}

def refuses(case):
    raise InputError("--shape x: too large; give a smaller one")

def cannot(case):
    print("a library that talks")
    raise ValueError("no such layer\\nand more")

SIDES = {"ours": ours, "refuses": refuses, "cannot": cannot}
"""


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "sides_of_a_test.py").write_text(SIDES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return "sides_of_a_test"


def test_a_process_answers_and_its_end_is_said(sides: str) -> None:
    with Peer("ours", {"end": "!", "cores": 1, "devices": 3, "out": Path("a")}, module=sides) as peer:
        assert peer.ask("say", text="ü") == {"text": "ü!", "seconds": 2.5}
        about = peer.ask("about")
        assert about.pop("seconds") >= 0
        flags = about.pop("flags")
        assert about == {"cores": 1, "threads": "1", "platforms": "cpu"}
        assert flags.endswith("--xla_force_host_platform_device_count=3")
        with pytest.raises(RuntimeError, match="the process of ours ended with code 3, see above"):
            peer.ask("leave")


def test_what_a_side_refuses_or_cannot_do_is_said(sides: str, capfd: Any) -> None:
    with Peer("refuses", {}, module=sides) as peer, pytest.raises(InputError, match="--shape x: too large"):
        peer.ask("describe")
    with Peer("cannot", {}, module=sides) as peer:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="ValueError: no such layer"):
                peer.ask("prepare")
    assert "Traceback" not in capfd.readouterr().err


def test_candidates_take_turns_and_ratios_are_of_a_round() -> None:
    """The second round is slow for both; one that is slow of itself is not helped by it."""
    asked: list[str] = []
    times = {"a": iter([1.0, 10.0, 1.0]), "b": iter([2.0, 20.0, 4.0])}

    def measure(name: str) -> dict[str, Any]:
        asked.append(name)
        return {"seconds": next(times[name]), "more": 1}

    seconds = seconds_in_turn({name: lambda name=name: measure(name) for name in times}, 3, "bench x")
    assert asked == ["a", "b"] * 3
    assert seconds == {"a": [1, 10, 1], "b": [2, 20, 4]}
    assert ratio(seconds["b"], seconds["a"]) == 2
    assert ratio_range(seconds["b"], seconds["a"]) == [2, 4]
    assert spread(seconds["b"]) == {"seconds": 4, "rounds": [2, 20, 4]}
    assert in_turn({}, 2) == {}
    assert seconds_of(lambda: sum(range(10)), "cpu") >= 0


def test_a_table_on_stdout(capsys: Any) -> None:
    print_table(["", "ms", "x"], [["first", 1.23456, None], ["second", 123456.7, 3]])
    assert capsys.readouterr().out == "            ms  x\nfirst    1.235\nsecond  123457  3\n"
