"""Names of a package that are imported when somebody asks for them, so that importing the package takes no time."""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any


def exports(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package (PEP 562): of the names that it imports for type checkers,
    under `if TYPE_CHECKING`."""
    homes = _homes(package)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}",
                name=name,
                obj=sys.modules[package],
            )
        module, own = homes[name]
        # Of its own modules the package would be asked for again.
        found = importlib.import_module(f"{package}.{own}" if module == package else module)
        value = found if module == package else getattr(found, own)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return sorted(homes), get, names


def _homes(package: str) -> dict[str, tuple[str, str]]:
    """For each name the module that it is imported from, and what it is called there."""
    tree = ast.parse(inspect.getsource(sys.modules[package]))
    branches = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for branch in branches for node in branch.body if isinstance(node, ast.ImportFrom)]
    return {one.asname or one.name: (str(node.module), one.name) for node in imports for one in node.names}
