"""What jax compiles: said while it takes long, and its seconds counted, by the events that jax reports.

An event begins as a scalar (its time) and ends as a duration, both under the function's name.  A jax that reports
neither leaves the seconds at zero and nothing said.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from e2wm_jax.running import progress

_EVENTS = tuple(
    f"/jax/core/compile/{part}_duration" for part in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


class _Watch(threading.local):
    """Of one thread: how deep in events it is (functions are traced inside one another), and what is said of it."""

    depth = 0
    activity: progress.Activity | None = None
    called: str | None = None  # what is compiled, in better words than its function's name


class _Listener:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.speaks = False
        self._watch = _Watch()
        self._lock = threading.Lock()

    def begins(self, event: str, value: float, **about: Any) -> None:
        del value
        if event in _EVENTS:
            self._watch.depth += 1
            if self._watch.depth == 1 and self.speaks:
                self._watch.activity = progress.begin(
                    f"compiling {self._watch.called or _plain(about.get('fun_name'))}"
                )

    @contextmanager
    def calling(self, what: str) -> Iterator[None]:
        before, self._watch.called = self._watch.called, what
        try:
            yield
        finally:
            self._watch.called = before

    def ends(self, event: str, duration_secs: float, **about: Any) -> None:
        del about
        if event in _EVENTS and self._watch.depth:
            self._watch.depth -= 1
            if self._watch.depth == 0:
                with self._lock:
                    self.seconds += duration_secs
                progress.end(self._watch.activity)
                self._watch.activity = None


_LISTENER = _Listener()
_REGISTERED: list[_Listener] = []  # at most once in a process


def compile_seconds() -> float:
    """Seconds that all threads of this process have spent in tracing, lowering and compiling since the first call."""
    _listen()
    return _LISTENER.seconds


def compiling(what: str) -> AbstractContextManager[None]:
    """What this thread compiles meanwhile is called so: "compiling WHAT"."""
    return _LISTENER.calling(what)


def say_compilations() -> None:
    """From now on, say on stderr what is compiled, where it takes more than a moment; imports jax."""
    _listen()
    _LISTENER.speaks = True


def _listen() -> None:
    if _REGISTERED:
        return
    import jax.monitoring

    _REGISTERED.append(_LISTENER)
    try:
        jax.monitoring.register_scalar_listener(_LISTENER.begins)
        jax.monitoring.register_event_duration_secs_listener(_LISTENER.ends)
    except AttributeError:  # a jax without such listeners
        return


def _plain(name: Any) -> str:
    """A function's name as its source has it."""
    return str(name or "a function").removeprefix("jit_").removeprefix("jit(").removesuffix(")")
