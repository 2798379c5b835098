"""Where compiled programs are kept from run to run: jax's persistent cache, in the user's cache folder."""

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path

FOLDER = "JAX_COMPILATION_CACHE_DIR"  # jax's own variables
_ENABLED = "JAX_ENABLE_COMPILATION_CACHE"
_LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"

_LARGEST = 4 * 2**30  # bytes; beyond them the entries unused for longest go, down to half of them


def keep_compiled(wanted: bool = True) -> None:
    """Let jax keep what it compiles, in this process and its children; to be called before jax is imported.

    A folder that the environment names stays as it is.  Where there is no folder to write to, nothing is kept.

    Args:
        wanted: False turns the cache off, the environment's too.
    """
    if not wanted:
        os.environ[_ENABLED] = "0"
    if not wanted or FOLDER in os.environ:
        return
    folder = default_folder()
    if folder is None or not _is_writable(folder):
        return
    with contextlib.suppress(OSError):
        _prune(folder)
    os.environ[FOLDER] = str(folder)
    os.environ.setdefault(_LEAST_SECONDS, "0.1")


def folder_in_use() -> Path | None:
    """Where this process keeps what it compiles, by its environment."""
    off = os.environ.get(_ENABLED, "1").lower() in ("0", "false", "no", "off", "f", "n")
    return None if off or not os.environ.get(FOLDER) else Path(os.environ[FOLDER])


def default_folder() -> Path | None:
    """$XDG_CACHE_HOME/e2wm/compiled or what the system has in its place, a folder for each kind of processor: XLA
    compiles for the one that it runs on, and homes are shared.  None where the user has no home."""
    try:
        if sys.platform == "darwin":
            base = Path.home() / "Library/Caches"
        elif sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home())
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "e2wm/compiled" / f"{platform.machine()}-{_processor()}"


def size(folder: Path) -> int:
    """Bytes in it."""
    return sum(entry.stat().st_size for entry in _entries(folder))


def _processor() -> str:
    """A digest of what the processor can do, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    known = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    return hashlib.sha256("\n".join(known[:2]).encode()).hexdigest()[:8]


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    return [entry for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False)]


def _prune(folder: Path) -> None:
    found = [(entry.stat(), entry.path) for entry in _entries(folder)]
    total = sum(state.st_size for state, _ in found)
    if total <= _LARGEST:
        return
    for state, path in sorted(found, key=lambda one: max(one[0].st_atime, one[0].st_mtime)):
        Path(path).unlink(missing_ok=True)
        total -= state.st_size
        if total <= _LARGEST // 2:
            return
