"""Names of a package that are imported when somebody asks for them, so that importing the package takes no time."""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def exports(package: str, homes: dict[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        homes: for each public name the module that has it; "module:name" where it is called otherwise there, and where
            the module is that of this very name, the module itself.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}",
                name=name,
                obj=sys.modules[package],
            )
        module, _, own = homes[name].partition(":")
        found = importlib.import_module(module)
        value = found if module == f"{package}.{name}" else getattr(found, own or name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return sorted(homes), get, names
