"""Per-example predictions on disk: they grow while a model is evaluated, and outlive an interruption.

    FILE.settings.json    what they are predictions of: settings, and what the data and the model hold
    FILE.partial          JSON lines in the order in which they were made; at worst the last one is torn
    FILE                  all of them in the order of their index, renamed into place at the end

Every record has its "index", the example's place in the data file.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.model import Evaluated
from e2wm_jax.storage.files import parse_json, read_json, write_json, write_json_lines

Record = dict[str, Any]


class Predictions:
    """The predictions of one set; without a path they are only kept in memory."""

    def __init__(
        self,
        path: Path | None,
        settings: Mapping[str, Any],
        examples: int | Iterable[int],
        *,
        resume: bool = False,
        is_record: Callable[[Record], bool] = lambda record: True,
    ) -> None:
        """
        Args:
            path: of the finished file.
            settings: what must be the same for predictions to go together; plain JSON.
            examples: how many there are, or their indices.
            resume: go on with what is there, if it has the same settings; otherwise it is replaced.
            is_record: whether a line that is there holds what it should; if not, it is made again.

        Raises:
            InputError: if what is there has other settings, or is of no model known.
        """
        self.path = path
        self.indices = list(range(examples) if isinstance(examples, int) else examples)
        self.done: dict[int, Record] = {}
        if path is None:
            return
        if path.is_dir():
            raise InputError(f"{path}: is a directory; give a file for predictions")
        wanted = json.loads(json.dumps(dict(settings)))
        if resume:
            self._recover(path, wanted, is_record)
        else:
            for old in (path, partial_of(path)):
                old.unlink(missing_ok=True)
        if set(self.done) != set(self.indices) or not path.is_file():
            write_json(settings_of(path), wanted)
            write_json_lines(partial_of(path), list(self.done.values()))  # without a torn line

    def missing(self) -> list[int]:
        """The indices that have no prediction yet."""
        return [index for index in self.indices if index not in self.done]

    def add(self, records: Sequence[Record]) -> None:
        """Keep more predictions; they are on disk when this returns.  Those that are there already stay as they are."""
        new = [record for record in records if record["index"] not in self.done]
        if self.path is not None and new:
            with partial_of(self.path).open("a", encoding="utf-8") as file:
                file.write("".join(_line(record) for record in new))
        self.done |= {record["index"]: record for record in new}

    def finish(self) -> list[Record]:
        """All predictions in the order of the examples; the file gets its name.

        Raises:
            ValueError: if some are missing.
        """
        if lacking := self.missing():
            raise ValueError(f"{len(lacking)} predictions are missing, e.g. of example {lacking[0]}")
        records = [self.done[index] for index in sorted(self.indices)]
        if self.path is not None and partial_of(self.path).is_file():
            write_json_lines(self.path, records)
            partial_of(self.path).unlink()
        return records

    def _recover(self, path: Path, wanted: Record, is_record: Callable[[Record], bool]) -> None:
        """Read what an earlier run has left."""
        if not path.is_file() and not partial_of(path).is_file():
            return
        if not settings_of(path).is_file():
            raise InputError(
                f"{path}: no {settings_of(path).name} says what it is of; remove it, or leave --resume out"
            )
        found = read_json(settings_of(path))
        if different := differences(found, wanted):
            raise InputError(f"{path}: predictions of something else ({different}); give another file, or remove it")
        for source in (partial_of(path), path):
            if source.is_file():
                known = set(self.indices)
                self.done |= {n: one for n, one in _whole_lines(source) if n in known and is_record(one)}


def identity(evaluated: Evaluated, data: str, **settings: Any) -> Record:
    """What must be the same for predictions to go together: the model, the data's digest, and settings."""
    mesh = None if evaluated.mesh is None else dict(evaluated.mesh.shape)
    return {"model": evaluated.fingerprint, "data": data, "mesh": mesh, **settings}


def content_digest(content: Any) -> str:
    """SHA-256 of plain JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def partial_of(path: Path) -> Path:
    """The growing file."""
    return path.with_name(f"{path.name}.partial")


def settings_of(path: Path) -> Path:
    """What the predictions are of."""
    return path.with_name(f"{path.name}.settings.json")


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """ "batch_size is 4 there, 8 here; ..." of the keys whose values differ; empty if none do."""
    return "; ".join(
        f"{key} is {_short(found.get(key))} there, {_short(wanted.get(key))} here"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 50 else f"{text[:40]}...{text[-5:]}"


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[tuple[int, Record]]:
    """Index and record of every line that ends in a line break and holds a whole record."""
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = parse_json(line.decode())
        except ValueError:  # torn, or no text
            continue
        if isinstance(record, dict) and type(record.get("index")) is int:
            found.append((record["index"], record))
    return found
