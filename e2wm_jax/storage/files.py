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
from typing import Any

from e2wm_jax.errors import InputError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_GZIP = b"\x1f\x8b"
_DEEPEST = 100  # lists and objects in one another
# How files begin that are no text, and what to do with them.
_NO_TEXT = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"%PDF": "a PDF; save its text as .txt",
    b"PAR1": "a Parquet file; name it *.parquet",
    b"ARROW1": "an Arrow file; give the folder that `datasets` saved, or save it as Parquet",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it, or use gzip",
    b"\xfd7zXZ": "compressed by xz; unpack it, or use gzip",
    b"BZh": "compressed by bzip2; unpack it, or use gzip",
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
}


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder.

    Raises:
        InputError: for a name that none can have, or one that may not be looked at.
    """
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)[:80]!r}: no file ({reason})") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed if it is gzipped.

    Raises:
        InputError: if there is no such file, a git-LFS pointer in its place, or a damaged gzip archive.
    """
    if not is_there(path) or not path.is_file():
        raise InputError(f"{path}: is a directory; give a file" if path.is_dir() else f"{path}: no such file")
    check_fetched(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if path.suffix != ".gz" and not content.startswith(_GZIP):
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip archive ({error}); fetch the file again") from error


def read_text(path: Path) -> str:
    """The whole text of a (possibly gzipped) file, without a byte order mark, with ends of lines as "\\n".

    Raises:
        InputError: if the file is missing, no UTF-8 text or a damaged gzip archive.
    """
    content = read_bytes(path)
    for start, what in _NO_TEXT.items():
        if content.startswith(start):
            raise InputError(f"{path}: is {what}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line}: holds a NUL byte, so it is no text; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\n\ufeff", "\n")  # of files that were joined


def parse_json(text: str, *, unique_keys: bool = False) -> Any:
    """A JSON value whose texts can all be written as UTF-8; with `unique_keys` no key stands twice in an object.

    Raises:
        ValueError: saying why it is none.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object if unique_keys else None)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(value):  # what reads it may call itself at each level
        raise ValueError("nested too deeply")
    if "\\ud" in text or "\\uD" in text:  # only so can half of a surrogate pair get in
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half of a surrogate pair, {error.object[error.start]!a}, is no character") from error
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            part
            for one in level
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, dict | list)
        ]
        if not level:
            return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return found


def why_not_json(error: ValueError) -> str:
    """What is wrong, in a few words, and in which column if it is known."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "a number of thousands of digits" if "digits" in str(error) else str(error)


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
            record = parse_json(line, unique_keys=True)
        except ValueError as error:
            raise InputError(
                f"{path}:{number}: not valid JSON ({why_not_json(error)}); each line must be one object"
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: expected a JSON object, found {type(record).__name__}")
        yield number, record


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        InputError: naming file and line where the file is not one JSON object.
    """
    text = read_text(path)
    try:
        record = parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({why_not_json(error)})") from error
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


def content_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and digests of all files in a folder."""
    if path.is_file():
        return sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256("".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files).encode()).hexdigest()
