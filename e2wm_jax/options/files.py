"""Settings in files: what `--config` reads and `--print-config` writes, TOML or JSON under the names of the flags."""

import dataclasses
import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.options.names import NEAR
from e2wm_jax.options.parsing import names_of, options_of
from e2wm_jax.options.values import values_of
from e2wm_jax.storage.files import parse_json, read_text, why_not_json

_CONTENT = "content"  # of a run's config.json: digests of what it read, no settings


def read_table(path: Path) -> dict[str, Any]:
    """A TOML or JSON file of settings.

    Raises:
        InputError: if there is none, or it is neither.
    """
    text = read_text(path)
    if text.lstrip()[:1] == "{" or path.suffix == ".json":
        try:
            record = parse_json(text, unique_keys=True)
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON ({why_not_json(error)})") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}: must be one JSON object of settings")
        return record
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML ({error}); options come in TOML or JSON") from error


def read_settings(kind: type, path: Path, missing: Any) -> Any:
    """The settings of dataclass `kind` that a file gives, defaults where it says nothing.

    Args:
        missing: stands for required settings that it does not give.

    Raises:
        InputError: for a name that is none of its options, with the nearest, or a value of another type.
    """
    record = under_own_names(kind, read_table(path), str(path))
    if isinstance(record.get(_CONTENT), Mapping):
        del record[_CONTENT]
    for field in fields(kind):  # what a command sets itself, as its config.json has it
        if field.name not in shown(kind) and record.get(field.name, ...) == plain(field.default):
            del record[field.name]
    unset = {option.field.name: missing for option in options_of(kind) if option.required and "." not in option.name}
    return kind(**{**unset, **values_of(kind, record, str(path), known=shown(kind))})


def under_own_names(kind: type, table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A table whose options may stand under any of their names, under their own; what is no option as it is.

    Args:
        where: what the table stands in, for messages.

    Raises:
        InputError: for an option that is given twice, and a name that means almost the same as one here.
    """
    known, tables = names_of(kind), {option.name.rpartition(".")[0] for option in options_of(kind)}
    typed: dict[str, str] = {}
    record: dict[str, Any] = {}
    for name, value in _flat(table, tables):
        spelled = name.replace("_", "-")
        option, negative = known.get(spelled, (None, False))
        own = spelled if option is None or negative else option.name
        if option is None and spelled in NEAR:
            raise InputError(f"{where}: {name} {NEAR[spelled]}")
        if own in typed:
            raise InputError(f"{where}: {typed[own]} and {name} are the same option; leave one of them out")
        typed[own] = name
        inner, dot, last = own.replace("-", "_").rpartition(".")
        if dot and inner in tables:
            record.setdefault(inner, {})[last] = value
        else:
            record[f"{inner}{dot}{last}"] = value
    return record


def _flat(table: Mapping[str, Any], tables: Collection[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping) and name in tables and not prefix:
            yield from _flat(value, tables, f"{name}.")
        else:
            yield prefix + name, value


def shown(kind: type) -> list[str]:
    """The fields of a settings class that can be given, those with a table of their own too."""
    named = {option.name.partition(".")[0].replace("-", "_") for option in options_of(kind)}
    return [field.name for field in fields(kind) if field.name in named]


def as_toml(settings: Any) -> str:
    """Settings as a TOML file that `--config` reads; what is not set stands as a comment."""
    record = dataclasses.asdict(settings)
    return toml({name: plain(record[name]) for name in shown(type(settings))})


def toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """A table of plain values and of tables as TOML."""
    lines = [
        f"# {name} is not set" if value is None else f"{name} = {_value(value)}"
        for name, value in table.items()
        if not _is_table(value)
    ]
    for name, value in table.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{prefix}{name}]", toml(value, f"{prefix}{name}.")]
        elif _is_table(value):
            for one in value:
                lines += ["", f"[[{prefix}{name}]]", toml(one, f"{prefix}{name}.")]
    return "\n".join(lines)


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)
    )


def plain(value: Any) -> Any:
    """Settings as JSON and TOML have them: paths as text, tuples as lists."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)
