"""Exceptions that are no fault of the program, as one line each: memory, disks, paths that were named, devices."""

import errno
import os
import re
from pathlib import Path
from typing import Any

from e2wm_jax.errors import WAYS_OUT, InputError, disk_error, first_line
from e2wm_jax.options.parsing import options_of
from e2wm_jax.running.environment import device_error, named_paths

# Also of XLA, of the CUDA driver, and of a worker process, whose traceback is the text of an error.
_NO_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|CUDA_ERROR_OUT_OF_MEMORY|(^|\n)[\w.]*MemoryError\b")
_LOWER = (  # options by which a command needs less of it
    *("batch-size", "eval-batch-size", "regularizer-batch-size", "search-batch", "max-length", "max-new-tokens"),
    *("beams", "length", "workers"),
)
_SMALLER = {"base-dtype": "--base-dtype bfloat16", "remat": "--remat layers", "mesh": "--mesh fsdp=N"}
_LONGEST = 200  # characters of what a library says


def explained(error: Exception, settings: Any) -> Exception | None:
    """What the user is to be told in place of an exception that a command with these settings raised.

    Returns:
        An InputError, for what he can change; a MemoryError, naming what to lower; None for one that says it itself,
        and for a fault of the program, which is to be seen with its traceback.
    """
    if isinstance(error, InputError | BrokenPipeError | FloatingPointError):
        return None
    if (line := _of_a_path(error, settings) or _of_a_disk(error, settings)) is not None:
        return InputError(line)
    if _is_of_memory(error):
        return MemoryError(_less_memory(error, settings))
    line = device_error(error) if isinstance(error, RuntimeError | AssertionError | ValueError) else None
    return None if line is None else InputError(line)


def _of_a_path(error: Exception, settings: Any) -> str | None:
    """An OSError of a path that the settings name, of one in it, or of a folder that it is in."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | bytes) or error.errno is None:
        return None
    path = Path(os.fsdecode(error.filename))
    named = [Path(value).absolute() for _, _, value in named_paths(settings)]
    if not any(one == path.absolute() or one in path.absolute().parents or path in one.parents for one in named):
        return None
    way_out = "give another place" if error.errno in (errno.ENOENT, errno.ENOTDIR) else WAYS_OUT.get(error.errno)
    return f"{path}: {os.strerror(error.errno)}; {way_out or 'give another place'}{_resume(settings)}"


def _of_a_disk(error: Exception, settings: Any) -> str | None:
    """A disk that is full, read-only or broken, whatever was to be written."""
    code = disk_error(error) if isinstance(error, OSError) or "os error" in str(error) else None
    if code is None or code in (errno.ENOENT, errno.ENOTDIR):
        return None
    name = getattr(error, "filename", None)
    where = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes) else ""
    return f"{where}{os.strerror(code)}; {WAYS_OUT[code]}{_resume(settings)}"


def _resume(settings: Any) -> str:
    return "; --resume continues a run" if hasattr(settings, "resume") else ""


def _is_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | ValueError) and _NO_MEMORY.search(str(error)) is not None


def _less_memory(error: Exception, settings: Any) -> str:
    found = _NO_MEMORY.search(str(error))
    said = (str(error)[found.start() :] if found else first_line(error)).strip().partition("\n")[0][:_LONGEST]
    kind: type = type(settings)
    names = {option.name for option in options_of(kind)}
    lower = [f"--{name}" for name in _LOWER if name in names][:3]
    smaller = [text for name, text in _SMALLER.items() if name in names]
    ways = [f"lower {' or '.join(lower)}"] if lower else ["give it more memory"]
    ways += [f"or give {' or '.join(smaller)}"] if smaller else []
    return f"out of memory ({said}); {', '.join(ways)}"
