"""The options of a settings class, and a command's words brought into one form: known names, each given once.

What the words mean, their types and choices, is tyro's; here it is which options they are.
"""

import ast
import dataclasses
import difflib
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from e2wm_jax.errors import InputError
from e2wm_jax.options.names import NEAR, SAME

# Text that may name files, besides the options whose type is a path.
_NAMES_OF_FILES = {
    *("model", "data", "validation", "tasks", "tests", "eval", "text", "general_text", "regularizer_data"),
    *("scene", "goals"),
}


class Option(NamedTuple):
    """A field of a settings class on the command line."""

    name: str  # as it is typed: "lora.rank"
    field: dataclasses.Field[Any]
    meaning: str
    expects: str  # of a value: "must be a whole number"
    several: bool  # takes several values, and may be repeated
    switch: bool  # takes none; `opposite` is its other name
    positional: bool
    names_files: bool  # a path, or text that may be one
    answer: bool  # yes, no or something else: without a value yes, under its other name `opposite` no

    @property
    def opposite(self) -> str:
        prefix, dot, last = self.name.rpartition(".")
        return f"{prefix}{dot}no-{last}"

    @property
    def required(self) -> bool:
        missing = dataclasses.MISSING
        return self.field.default is missing and self.field.default_factory is missing


@dataclass
class _Given:
    """An option as it was typed, with its values."""

    option: Option
    shown: str  # as it was typed
    typed: str  # its own name
    values: list[str]


@cache
def options_of(settings: type, prefix: str = "") -> tuple[Option, ...]:
    """All options of a settings class, in its order; a field that is itself such a class gives its own, with a dot."""
    found: list[Option] = []
    hints = get_type_hints(settings, include_extras=True)
    meanings = _meanings(settings)
    for field in dataclasses.fields(settings):
        hint, marks = hints[field.name], ""
        if hasattr(hint, "__metadata__"):
            hint, marks = get_args(hint)[0], str(hint.__metadata__)
        if "Suppress" in marks:
            continue
        name = prefix + field.name.replace("_", "-")
        if is_dataclass(hint):
            found += options_of(hint, f"{name}.")  # type: ignore[arg-type]
            continue
        several = tuple in (get_origin(hint), *map(get_origin, get_args(hint)))
        meaning = meanings.get(field.name, "")
        files = Path in (hint, *get_args(hint)) or field.name in _NAMES_OF_FILES
        positional, answer = "Positional" in marks, {"yes", "no"} <= {*get_args(hint)}
        found.append(Option(name, field, meaning, _expects(hint), several, hint is bool, positional, files, answer))
    return tuple(found)


def _expects(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"choose one of {', '.join(map(str, get_args(hint)))}"
    inner = [one for one in get_args(hint) if one not in (type(None), Ellipsis)]
    if inner:
        return _expects(inner[0])
    return {int: "must be a whole number", float: "must be a number"}.get(hint, "cannot be read")


def document(settings: type) -> None:
    """Give the help of a settings class its texts: lines run on, and the options' other names are said."""
    options = options_of(settings)
    names = {option.name for option in options}
    for option in options:
        others = [f"--{other}" for other in SAME.get(option.name, ()) if other not in names]
        also = f" Also {', '.join(others)}." if others else ""
        if option.meaning or also:
            option.field.metadata = MappingProxyType({"help": (option.meaning + also).strip()})


def introduction(settings: type) -> tuple[str, str]:
    """What a settings class says of itself: its first paragraph, and the others in lines as wide as the terminal (a
    pipe has 80 columns); commands that they show stay as they are."""
    width = max(40, shutil.get_terminal_size().columns)
    first, *others = inspect.cleandoc(settings.__doc__ or "").split("\n\n")
    wrapped = [
        part
        if part.startswith("e2wm ")
        else textwrap.fill(" ".join(part.split()), width, break_long_words=False, break_on_hyphens=False)
        for part in others
    ]
    return " ".join(first.split()), "\n\n".join(wrapped)


def one_form(settings: type, words: Sequence[str]) -> list[str]:
    """The words with every option under its own name, once: ``--scene a --scene=b`` becomes ``--scene a b``.

    Raises:
        InputError: for an option that there is not, with the nearest; one of a single value that is given twice; a
            value too many or too few.
    """
    known = names_of(settings)
    positional = any(option.positional for option in options_of(settings))
    loose: list[str] = []
    given: dict[str, _Given] = {}
    last: _Given | None = None
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            typed, equals, value = word.partition("=")
            option, negative = _known(typed, known)
            own = option.opposite if negative and option.switch else option.name
            said = ["no"] if negative and option.answer else []
            last = _Given(option, typed, f"--{own}", [*said, value] if equals else said)
            if option.name in given:
                last = _again(given[option.name], last)
            given[option.name] = last
        elif last is None or (positional and not last.option.several and (last.values or last.option.switch)):
            loose.append(word)
        else:
            last.values.append(word)
    for one in given.values():
        if one.option.answer and not one.values:
            one.values.append("yes")
    _check_counts(given.values(), loose, positional)
    return [*loose, *(word for one in given.values() for word in _typed_again(one))]


def missing(settings: type, words: Sequence[str]) -> Option | None:
    """The first required option that is not among the words of `one_form`."""
    there = {word.partition("=")[0] for word in words}
    for option in options_of(settings):
        is_there = bool(words) and not words[0].startswith("--") if option.positional else f"--{option.name}" in there
        if option.required and not is_there:
            return option
    return None


def _typed_again(one: _Given) -> Iterator[str]:
    """As tyro reads it: a value that begins with a dash belongs to its option by an equals sign."""
    if len(one.values) == 1 and one.values[0].startswith("-"):
        yield f"{one.typed}={one.values[0]}"
    else:
        yield one.typed
        yield from one.values


def _again(before: _Given, now: _Given) -> _Given:
    """The option, of which more values are to come; refused where it takes one.

    Raises:
        InputError: naming both.
    """
    if before.option.several:
        before.values += now.values
        return before
    first = " ".join([before.shown, *before.values])
    raise InputError(f"{now.shown}: {first} is given already, and it takes one value; leave one of them out")


def _check_counts(given: Any, loose: Sequence[str], positional: bool) -> None:
    if loose and not positional:
        raise InputError(f"{loose[0]!r}: belongs to no option; each value stands behind its --option")
    if len(loose) > 1:
        raise InputError(f"{loose[1]!r}: one too many behind {loose[0]!r}; quote a value that has blanks")
    for one in given:
        if one.option.switch and one.values:
            raise InputError(
                f"--{one.option.name} {one.values[0]}: takes no value; --{one.option.name} or --{one.option.opposite}"
            )
        if not one.option.switch and not one.values and not one.option.several:
            raise InputError(f"{one.typed} needs a value: {first_sentence(one.option)}")
        if one.option.names_files and any(not value.strip() for value in one.values):
            raise InputError(
                f"{one.typed} '': is empty, as a shell variable that is not set; give a name, or leave it out"
            )
        if not one.option.several and len(one.values) > 1:
            raise InputError(
                f"{one.typed} {' '.join(one.values)}: takes one value, {one.values[1]!r} is one too many; "
                "quote a value that has blanks"
            )


def first_sentence(option: Option) -> str:
    """What an option means, in a few words."""
    return re.split(r"(?<=[.;:])\s", option.meaning or "see --help", maxsplit=1)[0].rstrip(".;:")


def names_of(settings: type) -> Mapping[str, tuple[Option, bool]]:
    """Every name that is accepted: the option, and whether the name is its opposite."""
    options = options_of(settings)
    own = {option.name: (option, False) for option in options if not option.positional}
    own |= {option.opposite: (option, True) for option in options if option.switch or option.answer}
    others = {other: (option, False) for option in options for other in SAME.get(option.name, ()) if other not in own}
    return {**others, **own}


def _known(typed: str, known: Mapping[str, tuple[Option, bool]]) -> tuple[Option, bool]:
    name = typed.lstrip("-").replace("_", "-")
    if name in known and typed.startswith("--"):
        return known[name]
    if name in NEAR:
        raise InputError(f"--{name} {NEAR[name]}")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    ours = known[near[0]][0].name if near else ""
    same = f" (the same as --{near[0]})" if near and near[0] not in (ours, known[near[0]][0].opposite) else ""
    hint = f"perhaps --{ours or near[0]}{same}?" if near else "--help lists those there are"
    raise InputError(f"there is no option {typed}; {hint}")


@cache
def _meanings(settings: type) -> dict[str, str]:
    """The text of each field, by the string below it or the comment behind it, on one line."""
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        if not is_dataclass(kind):
            continue
        source = textwrap.dedent(inspect.getsource(kind))
        (tree,) = ast.parse(source).body
        assert isinstance(tree, ast.ClassDef)
        for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = ""
                if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                    text = str(following.value.value)
                elif comment := re.search(r"#\s*(.*)", source.splitlines()[statement.lineno - 1]):
                    text = comment[1]
                found[statement.target.id] = " ".join(text.split())
    return found
