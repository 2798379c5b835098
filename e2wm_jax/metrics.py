"""`metrics.jsonl`: one JSON row per optimizer step, readable at any moment."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from e2wm_jax.files import read_json_lines, write_json_lines


@contextmanager
def metrics_log(path: Path, *, last_step: int) -> Iterator[IO[str]]:
    """Open the log for appending after `last_step`; rows of later steps, and a torn last line, are dropped."""
    if path.exists():
        complete = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        rows = [json.loads(line) for line in complete]
        write_json_lines(path, [row for row in rows if row["step"] <= last_step])
    with path.open("a", encoding="utf-8") as file:
        yield file


def append(file: IO[str], row: dict[str, Any]) -> None:
    """Write one row and hand it to the system at once, so that a killed run loses none."""
    file.write(json.dumps(row) + "\n")
    file.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a log."""
    return [row for _, row in read_json_lines(path)]
