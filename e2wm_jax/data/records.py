"""Rows of a data file, whatever its format: JSON lines, a JSON list, CSV, Parquet, or a data set of `datasets`."""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from e2wm_jax.errors import InputError
from e2wm_jax.files import is_there, parse_json, read_json_lines, read_text, why_not_json

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(\?\w+=[^&]+(&\w+=[^&]+)*)?")  # org/name?split=train&name=subset
_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".tab", ".txt")
_COLUMNS = {"input", "prompt", "messages", "conversations", "instruction", "question", "text"}  # `columns.FORMS`
_EXTRA = "pip install 'e2wm_jax[datasets]'"


class Records(NamedTuple):
    """The rows of a file, each with its place."""

    format: str  # for people: "JSON lines"
    rows: list[tuple[str, Mapping[str, Any]]]  # ("file:line", row)


def read_records(path: Path) -> Records:
    """All rows of a file (possibly gzipped), a folder that `datasets` saved, or a data set of the hub.

    Raises:
        InputError: naming file and line of what is malformed, or the file where it is of no format that is known.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if is_there(path) and path.is_dir():
        return Records("datasets folder", _numbered(path, _saved_data_set(path)))
    if _HUB_ID.fullmatch(str(path)) and suffix not in _SUFFIXES and not (is_there(path) or path.parent.exists()):
        return Records("data set of the hub", _numbered(path, _hub_data_set(str(path))))
    if suffix == ".parquet":
        return Records("Parquet", _numbered(path, _parquet(path)))
    if suffix in (".csv", ".tsv", ".tab"):
        return Records("CSV" if suffix == ".csv" else "TSV", list(_table(path, suffix)))
    return _json(path)


def _json(path: Path) -> Records:
    text = read_text(path)
    start = text.lstrip()[:1]
    if start and start not in "{[":
        if path.name.lower().removesuffix(".gz").endswith(".txt"):
            raise InputError(f"{path}: plain text has no rows; give JSON lines, or a table as *.csv")
        line = text.count("\n", 0, len(text) - len(text.lstrip())) + 1
        raise InputError(
            f"{path}:{line}: not valid JSON (starts with {start!r}); name plain text *.txt, tables *.csv or *.tsv"
        )
    if start == "[" or _is_one_object(text):
        return Records("JSON list", list(_listed(path, text)))
    rows: list[tuple[str, Mapping[str, Any]]] = [(f"{path}:{number}", row) for number, row in read_json_lines(path)]
    if len(rows) == 1 and (inner := _only_list(rows[0][1])) is not None:  # {"data": [...]} in one line
        return Records("JSON list", [(f"{path}: row {number}", row) for number, row in enumerate(inner, start=1)])
    return Records("JSON lines", rows)


def _is_one_object(text: str) -> bool:
    """Whether only all lines together are JSON."""
    first, *others = text.strip().split("\n", 1)
    try:
        parse_json(first)
    except json.JSONDecodeError:
        try:
            return bool(others) and isinstance(parse_json(text), dict)
        except ValueError:
            return False
    except ValueError:
        pass
    return False


def _listed(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a list, which may stand in an object: {"data": [...]}."""
    try:
        value = parse_json(text, unique_keys=True)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({why_not_json(error)})") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({why_not_json(error)})") from error
    if isinstance(value, dict):
        inner = _only_list(value)
        value = [value] if inner is None else inner
    for number, record in enumerate(value, start=1):
        if not isinstance(record, dict):
            raise InputError(f"{path}: row {number}: expected a JSON object, found {type(record).__name__}")
        yield f"{path}: row {number}", record


def _only_list(value: Mapping[str, Any]) -> list[Any] | None:
    """The rows in an object whose only list they are, as in {"data": [...]}; None if it is a row itself."""
    lists = [part for part in value.values() if isinstance(part, list)]
    is_row = len(lists) != 1 or not all(isinstance(row, dict) for row in lists[0]) or bool(_COLUMNS & value.keys())
    return None if is_row else lists[0]


def _table(path: Path, suffix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of CSV, or of columns between tabs, under the names in the first line."""
    text = read_text(path)
    csv.field_size_limit(sys.maxsize)  # of the whole process: csv has no other way
    header = text.split("\n", 1)[0]
    delimiter = next((mark for mark in ",;\t|" if mark in header), ",") if suffix == ".csv" else "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if not names:
                names = _header(cells, where)
            elif len(cells) == len(names):
                yield where, dict(zip(names, cells, strict=True))
            elif cells:
                raise InputError(f"{where}: {len(cells)} columns, the first line names {len(names)}; quote commas")
    except csv.Error as error:
        raise InputError(f"{path}:{line}: not valid CSV ({error})") from error


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]  # one may have none: the index that pandas writes
    if len(set(names)) < len(names) or not any(names):
        raise InputError(f"{where}: the first line must name every column, each otherwise; found {', '.join(names)}")
    return names


def _parquet(path: Path) -> list[Mapping[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs pyarrow; {_EXTRA}") from error
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return list(parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: no readable Parquet file ({_first_line(error)})") from error


def _saved_data_set(path: Path) -> Iterable[Mapping[str, Any]]:
    if not any((path / name).is_file() for name in ("dataset_info.json", "state.json", "dataset_dict.json")):
        raise InputError(f"{path}: is a directory; give a file, or a folder that save_to_disk of `datasets` wrote")
    datasets = _datasets(path)
    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:  # of any library below it
        raise InputError(f"{path}: no readable data set ({_first_line(error)})") from error
    return _split(found, "train", str(path))


def _hub_data_set(name: str) -> Iterable[Mapping[str, Any]]:
    repository, _, query = name.partition("?")
    options = dict(part.split("=", 1) for part in query.split("&") if part)
    split = options.pop("split", "train")
    if unknown := options.keys() - {"name", "revision"}:
        raise InputError(f"{name}: no option {min(unknown)}; options of data sets: split, name, revision")
    datasets = _datasets(Path(name))
    import huggingface_hub  # comes with it

    try:
        if not huggingface_hub.constants.HF_HUB_OFFLINE:  # a name that is none shows here at once, there after retries
            huggingface_hub.HfApi().dataset_info(repository, timeout=10)
        found = datasets.load_dataset(repository, **options)
    except Exception as error:  # of any library below it, or of the network
        raise InputError(f"{name}: no such file, and no data set of the hub ({_first_line(error)})") from error
    return _split(found, split, name)


def _split(found: Any, wanted: str, where: str) -> Iterable[Mapping[str, Any]]:
    """Of a data set in parts, such as train and test, the wanted one, or the only one."""
    if not isinstance(found, Mapping):
        return found
    if len(found) != 1 and wanted not in found:
        raise InputError(f"{where}: has the parts {', '.join(found)} and no {wanted}; save the one to be read alone")
    return found[wanted if wanted in found else next(iter(found))]


def _datasets(path: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        what = "a saved data set" if path.is_dir() else "no such file; a data set of the hub"
        raise InputError(f"{path}: {what} needs the package datasets: {_EXTRA}") from error
    return datasets


def _numbered(path: Path, rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(f"{path}: row {number}", row) for number, row in enumerate(rows, start=1)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
