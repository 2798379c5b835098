"""What a row of data is, once it has been read: what the model sees, what it is to learn, and where it stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}, as chat templates read it


@dataclass(frozen=True)
class TaskExample:
    """A question and its answer as E2WM writes them: f"{input} {ref}\\n", of which all behind the input is learned."""

    input: str
    ref: str
    weight: float = 1.0  # alpha_v of its file
    where: str = "example"  # "file:line", for messages


@dataclass(frozen=True)
class Completion:
    """A prompt and what is to follow it, put together as they are."""

    prompt: str
    completion: str
    weight: float = 1.0
    where: str = "example"


@dataclass(frozen=True)
class Document:
    """A text to be learned as it is, all of it."""

    text: str
    weight: float = 1.0
    where: str = "example"


@dataclass(frozen=True)
class Conversation:
    """Turns that the tokenizer's chat template puts together; what the assistant says is learned."""

    messages: Sequence[Message]
    weight: float = 1.0
    where: str = "example"
    prompt: int | None = None  # of prompt and completion: so many messages are the prompt, all others are learned
    tools: Sequence[Mapping[str, Any]] | None = None


Example = TaskExample | Completion | Document | Conversation


@dataclass(frozen=True)
class Question:
    """One multiple-choice question."""

    input: str
    answers: tuple[str, ...]
    gold: int
    where: str
