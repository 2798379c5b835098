"""Reading and writing files so that errors name file and line, and nothing is ever half-written."""

import contextlib
import gzip
import hashlib
import json
import math
import os
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from e2wm_jax.errors import InputError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def open_text(path: Path) -> IO[str]:
    """Open a UTF-8 text file for reading; a name that ends in ``.gz`` is decompressed.

    Raises:
        InputError: if there is no such file, or a git-LFS pointer in its place.
    """
    if not path.is_file():
        raise InputError(f"{path}: is a directory; give a file" if path.is_dir() else f"{path}: no such file")
    check_fetched(path)
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def read_text(path: Path) -> str:
    """The whole text of a (possibly gzipped) file.

    Raises:
        InputError: if the file is missing, not UTF-8 or a damaged gzip archive.
    """
    try:
        with open_text(path) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip archive ({error}); fetch the file again") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers, counted from 1; blank lines are skipped.

    Raises:
        InputError: naming ``file:line`` where a line is not a JSON object.
    """
    # Not splitlines(): JSON strings may hold U+2028 and other characters that it takes for ends of lines.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno}); each line must be one object"
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
        yield number, record


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        InputError: naming file and line where the file is not one JSON object.
    """
    try:
        record = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(record).__name__}")
    return record


def check_fetched(path: Path) -> None:
    """Refuse what stands for a file in a clone made without git-LFS: a few lines of text that name it.

    Raises:
        InputError: saying how the file itself is fetched.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise InputError(f"{path}: a git-LFS pointer, not the file that it stands for; run `git lfs pull` there")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed over ``path`` on success, removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: a reader sees the old file or the new one, never a part."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json_text(value, indent=2, ensure_ascii=False) + "\n")


def json_text(value: object, **options: Any) -> str:
    """``value`` as JSON, with the options of `json.dumps`; NaN and infinity, which JSON does not know, are null."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
