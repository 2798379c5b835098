"""How every benchmark measures: candidates in turn, round by round, and what is said of the seconds of each.

A machine that is slow for a while is slow for all of a round; so a ratio is the median over rounds of the ratio within
a round.  A candidate is a name and a function that measures it once; `process.Peer.ask` is one.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Literal

from e2wm_jax.bench.process import Answer
from e2wm_jax.errors import check_at_least
from e2wm_jax.running.progress import say

Measure = Callable[[], Answer]
Seconds = dict[str, list[float]]  # by what was measured together, of each round
Clock = Literal["wall", "cpu"]
LEAST_SECONDS = 0.05  # of `time_call`: what is faster is called several times
PRODUCT = 2048  # rows and columns of the matrices of `product_rate`


def check_least(settings: Any, **least: int) -> None:
    """Refuse settings below their least values, by the names of the fields; of a field of several, each.

    Raises:
        InputError: naming the first such flag, its value and the least.
    """
    for name, value in least.items():
        given = getattr(settings, name)
        flag = f"--{name.replace('_', '-')}"
        check_at_least(*((flag, each, value) for each in (given if isinstance(given, tuple) else [given])))


def in_turn(measures: Mapping[str, Measure], rounds: int, name: str = "") -> dict[str, list[Answer]]:
    """The answers of every round; with a ``name`` each round is announced."""
    answers: dict[str, list[Answer]] = {key: [] for key in measures}
    for number in range(rounds):
        if name:
            say(f"{name}: round {number + 1} of {rounds}")
        for key, measure in measures.items():
            answers[key].append(measure())
    return answers


def seconds_in_turn(measures: Mapping[str, Measure], rounds: int, name: str) -> Seconds:
    """The seconds of every round."""
    found = in_turn(measures, rounds, name)
    return {key: [answer["seconds"] for answer in answers] for key, answers in found.items()}


def best_of(rounds: int, *measures: Measure) -> list[Answer]:
    """The fastest answer of each measure, after one that compiles."""
    numbered = {str(number): measure for number, measure in enumerate(measures)}
    in_turn(numbered, 1)
    return [min(answers, key=lambda answer: answer["seconds"]) for answers in in_turn(numbered, rounds).values()]


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """The median over the rounds, and the seconds of each."""
    return {"seconds": round(median(seconds), 5), "rounds": [round(one, 5) for one in seconds]}


def ratio(seconds: Sequence[float], base: Sequence[float], digits: int = 3) -> float:
    """The median over rounds of the ratio within a round."""
    return round(median(a / b for a, b in zip(seconds, base, strict=True)), digits)


def ratio_range(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    """The least and the greatest ratio within a round."""
    ratios = [a / b for a, b in zip(seconds, base, strict=True)]
    return [round(min(ratios), 3), round(max(ratios), 3)]


def seconds_of(function: Callable[[], Any], clock: Clock = "wall") -> float:
    """How long it takes; by the clock "cpu", of this process alone."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    before = now()
    function()
    return now() - before


def time_call(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, as the mean of as many as fill `LEAST_SECONDS`, and the last one's result."""
    calls, started = 0, time.perf_counter()
    while True:
        result = call()
        calls += 1
        if (seconds := time.perf_counter() - started) >= LEAST_SECONDS:
            return seconds / calls, result


def product_rate(multiply: Callable[[], Any], clock: Clock) -> float:
    """GFLOP/s of a product of two `PRODUCT` x `PRODUCT` matrices: what a library can do at most."""
    return round(2e-9 * PRODUCT**3 / min(seconds_of(multiply, clock) for _ in range(4)), 1)


def watch_memory() -> int:
    """Forget the most memory that the process has held; returns what it holds (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return most_memory()


def most_memory() -> int:
    """Most bytes that the process has held since `watch_memory` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def circumstances(settings: Any) -> dict[str, Any]:
    """What a report says of the run itself: all settings, the processor and the load of the machine."""
    out = None if settings.out is None else str(settings.out)
    load = [round(load, 2) for load in os.getloadavg()]
    return {"settings": {**asdict(settings), "out": out}, "processor": _processor(), "load": load}


def _processor() -> str:
    """The CPU's name and the cores that may be used, such as "AMD EPYC 7B13, 2 cores"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # elsewhere than on Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, "") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name}, {cores} core{'s' * (cores != 1)}"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout, numbers to the right, names and a text at the end to the left; None is an empty cell."""
    cells = [list(headers), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    left = {0} | ({len(headers) - 1} if any(isinstance(row[-1], str) for row in rows) else set())
    for row in cells:
        padded = [f"{cell:<{widths[n]}}" if n in left else f"{cell:>{widths[n]}}" for n, cell in enumerate(row)]
        print("  ".join(padded).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return "" if value is None else str(value)
