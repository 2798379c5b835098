"""What a command says while it works, on stderr: bars, messages, and what takes long.

On a terminal bars and activities are drawn over and over; in a log each state is a line, about every ten seconds.
Worker processes are silent about activities.
"""

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

_PATIENCE = 1.5  # seconds that something may take before a terminal shows it
_SILENCE = 8.0  # seconds without a line of a log, before what takes long is said there
_LOG_EVERY = 10.0  # seconds between two lines of a bar in a log
_FRAME = 0.2  # seconds between two pictures on a terminal
_WHEEL = "|/-\\"
_WIDEST = 100  # columns of a bar
_ROWS = 20  # of bars; tqdm draws none on a terminal that does not know its size


class _Lines:
    """stderr as a file for tqdm where it is no terminal: each state of a bar is a line of its own."""

    last = ""

    def write(self, text: str) -> None:
        if (line := text.strip()) and line != self.last:
            self.last = line
            say(line)

    def flush(self) -> None:
        """`say` does."""


def progress_bar(name: str, total: int | None, unit: str) -> Any:
    """A tqdm bar; in a log file it prints at most every ten seconds."""
    terminal = _is_terminal()
    interval = 0.1 if terminal else _LOG_EVERY
    return tqdm(
        total=total,
        desc=name,
        unit=unit,
        file=sys.stderr if terminal else _Lines(),
        mininterval=interval,
        maxinterval=interval,
        ncols=_columns(),
        nrows=_ROWS,
    )


def say(message: str) -> None:
    """One line for the user on stderr, above any bar; stdout is for results."""
    _NARRATOR.spoke = time.monotonic()
    if _is_terminal():
        tqdm.write(message, file=sys.stderr)
    elif sys.stderr is not None and not sys.stderr.closed:
        print(message, file=sys.stderr, flush=True)


_SAID: ContextVar[set[str] | None] = ContextVar("said", default=None)  # in the run of one command


@contextmanager
def one_run() -> Iterator[None]:
    """Within, `say_once` says the same thing once; in the next run again."""
    token = _SAID.set(set())
    try:
        yield
    finally:
        _SAID.reset(token)


def say_once(message: str) -> None:
    """`say`, but for what was said in the same `one_run`; outside of any, each time."""
    said = _SAID.get()
    if said is None or message not in said:
        say(message)
    if said is not None:
        said.add(message)


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Say what a command is doing if it takes more than a moment: with a wheel on a terminal, else as lines of a log.

    Args:
        doing: in words that continue "the program is ...": "loading the model".
    """
    activity = begin(doing)
    try:
        yield
    finally:
        end(activity)


@dataclass(eq=False)
class Activity:
    """Something that may take long."""

    doing: str
    started: float = field(default_factory=time.monotonic)
    said: bool = False  # in a log
    bar: Any = None


def begin(doing: str) -> Activity | None:
    """`busy` for callers that are told of a beginning and of an end; None in a worker process."""
    if multiprocessing.parent_process() is not None or sys.stderr is None:
        return None
    return _NARRATOR.begin(Activity(doing))


def end(activity: Activity | None) -> None:
    """What `begin` began is done."""
    if activity is not None:
        _NARRATOR.end(activity)


class _Narrator:
    """A thread that speaks of the activities of this process; it sleeps while there are none."""

    def __init__(self) -> None:
        self.spoke = time.monotonic()  # when there was a line last
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._activities: list[Activity] = []
        self._thread: threading.Thread | None = None

    def begin(self, activity: Activity) -> Activity:
        with self._lock:
            self._activities.append(activity)
            self._some.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="narrator", daemon=True)
                self._thread.start()
        return activity

    def end(self, activity: Activity) -> None:
        with self._lock:
            self._activities.remove(activity)
            if not self._activities:
                self._some.clear()
            if activity.bar is not None:
                activity.bar.close()

    def _run(self) -> None:
        with suppress(OSError, ValueError):  # nobody listens: stderr is closed
            while self._some.wait():
                time.sleep(_FRAME)
                with self._lock:
                    for activity in self._activities[-1:]:  # of activities in one another, the innermost
                        _speak(activity)


_NARRATOR = _Narrator()


def _speak(activity: Activity) -> None:
    now = time.monotonic()
    seconds = now - activity.started
    if not _is_terminal():
        if now - _NARRATOR.spoke >= _SILENCE:
            say(f"{activity.doing} ... {seconds:.0f} s" if activity.said else f"{activity.doing} ...")
            activity.said = True
    elif seconds >= _PATIENCE:
        if activity.bar is None:
            activity.bar = tqdm(bar_format="{desc}", file=sys.stderr, leave=False, ncols=_columns(), nrows=_ROWS)
        wheel = _WHEEL[int(seconds / _FRAME) % len(_WHEEL)]
        activity.bar.set_description_str(f"{wheel} {activity.doing}, {seconds:.0f} s")


def _columns() -> int:
    """Of a bar; one that is wider than the terminal would begin a new line at every state."""
    with suppress(AttributeError, OSError, ValueError):  # no stderr, or one that is no file
        return min(_WIDEST, os.get_terminal_size(sys.stderr.fileno()).columns or _WIDEST)
    return _WIDEST


def _is_terminal() -> bool:
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
