"""Rows of a data file, whatever its format: JSON lines, a JSON list, CSV, Parquet, or a data set of `datasets`."""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import is_there, parse_json, read_json_lines, read_text, why_not_json

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(\?\w+=[^&]+(&\w+=[^&]+)*)?")  # org/name?split=train&name=subset
_SUFFIXES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".tab", ".txt")
_COLUMNS = {"input", "prompt", "messages", "conversations", "instruction", "question", "text"}  # `columns.FORMS`
_FIRST_LIST = re.compile(  # of a text that is one, or an object that begins with values of no depth
    r'\s*(\{(\s*"[^"\\]*"\s*:\s*("[^"\\]*"|[\w.+-]+)\s*,)*\s*"(?P<key>[^"\\]*)"\s*:\s*)?\['
)
_GAP = re.compile(r"[\s,]*")  # between two rows of a list
_EXTRA = "pip install 'e2wm_jax[datasets]'"


Rows = Iterator[tuple[str, Mapping[str, Any]]]  # each with its place


class Records(NamedTuple):
    """The rows of a file, each with its place."""

    format: str  # for people: "JSON lines"
    rows: list[tuple[str, Mapping[str, Any]]]  # ("file:line", row)


def read_records(path: Path) -> Records:
    """All rows of a file (possibly gzipped), a folder that `datasets` saved, or a data set of the hub.

    Raises:
        InputError: naming file and line of what is malformed, or the file where it is of no format that is known.
    """
    kind, rows = _opened(path)
    return Records(kind, list(rows))


def column_names(path: Path) -> list[str]:
    """The names of the columns of the first row; of most formats no other is looked at.

    Raises:
        InputError: as `read_records`.
    """
    first = next(iter(_opened(path)[1]), None)
    return [] if first is None else list(first[1])


def _opened(path: Path) -> tuple[str, Rows]:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if is_there(path) and path.is_dir():
        return "datasets folder", _numbered(path, _saved_data_set(path))
    if _HUB_ID.fullmatch(str(path)) and suffix not in _SUFFIXES and not (is_there(path) or path.parent.exists()):
        return "data set of the hub", _numbered(path, _hub_data_set(str(path)))
    if suffix == ".parquet":
        return "Parquet", _numbered(path, _parquet(path))
    if suffix in (".csv", ".tsv", ".tab"):
        return "CSV" if suffix == ".csv" else "TSV", _table(path, suffix)
    return _json(path)


def _json(path: Path) -> tuple[str, Rows]:
    text = read_text(path)
    start = text.lstrip()[:1]
    if start and start not in "{[":
        if path.name.lower().removesuffix(".gz").endswith(".txt"):
            raise InputError(f"{path}: plain text has no rows; give JSON lines, or a table as *.csv")
        line = text.count("\n", 0, len(text) - len(text.lstrip())) + 1
        raise InputError(
            f"{path}:{line}: not valid JSON (starts with {start!r}); name plain text *.txt, tables *.csv or *.tsv"
        )
    if start == "[" or _is_one_value(text):
        return "JSON list", _listed(path, text)
    lines = read_json_lines(path)
    first = list(islice(lines, 2))
    if len(first) == 1 and (inner := _only_list(first[0][1])) is not None:  # {"data": [...]} in one line
        return "JSON list", _objects(path, inner)
    return "JSON lines", ((f"{path}:{number}", row) for number, row in chain(first, lines))


def _is_one_value(text: str) -> bool:
    """Whether only all lines together are JSON, be it such that it is refused for another reason."""
    first, *others = text.strip().split("\n", 1)
    if not others:
        return False
    try:
        parse_json(first)
    except json.JSONDecodeError:
        try:
            return isinstance(parse_json(text), dict)
        except json.JSONDecodeError:
            return first.rstrip()[-1] in "{[,:"  # no row of JSON lines ends so
        except ValueError:
            return True
    except ValueError:
        pass
    return False


def _listed(path: Path, text: str) -> Rows:
    """The objects of a list, which may stand in an object: {"data": [...]}."""
    try:
        value = parse_json(text, unique_keys=True)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            raise InputError(
                f"{path}:{error.lineno}: a second JSON value begins here; give each object a line, or all one list"
            ) from error
        row = f", in row {number}" if (number := _bad_row(text)) else ""
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({why_not_json(error)}{row})") from error
    except ValueError as error:
        row = f" row {number}:" if (number := _bad_row(text)) else ""
        raise InputError(f"{path}:{row} not valid JSON ({why_not_json(error)})") from error
    inner = _only_list(value) if isinstance(value, dict) else value
    return _objects(path, [value] if inner is None else inner)


def _objects(path: Path, rows: Iterable[Any]) -> Rows:
    for number, record in enumerate(rows, start=1):
        if not isinstance(record, dict):
            raise InputError(f"{path}: row {number}: expected a JSON object, found {type(record).__name__}")
        yield f"{path}: row {number}", record


def _bad_row(text: str) -> int | None:
    """The first row that is no valid JSON, in a list or in the first list of an object; None where that has none."""
    start = _FIRST_LIST.match(text)
    if start is None or start["key"] in _COLUMNS:
        return 1 if text.lstrip()[:1] == "{" else None
    decoder, place = json.JSONDecoder(), start.end()
    for number in count(1):
        place = _GAP.match(text, place).end()  # type: ignore[union-attr]
        if text[place : place + 1] == "]":
            return None
        try:
            _, end = decoder.raw_decode(text, place)
            parse_json(text[place:end], unique_keys=True)
        except (ValueError, RecursionError):
            return number
        place = end
    return None


def _only_list(value: Mapping[str, Any]) -> list[Any] | None:
    """The rows in an object whose only list they are, as in {"data": [...]}; None if it is a row itself."""
    lists = [part for part in value.values() if isinstance(part, list)]
    is_row = len(lists) != 1 or not any(isinstance(row, dict) for row in lists[0]) or bool(_COLUMNS & value.keys())
    return None if is_row else lists[0]


def _table(path: Path, suffix: str) -> Rows:
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


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs pyarrow; {_EXTRA}") from error
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
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


def _numbered(path: Path, rows: Iterable[Mapping[str, Any]]) -> Rows:
    return ((f"{path}: row {number}", row) for number, row in enumerate(rows, start=1))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
