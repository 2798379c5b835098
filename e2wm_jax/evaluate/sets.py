"""The evaluation sets of a folder, found by the names of its files."""

import os
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from e2wm_jax.data.source import PYDOC_SPLITS, Question, TaskExample, read_documents, read_questions, read_task
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.questions.qa import RULES
from e2wm_jax.evaluate.results import KINDS
from e2wm_jax.options.choices import SetKind

GENERATION = ("plan_gen", "plan_gen_unseen", "plan_gen_confusing", "plan_gen_unseen_confusing", "obj_move_path")
_BABI = re.compile(r"qa(\d+)_.*_test\.txt")
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_TEXTS = (".txt", ".jsonl")
_NO_TEXT = ("license", "licence", "readme", "notice", "copying")  # names that stand beside data
Example = Question | TaskExample | str


class EvalSet(NamedTuple):
    """One file, folder or archive to evaluate on."""

    name: str
    kind: SetKind
    path: Path  # for text also "pydoc:held-out"


def find_sets(source: Path | str) -> tuple[EvalSet, ...]:
    """Every evaluation set below a folder, or of one file: questions, generation, bAbI, general text, by name.

    Questions and generation have the official names, as .json or .jsonl; text is any other .txt or .jsonl (all may end
    in .gz), or pydoc:held-out; bAbI is a folder or a tar archive with its qa*_test.txt.  Files named otherwise, such as
    training files, are left out.

    Raises:
        InputError: if there is nothing, or two sets have the same name.
    """
    if str(source) in PYDOC_SPLITS:
        return (EvalSet("pydoc", "perplexity", Path(source)),)
    root = Path(source)
    if not root.exists():
        raise InputError(f"--data {root}: no such file or folder")
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    stories = [path for path in files if _BABI.fullmatch(path.name)]
    found = [EvalSet("babi", "babi", _common_folder(stories))] if stories else []
    story_folders = {path.parent for path in stories}
    for path in files:
        if path.parent not in story_folders and (kind := _kind(path)) is not None:
            found.append(EvalSet("babi" if kind == "babi" else _name(path), kind, path))
    return merged(found, str(root))


def merged(sets: Iterable[EvalSet], where: str) -> tuple[EvalSet, ...]:
    """The sets in the order of `KINDS`.

    Raises:
        InputError: if there are none, or two have the same name.
    """
    found: dict[str, EvalSet] = {}
    for one in sets:
        if one.name in found:
            raise InputError(f"{one.path}: a set {one.name!r} is also in {found[one.name].path}; rename or remove one")
        found[one.name] = one
    if not found:
        names = ", ".join([*RULES, *GENERATION])
        raise InputError(f"--data {where}: nothing to evaluate on; files are found by name: {names}, *.txt, *.jsonl")
    return tuple(sorted(found.values(), key=lambda one: (KINDS.index(one.kind), one.name)))


def read_set(one: EvalSet) -> list[Question] | list[TaskExample] | list[str]:
    """The examples of a set; of bAbI none, which reads its own.

    Raises:
        InputError: naming file:line for what is malformed.
    """
    if one.kind == "qa":
        return read_questions(one.path)
    if one.kind == "generate":
        return read_task(one.path)
    return read_documents(str(one.path)) if one.kind == "perplexity" else []


def sample(name: str, number: int, samples: int | None, seed: int) -> list[int]:
    """Which examples of a set of ``number`` are used: all, or as many as ``samples`` drawn without replacement, in the
    order of the file; a function of the seed and the set's name alone, so the same for every model."""
    if samples is None or samples >= number:
        return list(range(number))
    rng = np.random.default_rng([seed, *name.encode()])
    return sorted(rng.choice(number, samples, replace=False).tolist())


def babi_tasks(path: Path) -> tuple[int, ...]:
    """The numbers of the bAbI tasks in a folder or archive."""
    names = _members(path) if path.is_file() else [file.name for file in path.rglob("qa*.txt")]
    matches = (_BABI.fullmatch(name) for name in names)
    return tuple(sorted({int(match[1]) for match in matches if match}))


def _kind(path: Path) -> SetKind | None:
    if path.name.endswith(_ARCHIVES):
        return "babi" if babi_tasks(path) else None
    plain = path.name.removesuffix(".gz")
    if plain.endswith((".json", ".jsonl")):
        if _name(path) in RULES:
            return "qa"
        if _name(path) in GENERATION:
            return "generate"
    return "perplexity" if plain.endswith(_TEXTS) and not plain.lower().startswith(_NO_TEXT) else None


def _name(path: Path) -> str:
    return path.name.split(".")[0]


def _common_folder(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _members(path: Path) -> list[str]:
    try:
        with tarfile.open(path) as archive:
            return [Path(name).name for name in archive.getnames()]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{path}: not a readable tar archive ({error}); fetch it again or remove it") from error
