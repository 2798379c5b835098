"""Write docs/api/, a page for each package, from the docstrings of the sources: `make docs`.

Each module is a stub: signatures, fields and docstrings of its public functions and classes as they stand in the
source, comments on shapes included.  The sources are parsed and not imported.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, FOLDER = ROOT / "e2wm_jax", ROOT / "docs/api"
GROUND = "ground"  # the page of modules that are no part of a package
NOTE = "This page is written by `make docs` from the docstrings.\n"
# What only commands and compiled code use: read the sources.
LEFT_OUT = re.compile(
    r"(bench|kernels|pages|demo|doctor|cli|__main__|(worlds\.household|experience\.search)\.(native|batched))(\..*)?"
)


def render() -> dict[Path, str]:
    """The pages by their paths."""
    pages: dict[str, list[str]] = {}
    rows = []
    for name, path in modules():
        page = name.partition(".")[0] if (PACKAGE / name.partition(".")[0]).is_dir() else GROUND
        tree = tree_of(path)
        section = _section(name, path, tree)
        pages.setdefault(page, []).append(section)
        what = (ast.get_docstring(tree) or "").split("\n")[0]
        rows.append((page, f"| [`{name}`]({page}.md#{_anchor(name)}) | {_escaped(what)} |"))
    found = {FOLDER / f"{page}.md": f"# {page}\n\n{NOTE}\n" + "\n".join(parts) for page, parts in pages.items()}
    return {FOLDER / "README.md": _index(rows), **found}


def modules() -> Iterator[tuple[str, Path]]:
    """Documented modules, by their names without "e2wm_jax."."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__" and not LEFT_OUT.fullmatch(name):
            yield name, path


@cache
def tree_of(path: Path) -> ast.Module:
    """A parsed source."""
    return ast.parse(path.read_text(encoding="utf-8"))


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes that others may use."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def _index(rows: list[tuple[str, str]]) -> str:
    ordered = sorted(rows, key=lambda row: row[0] == GROUND)  # stable; the ground last
    table = "\n".join(row for _, row in ordered)
    return f"# The modules\n\n{NOTE}\n| e2wm_jax. | |\n|---|---|\n{table}\n"


def _section(name: str, path: Path, tree: ast.Module) -> str:
    source = f"../../{path.relative_to(ROOT).as_posix()}"
    lines = path.read_text(encoding="utf-8").splitlines()
    parts = [f"## {name}\n", f"[source]({source})\n", f"{_prose(ast.get_docstring(tree) or '')}\n"]
    aliases = "\n".join(line for node in tree.body for line in _alias(node, lines))
    stubs = ["\n".join(_stub(node, lines)) for node in public(tree.body) if not _is_settings(node)]
    if aliases or stubs:
        parts.append("```python\n{}\n```\n".format("\n\n\n".join(filter(None, [aliases, *stubs]))))
    for node in filter(_is_settings, public(tree.body)):
        parts.append(f"`{node.name}`: [the command line](../command-line.md).\n")
    return "\n".join(parts)


def _is_settings(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return node.name.endswith("Settings")


def _alias(node: ast.stmt, lines: list[str]) -> Iterator[str]:
    """A name for a type, such as ``Labels = Literal["data", "sampled"]``."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
        if name[0].isupper() and not name.isupper():
            yield from lines[node.lineno - 1 : node.end_lineno]


def _stub(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> list[str]:
    """Source lines up to the docstring's end; of a class its fields and methods too."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    begin = node.body[0]
    documented = ast.get_docstring(node) is not None
    found = lines[first - 1 : begin.end_lineno if documented else begin.lineno - 1]
    if isinstance(node, ast.FunctionDef):
        return found if documented else [*found[:-1], f"{found[-1]} ..."]
    for before, member in zip([None, *node.body], node.body, strict=False):
        if isinstance(member, ast.AnnAssign) and not ast.unparse(member.target).startswith("_"):
            apart = [] if isinstance(before, ast.AnnAssign) else [""]
            found += [*apart, *lines[_comment(member.lineno, lines) - 1 : member.end_lineno]]
        elif isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
            found += ["", *_stub(member, lines)]
    return found


def _comment(line: int, lines: list[str]) -> int:
    """The line at which the comments above a line begin."""
    while lines[line - 2].strip().startswith("#"):
        line -= 1
    return line


def _prose(docstring: str) -> str:
    """Paragraphs; indented lines, which Markdown shows as they are, apart from text."""
    found: list[str] = []
    for line in docstring.splitlines():
        indented = line.startswith("    ")
        if found and found[-1] and line and indented != found[-1].startswith("    "):
            found.append("")
        found.append(line if indented else _escaped(line))
    return "\n".join(found)


def _escaped(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", text.replace("``", "`"))
    return "".join(part if part.startswith("`") else re.sub(r"([*<|])", r"\\\1", part) for part in parts)


def _anchor(name: str) -> str:
    return name.replace(".", "")


def main() -> None:
    """Write the pages; those of modules that are gone go too."""
    pages = render()
    FOLDER.mkdir(exist_ok=True)
    for path in set(FOLDER.glob("*.md")) - pages.keys():
        path.unlink()
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
