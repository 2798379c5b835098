"""Write docs/command-line.md from the commands' settings classes: `make docs`.

The sources are parsed and not imported, so the page depends on nothing that is installed, and takes no time.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/command-line.md"
INTRODUCTION = """\
# The command line

One program, `e2wm`, also `python -m e2wm_jax`. This page is written by `make docs` from the same classes as the help of
`e2wm COMMAND --help`.

- A result goes to stdout as a table, with `--json` as one JSON object on the last line. Progress goes to stderr.
- Exit codes: 0 done; 2 bad input or usage, one line `error: ...` on stderr; 130 interrupted with what was done kept;
  1 anything else.
- An option that takes several values takes them behind each other or repeated: `--scene a.json b.json`,
  `--scene a.json --scene b.json`.
- Options without a default are required. An option without a value has an opposite: `--resume`, `--no-resume`.
"""
REQUIRED = "**required**"
_TYPES = {"str": "text", "int": "integer", "float": "number", "Path": "path"}


@dataclass(frozen=True)
class Option:
    """A line of a command's table."""

    name: str
    value: str  # what it takes
    default: str
    meaning: str
    opposite: str | None = None  # of an option without a value: its other name


@dataclass(frozen=True)
class Place:
    """A definition and the module where it is, in which its names mean something."""

    node: ast.AST
    module: str


def render() -> str:
    """The page."""
    commands = _commands()
    owners = {settings: name for name, (_, settings, _) in commands.items()}
    names = "\n".join(f"| [`e2wm {name}`]({_anchor(name)}) | {_cell(what)} |" for name, (*_, what) in commands.items())
    parts = [INTRODUCTION, f"| command | |\n|---|---|\n{names}\n"]
    for name, (module, settings, _) in commands.items():
        parts.append(_section(name, find(settings, module), owners))
    return "\n".join(parts)


def all_options(command: str) -> list[Option]:
    """The options of a command, those of the class that its settings extend before its own."""
    module, settings, _ = _commands()[command]
    return _with_bases(find(settings, module))


def _with_bases(place: Place) -> list[Option]:
    assert isinstance(place.node, ast.ClassDef)
    inherited = [option for base in place.node.bases for option in _with_bases(find(ast.unparse(base), place.module))]
    gone = {f"--{name.replace('_', '-')}" for name in _suppressed(place)}
    return [option for option in inherited if option.name not in gone] + options(place)


def _commands() -> dict[str, tuple[str, str, str]]:
    """Module, settings class and summary of each command, as cli.py lists them."""
    table = find("COMMANDS", "e2wm_jax.cli").node
    assert isinstance(table, ast.Assign)
    assert isinstance(table.value, ast.Dict)
    found = {}
    for key, call in zip(table.value.keys, table.value.values, strict=True):
        assert isinstance(key, ast.Constant)
        assert isinstance(call, ast.Call)
        settings, _, summary = map(ast.literal_eval, call.args)
        module, _, settings = settings.rpartition(".")
        found[key.value] = (f"e2wm_jax.{module}", settings, summary)
    return found


def _section(name: str, place: Place, owners: dict[str, str]) -> str:
    assert isinstance(place.node, ast.ClassDef)
    bases = [base for base in map(ast.unparse, place.node.bases) if base in owners]  # with a table of their own
    listed = options(place) if bases else _with_bases(place)
    rows = [f"| `{o.name}` | {o.value} | {o.default} | {_cell(o.meaning)} |" for o in listed]
    parts = [f"## e2wm {name}\n", *_prose(ast.get_docstring(place.node) or "")]
    if rows:
        parts.append("| option | value | default | |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    for base in bases:
        without = "".join(f", but not `--{name}`" for name in _suppressed(place))
        parts.append(f"And all options of [`e2wm {owners[base]}`]({_anchor(owners[base])}){without}.\n")
    return "\n".join(parts)


def options(place: Place, prefix: str = "") -> list[Option]:
    """Those that a settings class itself declares; of a field that is a settings class, that class's with a prefix."""
    assert isinstance(place.node, ast.ClassDef)
    found: list[Option] = []
    nested: list[Option] = []
    lines = _source(place.module).splitlines(keepends=True)
    body = place.node.body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or _is_suppressed(statement):
            continue
        assert isinstance(statement.target, ast.Name)
        name = statement.target.id.replace("_", "-")
        inner = _nested(statement.annotation, place.module)
        if inner is not None:
            nested += options(inner, f"{prefix}{name}.")
            continue
        positional = "Positional" in ast.unparse(statement.annotation)
        flag, opposite = name.upper() if positional else f"--{prefix}{name}", None
        value, default = _value(statement.annotation, place.module), _default(statement.value, place.module)
        if value == "bool":
            value, opposite = "", f"--{prefix}no-{name}"
            if default == "on":
                flag, opposite = opposite, flag
        found.append(Option(flag, value, default, _meaning(statement, following, lines), opposite))
    return found + nested


def _meaning(field: ast.AnnAssign, following: ast.stmt | None, lines: Sequence[str]) -> str:
    """The string below a field, or else the comments beside it, or those above it, as tyro has it."""
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        return str(following.value.value)
    own = _comments(lines[field.lineno - 1 : field.end_lineno])
    above: list[str] = []
    for line in reversed(lines[: field.lineno - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip("# \n"))
    return " ".join(own or above)


def _comments(lines: Sequence[str]) -> list[str]:
    text = "".join(line.strip() + "\n" for line in lines)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token.string.strip("# ") for token in tokens if token.type == tokenize.COMMENT]


def _value(annotation: ast.expr, module: str) -> str:
    """What an option takes: "integer", or its choices."""
    if isinstance(annotation, ast.BinOp):  # X | None
        return _value(annotation.left, module)
    if isinstance(annotation, ast.Subscript):
        outer, inner = ast.unparse(annotation.value), annotation.slice
        if outer == "Literal":
            choices = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            return ", ".join(f"`{ast.literal_eval(choice)}`" for choice in choices)
        if outer == "tuple":
            assert isinstance(inner, ast.Tuple)
            return f"{_value(inner.elts[0], module)} ..."
        assert outer == "Annotated" or "Positional" in outer, outer
        return _value(inner.elts[0] if isinstance(inner, ast.Tuple) else inner, module)
    name = ast.unparse(annotation)
    if name in _TYPES or name == "bool":
        return _TYPES.get(name, name)
    place = find(name, module)
    assert isinstance(place.node, ast.Assign), name
    return _value(place.node.value, place.module)


def _default(value: ast.expr | None, module: str) -> str:
    """Of an option, as it would be typed; an expression that is no constant as it stands."""
    if value is None:
        return REQUIRED
    if isinstance(value, ast.Name):
        place = find(value.id, module)
        assert isinstance(place.node, ast.Assign)
        return _default(place.node.value, place.module)
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Path":
        value = value.args[0]
    try:
        constant = ast.literal_eval(value)
    except ValueError:
        return f"`{ast.unparse(value)}`"
    if isinstance(constant, bool):
        return "on" if constant else "off"
    words = constant if isinstance(constant, tuple) else (constant,)
    return " ".join(f"`{_in_table(str(word))}`" for word in words if word not in (None, ""))


def _nested(annotation: ast.expr, module: str) -> Place | None:
    """The settings class that a field's type is, if it is one."""
    if not isinstance(annotation, ast.Name) or annotation.id in (*_TYPES, "bool"):
        return None
    place = find(annotation.id, module)
    return place if isinstance(place.node, ast.ClassDef) else None


def _is_suppressed(field: ast.AnnAssign) -> bool:
    return "Suppress" in ast.unparse(field.annotation)


def _suppressed(place: Place) -> Iterator[str]:
    """Fields that a settings class takes away from its base."""
    assert isinstance(place.node, ast.ClassDef)
    for field in place.node.body:
        if isinstance(field, ast.AnnAssign) and _is_suppressed(field):
            yield ast.unparse(field.target)


@cache
def _source(module: str) -> str:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return file.read_text(encoding="utf-8")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_source(module))


def find(name: str, module: str) -> Place:
    """Where a name of a module is defined, through the imports of our own modules.

    Raises:
        LookupError: if there is no such name.
    """
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Place(node, module)
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == name for target in node.targets):
            return Place(node, module)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return find(alias.name, str(node.module))
    raise LookupError(f"{module} has no {name}")


def _prose(docstring: str) -> Iterator[str]:
    """Paragraphs; one that is a command as a block."""
    for paragraph in docstring.split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[0].startswith("e2wm "):
            yield "```sh\n" + " \\\n    ".join(lines) + "\n```\n"
        else:
            yield "\n".join(lines).replace("``", "`") + "\n"


def _cell(text: str) -> str:
    """A text within a table; what is between backticks is left alone."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"\s+", " ", text).strip())
    return _in_table("".join(part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts))


def _in_table(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(command: str) -> str:
    return f"#e2wm-{command.replace(' ', '-')}"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
