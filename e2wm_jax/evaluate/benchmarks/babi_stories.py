"""The files of bAbI's twenty tasks (Weston et al. 2015, arXiv:1502.05698): stories and the questions about them.

Lines are numbered from 1 within each story.  A statement has a text; a question has behind it, between tabs, its answer
and the numbers of the statements that it follows from:

    1 Mary moved to the bathroom.
    2 John went to the hallway.
    3 Where is Mary?<tab>bathroom<tab>1

Several answers stand between commas ("football,apple", "s,w").  Some copies have | in place of tabs in task 1; both are
read.  An archive is read in memory: the names inside it decide which member is read, and nothing is written.
"""

import random
import re
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from e2wm_jax.errors import InputError

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
TASKS = {
    number: name
    for number, name in enumerate(
        (
            "single supporting fact",
            "two supporting facts",
            "three supporting facts",
            "two-argument relations",
            "three-argument relations",
            "yes/no questions",
            "counting",
            "lists/sets",
            "simple negation",
            "indefinite knowledge",
            "basic coreference",
            "conjunction",
            "compound coreference",
            "time reasoning",
            "basic deduction",
            "basic induction",
            "positional reasoning",
            "size reasoning",
            "path finding",
            "agent's motivations",
        ),
        start=1,
    )
}
_LARGEST_FILE = 1 << 26  # bytes; the largest of the released files has 6 million
_FILE_NAME = re.compile(r"qa(\d+)_.+_(train|test)\.txt")


class StoryQuestion(NamedTuple):
    """One question with the statements of its story before it; earlier questions are left out."""

    passage: tuple[str, ...]
    question: str
    answer: str
    supports: tuple[int, ...]  # indices into the passage
    story: int  # of the file, from 0
    where: str  # "file:line"


class TaskQuestions(NamedTuple):
    """Both splits of one task."""

    train: list[StoryQuestion]
    test: list[StoryQuestion]


def parse_tasks(text: str) -> tuple[int, ...]:
    """Task numbers of "1-20" or "1,3,15-17", in order, each once.

    Raises:
        InputError: for anything else, or numbers outside 1 to 20.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,3})\s*(?:-\s*(\d{1,3})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 1 <= first <= last <= len(TASKS):
            raise InputError(
                f"--tasks {text}: {part.strip()!r} is no task or range in 1-{len(TASKS)}; write 1-20 or 1,4-6"
            )
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def read_tasks(source: Path, tasks: Sequence[int]) -> dict[int, TaskQuestions]:
    """The questions of some tasks from a folder, at any depth, or a (compressed) tar of it.

    Raises:
        InputError: if a file of a task is missing, there several times, or malformed.
    """
    texts = _read_archive(source, tasks) if source.is_file() else _read_folder(source, tasks)
    return {task: TaskQuestions(*(parse(*texts[task, split]) for split in SPLITS)) for task in tasks}


def parse(text: str, name: str) -> list[StoryQuestion]:
    """All questions of one file.

    Args:
        name: of the file, for messages.

    Raises:
        InputError: naming file:line where a line is neither statement nor question, or numbers make no sense.
    """
    questions: list[StoryQuestion] = []
    statements: dict[int, str] = {}  # of the present story, by line number
    story, expected = -1, 1
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        match = re.fullmatch(r"(\d+) (.*\S)\s*", line)
        if not match or int(match[1]) not in (1, expected):
            raise InputError(f"{where}: {line[:40]!r}: expected '{expected} ' and a text, or '1 ' for the next story")
        place = int(match[1])
        if place == 1:
            story, statements = story + 1, {}
        expected = place + 1
        body, *fields = (field.strip() for field in re.split(r"[\t|]", match[2]))
        if not fields:
            statements[place] = body
            continue
        supports = [int(word) for word in fields[1].split() if word.isdecimal()] if len(fields) == 2 else []
        if not supports or not fields[0] or not all(support in statements for support in supports):
            raise InputError(
                f"{where}: a question needs a tab, its answer, a tab and the numbers of statements of its story"
            )
        index = {line_number: i for i, line_number in enumerate(statements)}
        facts = tuple(index[support] for support in supports)
        questions.append(StoryQuestion(tuple(statements.values()), body, fields[0], facts, story, where))
    if not questions:
        raise InputError(f"{name}: no questions; give bAbI's files qa1_*_train.txt, qa1_*_test.txt and so on")
    return questions


def draw_shots(train: Sequence[StoryQuestion], number: int, *, seed: int, task: int) -> list[StoryQuestion]:
    """`number` stories of the train split, each with one of its questions; the same for the same seed and task.

    Raises:
        InputError: if there are fewer stories.
    """
    stories: dict[int, list[StoryQuestion]] = {}
    for question in train:
        stories.setdefault(question.story, []).append(question)
    if number > len(stories):
        raise InputError(f"--shots {number}: the train split of task {task} has {len(stories)} stories; give fewer")
    rng = random.Random(f"bAbI {task} {seed}")  # seeded by the text itself, not by its hash: the same in every process
    return [rng.choice(stories[story]) for story in rng.sample(sorted(stories), number)]


def _read_folder(folder: Path, tasks: Sequence[int]) -> dict[tuple[int, Split], tuple[str, str]]:
    if not folder.is_dir():
        raise InputError(f"--data {folder}: no such file or folder; give bAbI's folder or archive (.tar.gz)")
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("qa*.txt")) if path.is_file()}
    return {
        key: (_decoded(paths[name].read_bytes(), str(paths[name])), str(paths[name]))
        for key, name in _wanted(paths, tasks, folder).items()
    }


def _read_archive(path: Path, tasks: Sequence[int]) -> dict[tuple[int, Split], tuple[str, str]]:
    try:
        with tarfile.open(path, "r:*") as archive:
            members = {member.name: member for member in archive.getmembers() if member.isfile()}
            texts = {}
            for key, name in _wanted(members, tasks, path).items():
                where = f"{path}({name})"
                file = archive.extractfile(members[name])
                content = file.read(_LARGEST_FILE + 1) if file else b""
                if len(content) > _LARGEST_FILE:
                    raise InputError(f"{where}: more than {_LARGEST_FILE >> 20} MB; no file of bAbI is that large")
                texts[key] = _decoded(content, where), where
            return texts
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(
            f"--data {path}: not a readable tar archive ({error}); give bAbI's folder or .tar.gz"
        ) from error


def _wanted(names: Iterable[str], tasks: Sequence[int], source: Path) -> dict[tuple[int, Split], str]:
    """The one file of each split of each task; of several, that of a folder "en" (the original 1,000 questions)."""
    found: dict[tuple[int, str], list[str]] = {}
    for name in names:
        if match := _FILE_NAME.fullmatch(PurePosixPath(name).name):
            found.setdefault((int(match[1]), match[2]), []).append(name)
    wanted: dict[tuple[int, Split], str] = {}
    for task in tasks:
        for split in SPLITS:
            candidates = found.get((task, split), [])
            if len(candidates) > 1:
                english = [name for name in candidates if PurePosixPath(name).parent.name == "en"]
                candidates = english or candidates
            if len(candidates) != 1:
                what = f"several ({', '.join(candidates[:3])}); give the folder of one" if candidates else "not there"
                raise InputError(f"--data {source}: qa{task}_*_{split}.txt is {what}")
            wanted[task, split] = candidates[0]
    return wanted


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text (byte {error.start}); fetch the file again") from error
