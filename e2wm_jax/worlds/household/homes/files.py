"""Scenes that are files, kept beside what was lived in them, so that a folder can be moved with its scenes.

A kept scene is named by its content, ``scenes/home-1f2e3d4c5b6a.json.gz``; records name it relative to their folder.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from e2wm_jax.storage.files import replacing, sha256
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.homes.robothow import ROBOTHOW
from e2wm_jax.worlds.household.homes.scenes import PREPARED, PROCEDURAL, Scene

FOLDER = "scenes"
_DIGITS = 12  # of the SHA-256


def path_of(name: str) -> Path | None:
    """The file of a scene's name; None for a scene that is made (``procedural:7``) or installed (``robothow:ID``)."""
    base = name.partition(PREPARED)[0]
    return None if base.startswith((ROBOTHOW, PROCEDURAL)) or base == PROCEDURAL[:-1] else Path(base)


def with_path(name: str, path: Path | str) -> str:
    """The name of the scene with another file, prepared as before."""
    _, prepared, program = name.partition(PREPARED)
    return f"{path}{prepared}{program}"


def is_file(path: Path) -> bool:
    """Whether there is such a file; no for what cannot be the name of one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def located(name: str, folder: Path) -> str:
    """A name of a record in ``folder`` as seen from here: relative to the folder if the file is there; otherwise as it
    is, which is how earlier versions wrote it."""
    path = path_of(name)
    if path is None or path.is_absolute() or not is_file(folder / path):
        return name
    return with_path(name, os.path.normpath(folder / path))


def load(name: str, folder: Path | None) -> Scene:
    """`scenes.load`; a file that is no longer where it was is looked up by its name in ``folder``.

    Raises:
        InputError: as `scenes.load`.
    """
    path = path_of(name)
    if folder is None or path is None or is_file(path):
        return scenes.load(name)
    moved = folder / path.name
    return scenes.load(with_path(name, moved if moved.is_file() else moved.with_name(moved.name + ".gz")))


def kept_names(names: Iterable[str]) -> dict[Path, str]:
    """For the files among the scenes' names that there are, the names under which `keep` keeps them."""
    paths = dict.fromkeys(path for name in names if (path := path_of(name)) is not None and is_file(path))
    return {path: f"{FOLDER}/{_name(path)}" for path in paths}


def _name(path: Path) -> str:
    digest = sha256(path)[:_DIGITS]
    stem, dot, suffix = path.name.partition(".json")
    return f"{stem.removesuffix(f'-{digest}')}-{digest}{dot}{suffix}"


def keep(kept: dict[Path, str], folder: Path) -> None:
    """Copy the files of `kept_names` into the folder, those that are not there."""
    for path, name in kept.items():
        if not (folder / name).is_file():
            with replacing(folder / name) as temporary:
                shutil.copyfile(path, temporary)


def renamed(name: str, kept: dict[Path, str], start: str = "") -> str:
    """The name of a scene with its kept file, ``start`` before that; any other name as it is."""
    path = path_of(name)
    return name if path is None or path not in kept else with_path(name, start + kept[path])
