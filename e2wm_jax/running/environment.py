"""What a process finds around it and cannot work with, as one line: devices, variables of jax, paths of settings."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.options.parsing import Option, options_of

_WRITTEN = {"out", "predictions", "records"}


# Variables of jax by which the same program gives other numbers, or none.
_OTHER_NUMBERS = (
    *("JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION"),
    *("JAX_DEFAULT_PRNG_IMPL", "JAX_ENABLE_CUSTOM_PRNG", "JAX_RANDOM_SEED_OFFSET", "JAX_THREEFRY_PARTITIONABLE"),
)


def trust_own_precision() -> None:
    """What other programs of a user may need and a shell then has set, such as jax's 64 bits, is no matter of ours:
    every number here has its type, and a seed gives the same ones.  To be called before jax is imported."""
    os.environ["JAX_ENABLE_X64"] = "0"
    for name in _OTHER_NUMBERS:
        os.environ.pop(name, None)


def device_error(error: Exception) -> str | None:
    """What is wrong if jax has no devices to work on, or cannot read its variables; None for any other error."""
    flag = re.search(r"JAX flag (\w+)|for environment '(\w+)'", str(error))
    if isinstance(error, ValueError) and flag:
        name = (flag[1] or flag[2]).upper()
        return f"{name}={os.environ.get(name, '')}: jax cannot read this environment variable; correct it or unset it"
    if "jax" not in sys.modules:
        return None
    import jax

    try:
        jax.devices()
        return None
    except Exception as found:
        reason = str(found).splitlines()[0].split(" (")[0] if str(found) else "there is none of that kind"
    name = "JAX_PLATFORM_NAME" if reason.startswith("Unknown backend") else "JAX_PLATFORMS"
    wanted = os.environ.get(name)
    here = _devices_without_wish()
    if not wanted:
        return f"jax cannot start its devices: {reason}; `e2wm doctor` shows what there is"
    return (
        f"{name}={wanted}: jax finds no such device on this machine ({reason}); there are: {here}; "
        "unset it or name one of these"
    )


def _devices_without_wish() -> str:
    import jax

    try:
        jax.config.update("jax_platforms", None)
        jax.config.update("jax_platform_name", "")
        return ", ".join(sorted({device.platform for device in jax.devices()}))
    except Exception:
        return "none that jax can start"


def check_xla_flags() -> None:
    """Refuse an XLA_FLAGS at which XLA would end the process, which no program can catch.

    Raises:
        InputError: with what XLA says of it.
    """
    if (line := xla_flags_error()) is not None:
        raise InputError(line)


def xla_flags_error() -> str | None:
    """What is wrong with XLA_FLAGS, by a process of its own that does no more than to read it (0.3 s)."""
    flags = os.environ.get("XLA_FLAGS")
    if not flags or (reason := _refused_by_xla(flags)) is None:
        return None
    return f"XLA_FLAGS={flags}: XLA cannot read this environment variable ({reason}); correct it or unset it"


@cache
def _refused_by_xla(flags: str) -> str | None:
    reading = "from jaxlib import xla_client; xla_client.CompileOptions()"
    child = subprocess.run(
        [sys.executable, "-P", "-c", reading],
        env={**os.environ, "XLA_FLAGS": flags},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    # "F1201 15:51:37.957519   16421 parse_flags_from_env.cc:234] Unknown flag in XLA_FLAGS: --x"
    found = re.search(
        r"^[EF]\d{4} \S+ +\d+ \w+\.cc:\d+\] (.*\bflags?\b.*)$", child.stderr, re.MULTILINE | re.IGNORECASE
    )
    return found[1].rstrip(".") if child.returncode and found else None


def named_paths(settings: Any) -> Iterator[tuple[str, Option, str | Path]]:
    """The paths of settings, and texts that may be some, each with its flag and option."""
    kind: type = type(settings)
    for option in options_of(kind):
        value = reduce(getattr, [part.replace("-", "_") for part in option.name.split(".")], settings)
        flag = option.name.upper() if option.positional else f"--{option.name}"
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path) or (isinstance(one, str) and option.names_files):
                yield flag, option, one


def check_paths(settings: Any) -> None:
    """Refuse paths that nothing can be read from or written to, before any work.

    Raises:
        InputError: for an address such as gs://bucket/x, which no command reads or writes; for a place to write to
            that is within a file, not writable, or no name of a file.
    """
    for flag, option, one in named_paths(settings):
        _check_local(flag, one)
        if isinstance(one, Path) and option.field.name in _WRITTEN:
            _check_writable(flag, one)


def _check_local(flag: str, value: str | Path) -> None:
    scheme = r"^([A-Za-z][\w+.-]+):/" if isinstance(value, Path) else r"(?:^|[\s'\"])([A-Za-z][\w+.-]+)://"
    if found := re.search(scheme, str(value)):
        shown = re.sub(r"^([\w+.-]+:)/(?!/)", r"\1//", str(value))  # a Path keeps one slash
        raise InputError(
            f"{flag} {shown}: {found[1]}:// addresses are not read or written; copy to a local folder, or mount it"
        )


def _check_writable(flag: str, path: Path) -> None:
    try:
        is_other = os.path.lexists(path.absolute()) and path.exists() and not (path.is_dir() or path.is_file())
        place = next(folder for folder in (path, *path.absolute().parents) if _is_there(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{flag} {str(path)[:80]!r}: {_reason(error)}; give another place") from error
    if is_other:
        raise InputError(f"{flag} {path}: is neither a file nor a folder; give another place")
    if place != path and not place.is_dir():
        raise InputError(f"{flag} {path}: {place} is a file, no folder; give another place")
    if not os.access(place, os.W_OK):
        raise InputError(f"{flag} {path}: {place} is not writable; give another place, or make it writable")
    if place.is_dir():
        try:  # /proc says that it is writable, and lets nobody write
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            raise InputError(
                f"{flag} {path}: nothing can be written to {place} ({_reason(error)}); give another place"
            ) from error


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
