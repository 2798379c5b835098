"""The two kinds of example that a task file holds, in E2WM's own JSON-lines form."""

from dataclasses import dataclass, field
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.tasks.source import Source


@dataclass(frozen=True)
class Generation:
    """A prompt and the text that should follow it; the training string is ``f"{input} {ref}\\n"``."""

    input: str
    ref: str
    source: Source | None = field(default=None, compare=False, repr=False)  # of plans; not part of the official form

    def to_json(self) -> dict[str, Any]:
        """The record as the official training and generation files write it."""
        return {"input": self.input, "ref": self.ref}

    @property
    def gold(self) -> str:
        """The text a perfect model would produce."""
        return self.ref


@dataclass(frozen=True)
class Choice:
    """A prompt and the answers to rank; ``answer`` is one of ``answer_list``."""

    input: str
    answer: str
    answer_list: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The record as the official QA files write it."""
        return {"input": self.input, "answer": self.answer, "answer_list": list(self.answer_list)}

    @property
    def gold(self) -> str:
        """The text a perfect model would choose."""
        return self.answer


Example = Generation | Choice


def from_json(record: dict[str, Any], *, where: str = "example") -> Example:
    """Read one record of a task file; ``where`` ("file:line") goes into the error.

    Raises:
        InputError: if a field is missing, is not text, or the answer is not among the choices.
    """
    if "answer_list" not in record:
        return Generation(_text(record, "input", where), _text(record, "ref", where))
    choices = record["answer_list"]
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise InputError(f"{where}: answer_list must be a list of texts")
    example = Choice(_text(record, "input", where), _text(record, "answer", where), tuple(choices))
    if choices.count(example.answer) != 1:
        raise InputError(f"{where}: answer {example.answer!r} must occur exactly once in answer_list {choices}")
    return example


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        found = "none" if value is None else type(value).__name__
        raise InputError(f"{where}: needs a text field {key!r}, found {found}")
    return value
