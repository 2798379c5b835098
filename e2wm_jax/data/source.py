"""Text in: task files, documents and mixtures, with errors that name file and line."""

import hashlib
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from e2wm_jax.data.columns import choose_form, examples, text_of, text_under
from e2wm_jax.data.example import Document, Example, Question, TaskExample
from e2wm_jax.data.online.names import PREFIX, OnlineTask, parse_online
from e2wm_jax.data.records import column_names, read_records
from e2wm_jax.errors import InputError
from e2wm_jax.running.progress import say_once
from e2wm_jax.storage.files import is_there, read_text

PYDOC_SPLITS = ("pydoc:fisher", "pydoc:held-out")
_OF_COLUMNS = ("data", "validation", "tasks", "tests")  # the settings that --columns is about


def parse_mixture(texts: str | Sequence[str], flag: str = "--data") -> list[tuple[float, Path | OnlineTask]]:
    """Parse what --data was given, each value a file, "file:weight" or a mixture "1 plan.json 0.7 online:act_recog",
    into [(weight, path or task), ...]; a bare name has weight 1.

    A value that is the name of a file is that file, whatever stands in it; in a mixture, names with blanks are quoted
    as in a shell.

    Args:
        flag: what the texts were given to, for messages.

    Raises:
        InputError: for a weight without a name, a weight that is not positive, or an unknown online task.
    """
    mixture: list[tuple[float, Path | OnlineTask]] = []
    for text in [texts] if isinstance(texts, str) else texts:
        name, weight = _weighted(text)
        if _is_there(name):
            mixture.append((_checked(weight, f"{flag} {text!r}"), Path(name)))
        else:
            mixture += _parse_words(text, flag)
    if not mixture:
        raise InputError(f"{flag} is empty; write 'weight file weight file', e.g. '1 plan.json 0.7 activity.json'")
    return mixture


def _parse_words(text: str, flag: str) -> list[tuple[float, Path | OnlineTask]]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{flag} {text!r}: {str(error).lower()}; quote names that hold blanks or quotes") from error
    _check_blanks(text, words, flag)
    mixture: list[tuple[float, Path | OnlineTask]] = []
    before: str | None = None  # a weight that waits for its name
    for word in words:
        name, own = _weighted(word)
        if own is None and _is_number(word):
            if before is not None:
                raise InputError(
                    f"{flag} {text!r}: two weights in a row before {word!r}; write 'weight file weight file'"
                )
            before = word
            _checked(before, f"{flag} {text!r}")
            continue
        if own is not None and before is not None:
            raise InputError(f"{flag} {text!r}: {name!r} has two weights, {before} and {own}; give it one")
        weight = _checked(own or before, f"{flag} {text!r}")
        sources = parse_online(name) if name.startswith(PREFIX) else [Path(name)]
        for source in sources:
            if isinstance(source, Path):
                is_there(source)  # refuses what no file can be called
        mixture += [(weight, source) for source in sources]
        before = None
    if before is not None:
        raise InputError(f"{flag} {text!r}: the last weight has no file behind it; write 'weight file weight file'")
    return mixture


def _check_blanks(text: str, words: Sequence[str], flag: str) -> None:
    """A name that was cut at its blanks shows by a first part without an ending, which is no file."""
    for word, after in pairwise(words):
        is_name = not (_is_number(word) or _is_number(after) or word.startswith(PREFIX) or Path(word).suffix)
        on_the_hub = word.count("/") == 1 and not _is_there(str(Path(word).parent))
        if is_name and not on_the_hub and not _is_there(word):
            raise InputError(
                f"{flag} {text!r}: no such file; in a mixture, {word!r} is none; quote names with blanks: "
                f"'{word} {after}'"
            )


def _weighted(text: str) -> tuple[str, str | None]:
    """ "plan.json:0.7" as its name and its weight; without a weight, or where it is a file, the text itself."""
    name, colon, weight = text.rpartition(":")
    return (name, weight) if name and colon and _is_number(weight) and not _is_there(text) else (text, None)


def _checked(weight: str | None, where: str) -> float:
    if weight is not None and not 0 < float(weight) < float("inf"):
        raise InputError(f"{where}: weight {weight} must be positive")
    return 1.0 if weight is None else float(weight)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_there(name: str) -> bool:
    try:
        return bool(name.strip()) and not _is_number(name) and Path(name).exists()
    except (OSError, ValueError):  # no name that a file can have
        return False


def read_task(path: Path, weight: float = 1.0) -> list[TaskExample]:
    """Examples {"input", "ref"} of a task file, in any format of `records`.

    Raises:
        InputError: naming file:line where a key is missing or no string, or the file where it has no rows.
    """
    rows = read_records(path).rows
    if not rows:
        raise InputError(f"{path}: no rows; each line must be an object with 'input' and 'ref'")
    return [
        TaskExample(text_under(row, "input", where), text_under(row, "ref", where), weight, where)
        for where, row in rows
    ]


def read_mixture(
    mixture: Sequence[tuple[float, Path | OnlineTask]], *, columns: str = "", chat: bool = False
) -> list[Example]:
    """All examples of the files of a mixture, in order. What a file was taken for is said once.

    Args:
        columns: which column is which, where their names do not say it: "prompt=question,completion=answer".
        chat: rows of question and answer, in whatever form, are turns of a conversation.

    Raises:
        InputError: naming file and line of what is malformed, or the file whose columns are of no known form.
    """
    files = [(weight, path) for weight, path in mixture if isinstance(path, Path)]
    return [example for weight, path in files for example in read_examples(path, weight, columns=columns, chat=chat)]


def read_examples(path: Path, weight: float = 1.0, *, columns: str = "", chat: bool = False) -> list[Example]:
    """The examples of one file; of plain text (`*.txt`) and of text columns each document that is not blank.

    Raises:
        InputError: as `read_mixture`.
    """
    if str(path) in PYDOC_SPLITS or _is_plain_text(path):
        if chat:
            raise InputError(f"{path}: --chat: plain text has no turns; leave it out, or give rows of messages")
        documents: list[Example] = [Document(document, weight, where) for where, document in _documents(path)]
        say_once(f"{path}: text, {_count(documents, 'document')}")
        return documents
    found = read_records(path)
    if not found.rows:
        raise InputError(f"{path}: no rows; docs/data.md shows what a file may hold")
    form, renamed = choose_form(list(found.rows[0][1]), str(path), columns)
    made = list(examples(found.rows, form, renamed, weight=weight, chat=chat))
    kept = [one for one in made if not isinstance(one, Document) or one.text.strip()]
    if not kept:
        raise InputError(f"{path}: no documents; every text is blank")
    named = f" (--columns {columns})" if renamed else ""
    others = [name for name in found.rows[0][1] if name and not renamed and name not in form.columns + form.more]
    unread = f"; not read: {', '.join(others[:4])}{' ...' if others[4:] else ''}" if others else ""
    say_once(f"{path}: {found.format} of {form.name}{named}, {_count(kept, 'example')}{unread}")
    return kept


def check_columns(settings: Any) -> None:
    """That --columns fits the data of a command's settings, before anything is loaded; no more than the first row of a
    file is looked at, and of data sets nothing.

    Raises:
        InputError: for a column that a file does not have, or if there is no file that could have any.
    """
    sources: list[Path | OnlineTask] = []
    for name in _OF_COLUMNS:
        given = getattr(settings, name, None) or ()
        for text in [given] if isinstance(given, str) else given:
            known = text in PYDOC_SPLITS or _is_there(text)
            sources += [Path(text)] if known else [source for _, source in parse_mixture(text, f"--{name}")]
    tables = [one for one in sources if isinstance(one, Path) and not (str(one) in PYDOC_SPLITS or _is_plain_text(one))]
    if not tables:
        raise InputError(f"--columns {settings.columns}: plain text and online tasks have no columns; leave it out")
    for path in tables:
        if is_there(path) and path.is_file() and (names := column_names(path)):
            choose_form(names, str(path), settings.columns)


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def online_tasks(mixture: Sequence[tuple[float, Path | OnlineTask]]) -> tuple[tuple[float, OnlineTask], ...]:
    """The tasks of a mixture whose examples are made on demand, with their weights."""
    return tuple((weight, task) for weight, task in mixture if isinstance(task, OnlineTask))


def read_questions(path: Path) -> list[Question]:
    """Questions {"input", "answer", "answer_list"} of a QA file.

    Raises:
        InputError: naming file:line where a key is missing, or the answer is not among the choices.
    """
    questions = []
    for where, record in read_records(path).rows:
        source, answer = (text_under(record, key, where) for key in ("input", "answer"))
        choices = record.get("answer_list")
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
            raise InputError(f"{where}: 'answer_list' must be a list of at least two strings")
        if answer not in choices:
            raise InputError(f"{where}: the answer {answer!r} is not in 'answer_list'")
        questions.append(Question(source, tuple(choices), choices.index(answer), where))
    if not questions:
        raise InputError(f"{path}: no rows; each line must be an object with 'input', 'answer' and 'answer_list'")
    return questions


def read_documents(path: str, *, columns: str = "") -> list[str]:
    """Documents of a text source: `read_texts` without their places."""
    return [document for _, document in read_texts(path, columns=columns)]


def read_texts(path: str, *, columns: str = "") -> list[tuple[str, str]]:
    """Documents of a text source with their places, "file:line".

    Args:
        path: plain text with documents separated by blank lines (`*.txt`); rows in any format of `records`, of which
            each is a document (`columns.text_of`); or "pydoc:fisher" / "pydoc:held-out", the two halves of the English
            help topics inside every CPython.
        columns: as of `read_mixture`.

    Raises:
        InputError: naming file:line for a malformed row, or the file where it has no text.
    """
    if path in PYDOC_SPLITS or _is_plain_text(Path(path)):
        return _documents(Path(path))
    found = read_records(Path(path))
    if not found.rows:
        raise InputError(f"{path}: no documents; give rows with 'text', or .txt with blank lines between documents")
    form, renamed = choose_form(list(found.rows[0][1]), path, columns)
    made = examples(found.rows, form, renamed, weight=1.0)
    texts = [(example.where, document) for example in made if (document := text_of(example)).strip()]
    if not texts:
        raise InputError(f"{path}: no documents; every text is blank")
    if form.columns != ("text",) or found.format != "JSON lines":
        say_once(f"{path}: {found.format} of {form.name}, {_count(texts, 'document')}")
    return texts


def _documents(path: Path) -> list[tuple[str, str]]:
    """Blocks of plain text between blank lines, as they are but for blanks around them; or of Python's help."""
    if str(path) in PYDOC_SPLITS:
        topics = _pydoc_topics("fisher" if str(path) == "pydoc:fisher" else "held-out")
        return [(f"{path}, document {number}", topic) for number, topic in enumerate(topics, start=1)]
    whole = read_text(path)
    found, line, last = [], 1, 0
    for block in re.finditer(r"\S(?:[^\n]|\n(?!\s*\n))*", whole):
        line, last = line + whole.count("\n", last, block.start()), block.start()
        found.append((f"{path}:{line}", block[0].strip()))
    if not found:
        raise InputError(f"{path}: no documents; write text, with blank lines between documents")
    return found


def _is_plain_text(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".txt")


def _pydoc_topics(split: Literal["fisher", "held-out"]) -> list[str]:
    """Half of Python's help topics, chosen by a hash of the topic's name so that it is the same in every process."""
    from pydoc_data.topics import topics

    def parity(name: str) -> int:
        return hashlib.sha256(name.encode()).digest()[0] % 2

    wanted = 0 if split == "fisher" else 1
    return [topics[name].strip() for name in sorted(topics) if parity(name) == wanted]
