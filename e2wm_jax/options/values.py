"""Settings of a command from plain data, such as a table of a TOML file: names, types and choices are checked."""

import difflib
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from e2wm_jax.errors import InputError
from e2wm_jax.options.names import SAME

Settings = TypeVar("Settings")


def build(kind: type[Settings], values: Mapping[str, Any], where: str) -> Settings:
    """The settings of dataclass `kind` with these values, defaults where there is none.

    Args:
        where: what the values were given in, for messages.

    Raises:
        InputError: as `check_values`.
    """
    return kind(**values_of(kind, values, where))


def check_values(kind: type[Any], values: Mapping[str, Any], where: str, *, reserved: Sequence[str] = ()) -> None:
    """Refuse values that dataclass `kind` cannot hold, or that are among the `reserved`, which the caller sets.

    Raises:
        InputError: for a name that is none of its fields, naming the nearest; for a value of another type.
    """
    for name in values:
        if name in reserved:
            raise InputError(f"{where}: {name} is what the comparison sets itself; leave it out")
    values_of(kind, values, where)


def values_of(
    kind: type[Any], values: Mapping[str, Any], where: str, *, known: Sequence[str] | None = None
) -> dict[str, Any]:
    """The values as the fields of dataclass `kind` hold them.

    Args:
        known: names of those fields that may be given; default: all.

    Raises:
        InputError: for a name that is none of them, naming the nearest; for a value of another type.
    """
    hints = get_type_hints(kind)
    for name in values:
        check_name(name, known or [field.name for field in fields(kind)], where)
    return {name: _converted(value, hints[name], f"{where}: {name}") for name, value in values.items()}


def check_name(name: str, known: Sequence[str], where: str) -> None:
    """Refuse an unknown name, with the nearest known one.

    Raises:
        InputError: if it is unknown.
    """
    if name not in known:
        same = next((own for own, others in SAME.items() if name.replace("_", "-") in others and own in known), None)
        nearest = same or difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise InputError(f"{where}: there is no {name!r}; perhaps {nearest}? known: {', '.join(known)}")


def merged(general: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, Any]:
    """Both, where `special` wins; tables within are merged in the same way."""
    found = dict(general)
    for name, value in special.items():
        before = found.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        found[name] = merged(before, value) if both else value  # type: ignore[arg-type]
    return found


def _converted(value: Any, hint: Any, where: str) -> Any:
    """`value` as a field of this type holds it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _converted(value, next(one for one in arguments if one is not type(None)), where)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{where} = {value!r}: choose one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if isinstance(value, str):
            return (_converted(value, arguments[0], where),)
        if not isinstance(value, Sequence):
            raise InputError(f"{where} = {value!r}: must be a list")
        return tuple(_converted(one, arguments[0], where) for one in value)
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{where} = {value!r}: must be a table of settings")
        return build(hint, value, where)
    return _plain(value, hint, where)


def _plain(value: Any, hint: Any, where: str) -> Any:
    """Text, paths, numbers and truth values; a whole number may stand for any number, a truth value for none."""
    accepted = {float: (float, int), int: (int,), bool: (bool,), str: (str,), Path: (str, Path)}[hint]
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        expected = {float: "a number", int: "a whole number", bool: "true or false"}.get(hint, "text")
        raise InputError(f"{where} = {value!r}: must be {expected}")
    return hint(value)
