"""`metrics.jsonl`: one JSON row per optimizer step, readable at any moment."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import write_json_lines


@contextmanager
def metrics_log(path: Path, *, last_step: int, keys: Sequence[str] = ()) -> Iterator[IO[str]]:
    """Open the log for appending after `last_step`; rows of later steps, and a torn last line, are dropped.

    Args:
        keys: what a row has besides its step.

    Raises:
        InputError: naming a line that is no row of a log.
    """
    if path.exists():
        *complete, _ = path.read_bytes().split(b"\n")
        rows = [_row(path, number, line, keys) for number, line in enumerate(complete, 1) if line.strip()]
        write_json_lines(path, [row for row in rows if row["step"] <= last_step])
    with path.open("a", encoding="utf-8") as file:
        yield file


def _row(path: Path, number: int, line: bytes, keys: Sequence[str] = ()) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("step"), int) or not row.keys() >= set(keys):
        known = ", ".join(("a step", *keys))
        raise InputError(f"{path}:{number}: not a row with {known}; remove the line, or restore the file")
    return row


def append(file: IO[str], row: dict[str, Any]) -> None:
    """Write one row and hand it to the system at once, so that a killed run loses none."""
    file.write(json.dumps(row) + "\n")
    file.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a log.

    Raises:
        InputError: if there is no such file, or naming a line that is no row of a log.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return [_row(path, number, line) for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
