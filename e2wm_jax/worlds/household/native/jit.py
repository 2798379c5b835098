"""numba's compiler, with a cache on disk that knows which sources it was made from.

numba's own cache looks at the file of the function alone: after a change in what the function calls, or in a constant
it reads from another module, it would go on running the old code.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


event.register("numba:compile", _Announcer())


class _Cache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        # The stamp is in the name too: an index of other sources may name classes that are no longer there.
        name = f"{self._impl.filename_base}-{_STAMP[:12]}"
        self._cache_file = IndexDataCacheFile(self._cache_path, name, _STAMP)


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
