"""A method of the user's own in `e2wm bench fisher --method-from my.py:my_fisher`.

    my_fisher(config, params, ids, loss) -> the mean over documents of their squared gradients, keys as in params

params: the chosen parameters by path, those of layers stacked; ids: int32 [N, T]; loss(params, ids[n]): the scalar mean
negative log-likelihood of one document; config: the model's.  It is compiled by `jax.jit`, once.

Letters: N documents, T tokens.
"""

import ast
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import read_text

Own = Callable[..., Mapping[str, jax.Array]]


def check_own(text: str) -> None:
    """See that a file or module has such a function, without running it.

    Raises:
        InputError: naming the flag, its value and what is missing.
    """
    path, name = _place(text)
    try:
        tree = ast.parse(read_text(path))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"--method-from {text}: {path} is no Python ({error})") from error
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if name not in functions:
        raise InputError(
            f"--method-from {text}: {path} has no function {name}; it has {', '.join(functions) or 'none at all'}"
        )


def load_own(text: str) -> Own:
    """The function, its module imported."""
    path, name = _place(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # it may import what lies beside it
    spec.loader.exec_module(module)
    return getattr(module, name)


def check_result(found: Any, params: Mapping[str, jax.Array]) -> None:
    """Refuse what is no F of these parameters.

    Raises:
        ValueError: naming what differs.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"it returns a {type(found).__name__}; it must return F in a dict with the keys of params")
    if odd := sorted(found.keys() ^ params.keys()):
        raise ValueError(
            f"{odd[0]} is {'in params' if odd[0] in params else 'returned'} only; return the keys of params"
        )
    for path, value in found.items():
        if value.shape != params[path].shape:
            raise ValueError(f"{path} has shape {value.shape}, in params {params[path].shape}")


def _place(text: str) -> tuple[Path, str]:
    """File and function of "my.py:function" or "package.module:function"."""
    where, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier():
        raise InputError(f"--method-from {text}: write FILE.py:FUNCTION or MODULE:FUNCTION")
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise InputError(f"--method-from {text}: {where}: no such file")
        return Path(where), name
    try:
        spec = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise InputError(f"--method-from {text}: no module {where} is installed; give the file, {where}.py:{name}")
    return Path(spec.origin), name
