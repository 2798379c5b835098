"""numba's compiler, with a cache on disk that knows which sources it was made from.

numba's own cache looks at the file of the function alone: after a change in what the function calls, or in a constant
it reads from another module, it would go on running the old code.
"""

import fcntl
import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numba
from numba.core import event
from numba.core.caching import FunctionCache, IndexDataCacheFile

from e2wm_jax.running.progress import Activity, begin, end

# What compiled code is made of: the rules and tables of the household, this folder, and the searches.
_FOLDERS = (
    "worlds/household",
    "worlds/household/homes",
    "worlds/household/native",
    "experience/search",
    "experience/search/native",
)


def _digest() -> str:
    package = Path(__file__).parents[3]
    sources = (path for folder in _FOLDERS for path in sorted((package / folder).glob("*.py")))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


_STAMP = _digest()


class _Announcer(event.Listener):
    """Says that the engine is being compiled while it is; functions are compiled within functions."""

    def __init__(self) -> None:
        self.depth = 0
        self.activity: Activity | None = None

    def on_start(self, event: Any) -> None:
        self.depth += 1
        if self.depth == 1:
            self.activity = begin("compiling the array engine, once on this machine")

    def on_end(self, event: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            end(self.activity)
            if sys.exception() is not None:  # nothing will be saved
                _TURN.end()


event.register("numba:compile", _Announcer())


class _Turn:
    """Of the processes that need the same code at the same time one compiles it; the others wait, then read it."""

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None
        self.owner: object = None  # the cache of the function that the compilation began with

    def begin(self, owner: object, path: Path) -> None:
        """Wait until no other process compiles. In the middle of a compilation: nothing."""
        if self.file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file, self.owner = path.open("ab"), owner
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting = begin("waiting for another process that compiles the array engine")
                try:
                    fcntl.flock(self.file, fcntl.LOCK_EX)
                except BaseException:
                    self.end()
                    raise
                finally:
                    end(waiting)

    def end(self) -> None:
        """Let the others go on."""
        if self.file is not None:
            self.file.close()
        self.file = self.owner = None


_TURN = _Turn()


class _Cache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        # The stamp is in the name too: an index of other sources may name classes that are no longer there.
        name = f"{self._impl.filename_base}-{_STAMP[:12]}"
        self._cache_file = IndexDataCacheFile(self._cache_path, name, _STAMP)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = super().load_overload(sig, target_context)
        if found is None and _TURN.file is None:
            with suppress(OSError):  # a file system that has no locks: each process compiles
                _TURN.begin(self, Path(self._cache_path) / "compiling.lock")
            found = super().load_overload(sig, target_context)
            if found is not None:
                _TURN.end()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        super().save_overload(sig, data)
        if _TURN.owner is self:
            _TURN.end()


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call, once per machine; it releases the interpreter's lock."""
    return _cached(function, numba.njit(nogil=True))


def inner(function: Callable[..., Any]) -> Any:
    """`jit` of a function for compiled code alone: without the entries for Python and C, which take as long to compile
    as a small function does. A call from Python would crash."""
    return _cached(function, numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True))


def _cached(function: Callable[..., Any], compiler: Callable[..., Any]) -> Any:
    dispatcher = compiler(function)
    dispatcher._cache = _Cache(function)
    return dispatcher
