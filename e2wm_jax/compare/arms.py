"""The arms of a comparison: regularizers with each of their strengths, or settings of training said freely."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.options.values import check_name, merged
from e2wm_jax.regularizers.catalogue import regularizer

SHORT = {"kl": "kl-forward"}
_KEYS = ("name", "strengths", "train", "fisher")


@dataclass(frozen=True)
class Arm:
    """One way to train; with each seed it is a run.

    Arms of one `series` differ in strength only and are joined by a line in the picture.
    """

    name: str
    series: str
    train: dict[str, Any]  # settings of `e2wm train` that differ from its defaults
    fisher: dict[str, Any] | None = None  # settings of `e2wm fisher`, where the regularizer reads one that is made here


def crossed(regularizers: Sequence[str], strengths: Sequence[str]) -> list[Arm]:
    """An arm for each regularizer and each of its strengths; `none` has no strength.

    Args:
        regularizers: names of the catalogue; "kl" is kl-forward.
        strengths: "1,10" for all, "ewc:1e3,1e4" for one; what is said of one wins.

    Raises:
        InputError: for unknown names, strengths that are no numbers from 0 on, or a regularizer without any.
    """
    names = [SHORT.get(name, name) for name in words(regularizers)]
    for name in names:
        regularizer(name)
    general, special = _strengths(strengths, names)
    arms = []
    for name in names:
        if name == "none":
            arms.append(Arm("none", "none", {"regularizer": "none"}))
            continue
        found = special.get(name, general)
        if not found:
            raise InputError(f"--strengths: there is none for {name}; write 1,10 for all, or {name}:1,10")
        arms += with_strengths(Arm(name, name, {"regularizer": name}), found)
    return arms


def with_strengths(arm: Arm, strengths: Sequence[float]) -> list[Arm]:
    """The arm once for each strength, which joins its name where there are several."""
    if len(strengths) == 1:
        return [replace(arm, train=arm.train | {"strength": float(strengths[0])})]
    return [
        replace(arm, name=f"{arm.name} {_short(strength)}", train=arm.train | {"strength": float(strength)})
        for strength in strengths
    ]


def read_arms(tables: Sequence[Mapping[str, Any]], where: str) -> list[Arm]:
    """The arms of a file's [[arm]] tables: name, strengths (a list), train and fisher.

    Raises:
        InputError: for a table without a name, or with unknown keys.
    """
    arms = []
    for number, table in enumerate(tables, start=1):
        place = f"{where}: arm {table.get('name', number)}"
        for key in table:
            check_name(key, _KEYS, place)
        if not isinstance(table.get("name"), str):
            raise InputError(f"{where}: arm {number} has no name; give it one, e.g. name = 'ewc'")
        train, fisher = dict(table.get("train", {})), table.get("fisher")
        if train.get("regularizer") in SHORT:
            train["regularizer"] = SHORT[train["regularizer"]]
        arm = Arm(table["name"], table["name"], train, None if fisher is None else dict(fisher))
        if "strengths" not in table:
            arms.append(arm)
            continue
        given = table["strengths"]
        if not isinstance(given, list) or not given:
            raise InputError(f"{place}: strengths must be a list of numbers, e.g. [1.0, 10.0]")
        arms += with_strengths(arm, [_strength(str(one), place) for one in given])
    return arms


def with_general(arm: Arm, train: Mapping[str, Any]) -> Arm:
    """The arm with what holds for all arms; its own settings win."""
    return replace(arm, train=merged(train, arm.train))


def check_names(arms: Sequence[Arm]) -> None:
    """Refuse names that are no folders' names, or that stand twice.

    Raises:
        InputError: naming the arm.
    """
    seen: dict[str, str] = {}
    for arm in arms:
        if not re.fullmatch(r"[\w][\w .,+=()-]*", arm.name):
            raise InputError(f"arm {arm.name!r}: a name has letters, digits, spaces and . , + = ( ) - only")
        folder = slug(arm.name)
        if folder in ("base",):
            raise InputError(f"arm {arm.name!r}: that is the model before training; give the arm another name")
        if folder in seen:
            other = "the same arm" if seen[folder] == arm.name else f"arm {seen[folder]!r}"
            raise InputError(f"arm {arm.name!r} stands twice: {other} is there already; take one away or rename it")
        seen[folder] = arm.name


def slug(name: str) -> str:
    """The folder of an arm."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.").lower()


def words(texts: Sequence[str]) -> list[str]:
    """What stands between commas and spaces."""
    return " ".join(texts).replace(",", " ").split()


def _strengths(texts: Sequence[str], names: Sequence[str]) -> tuple[list[float], dict[str, list[float]]]:
    """Those for all, and those of single regularizers."""
    general: list[float] = []
    special: dict[str, list[float]] = {}
    for text in " ".join(texts).split():
        name, colon, numbers = text.rpartition(":")
        name = SHORT.get(name, name)
        if colon:
            regularizer(name)
            if name not in names:
                raise InputError(f"--strengths {text}: --regularizers has no {name}; it has {', '.join(names)}")
        values = [_strength(number, f"--strengths {text}") for number in numbers.split(",") if number]
        if colon:
            special[name] = special.get(name, []) + values
        else:
            general += values
    return general, special


def _short(value: float) -> str:
    """10000.0 as 1e4, 0.5 as 0.5."""
    mantissa, power, exponent = (f"{value:g}" if value < 1e4 else f"{value:.5e}").partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if power else mantissa


def _strength(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise InputError(f"{where}: {text!r} is no number; write 1,10 or ewc:1e3,1e4") from error
    if not 0 <= value < float("inf"):
        raise InputError(f"{where}: {text} must be a finite number, 0 or more")
    return value
