"""Text in: task files, documents and mixtures, with errors that name file and line."""

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from e2wm_jax.data.example import Document, Example, Question, TaskExample
from e2wm_jax.data.online import PREFIX, OnlineTask, parse_online
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json_lines, read_text

PYDOC_SPLITS = ("pydoc:fisher", "pydoc:held-out")


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
        mixture += [(weight, source) for source in sources]
        before = None
    if before is not None:
        raise InputError(f"{flag} {text!r}: the last weight has no file behind it; write 'weight file weight file'")
    return mixture


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
    """Examples {"input", "ref"} of a task file (JSON lines, possibly gzipped).

    Raises:
        InputError: naming file:line where a key is missing or no string, or the file where it has no rows.
    """
    examples = []
    for number, record in read_json_lines(path):
        where = f"{path}:{number}"
        source, ref = (_string(record, key, where) for key in ("input", "ref"))
        examples.append(TaskExample(source, ref, weight, where))
    if not examples:
        raise InputError(f"{path}: no rows; each line must be an object with 'input' and 'ref'")
    return examples


def read_mixture(mixture: Sequence[tuple[float, Path | OnlineTask]]) -> list[Example]:
    """All examples of the files of a mixture, in order; of plain text (`*.txt`, possibly gzipped) each document is one,
    all of it to be learned."""
    files = [(weight, path) for weight, path in mixture if isinstance(path, Path)]
    return [example for weight, path in files for example in _read_examples(path, weight)]


def _read_examples(path: Path, weight: float) -> Sequence[Example]:
    if not _is_plain_text(path):
        return read_task(path, weight)
    documents = enumerate(read_documents(str(path)), start=1)
    return [Document(document, weight, f"{path}: document {number}") for number, document in documents]


def online_tasks(mixture: Sequence[tuple[float, Path | OnlineTask]]) -> tuple[tuple[float, OnlineTask], ...]:
    """The tasks of a mixture whose examples are made on demand, with their weights."""
    return tuple((weight, task) for weight, task in mixture if isinstance(task, OnlineTask))


def read_questions(path: Path) -> list[Question]:
    """Questions {"input", "answer", "answer_list"} of a QA file.

    Raises:
        InputError: naming file:line where a key is missing, or the answer is not among the choices.
    """
    questions = []
    for number, record in read_json_lines(path):
        where = f"{path}:{number}"
        source, answer = (_string(record, key, where) for key in ("input", "answer"))
        choices = record.get("answer_list")
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) for c in choices):
            raise InputError(f"{where}: 'answer_list' must be a list of at least two strings")
        if answer not in choices:
            raise InputError(f"{where}: the answer {answer!r} is not in 'answer_list'")
        questions.append(Question(source, tuple(choices), choices.index(answer), where))
    if not questions:
        raise InputError(f"{path}: no rows; each line must be an object with 'input', 'answer' and 'answer_list'")
    return questions


def read_documents(path: str) -> list[str]:
    """Documents of a text source.

    Args:
        path: JSON lines with "text"; plain text with documents separated by blank lines (`*.txt`); either gzipped; or
            "pydoc:fisher" / "pydoc:held-out", the two halves of the English help topics inside every CPython.

    Raises:
        InputError: naming file:line for a malformed row, or the file where it has no text.
    """
    if path in PYDOC_SPLITS:
        return _pydoc_topics("fisher" if path == "pydoc:fisher" else "held-out")
    file = Path(path)
    if _is_plain_text(file):
        documents = [block.strip() for block in re.split(r"\n\s*\n", read_text(file))]
    else:
        documents = [_string(record, "text", f"{file}:{number}") for number, record in read_json_lines(file)]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise InputError(
            f"{file}: no documents; give JSON lines with 'text', or .txt with blank lines between documents"
        )
    return documents


def _is_plain_text(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".txt")


def _pydoc_topics(split: Literal["fisher", "held-out"]) -> list[str]:
    """Half of Python's help topics, chosen by a hash of the topic's name so that it is the same in every process."""
    from pydoc_data.topics import topics

    def parity(name: str) -> int:
        return hashlib.sha256(name.encode()).digest()[0] % 2

    wanted = 0 if split == "fisher" else 1
    return [topics[name].strip() for name in sorted(topics) if parity(name) == wanted]


def _string(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        what = "is missing" if key not in record else f"is {type(value).__name__}, not a string"
        raise InputError(f"{where}: the key {key!r} {what}")
    return value
