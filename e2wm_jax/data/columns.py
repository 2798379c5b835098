"""What the columns of data mean: rows to examples, by the names that the field has for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2wm_jax.data.example import Completion, Conversation, Document, Example, Message, TaskExample
from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import parse_json

Row = Mapping[str, Any]
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


@dataclass(frozen=True)
class Form:
    """Columns that together make an example."""

    columns: tuple[str, ...]  # all must be there
    make: Callable[[Row, float, str], Example]  # (row, weight, where)
    chat: Callable[[Row, float, str], Example] | None = None  # the same as turns of user and assistant
    more: tuple[str, ...] = ()  # read where they are there

    @property
    def name(self) -> str:
        return ", ".join(self.columns)


def choose_form(names: Sequence[str], where: str, columns: str = "") -> tuple[Form, dict[str, str]]:
    """The form of rows with columns of these names, and how to rename them.

    Args:
        where: the file, for messages.
        columns: what --columns says: "prompt=question,completion=answer".

    Raises:
        InputError: if there is no such form, naming the columns and the forms.
    """
    renamed = parse_columns(columns)
    for role, column in renamed.items():
        if column not in names:
            raise InputError(f"{where}: --columns {role}={column}: no such column; there are {_listed(names)}")
    # What --columns names is all that counts, so that other columns cannot make another form of it.
    known = set(renamed) if renamed else set(names)
    for form in FORMS:
        if set(form.columns) <= known and (not renamed or known <= {*form.columns, *form.more}):
            return form, {column: role for role, column in renamed.items()}
    forms = "; ".join(form.name for form in FORMS)
    if renamed:
        raise InputError(f"--columns {columns}: these do not belong together; forms are {forms}")
    *_, asked, answered = ["question", "answer", *names] if len(names) < 2 else names
    raise InputError(
        f"{where}: columns {_listed(names)} are of no known form ({forms}); say which are which, "
        f"e.g. --columns prompt={asked},completion={answered}"
    )


def parse_columns(text: str) -> dict[str, str]:
    """ "prompt=question,completion=answer" as {"prompt": "question", ...}.

    Raises:
        InputError: for what is no such list, or a name on the left that means nothing.
    """
    known = sorted({name for form in FORMS for name in (*form.columns, *form.more)})
    found: dict[str, str] = {}
    for part in text.split(",") if text else ():
        role, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column or role in found:
            raise InputError(f"--columns {text}: write NAME=COLUMN,NAME=COLUMN, each name once")
        if role not in known:
            raise InputError(f"--columns {text}: {role!r} is none of {', '.join(known)}")
        found[role] = column
    return found


def examples(
    rows: Sequence[tuple[str, Row]], form: Form, renamed: Mapping[str, str], *, weight: float, chat: bool = False
) -> Iterator[Example]:
    """The examples of rows of a form.

    Raises:
        InputError: naming the row where something is missing or of another type; with `chat` for rows without turns.
    """
    make = form.make
    if chat:
        if form.chat is None:
            raise InputError(f"{rows[0][0]}: --chat: rows of {form.name} have no turns; leave it out")
        make = form.chat
    for where, row in rows:
        own = {renamed[name]: value for name, value in row.items() if name in renamed} if renamed else row
        yield make(own, weight, where)


def text_of(example: Example) -> str:
    """What there is to read in an example: its text as it is, the turns of a conversation one below the other."""
    match example:
        case TaskExample():
            return f"{example.input} {example.ref}"
        case Completion():
            return example.prompt + example.completion
        case Document():
            return example.text
    return "\n\n".join(str(message["content"]) for message in example.messages if message.get("content"))


def text_under(record: Row, key: str, where: str) -> str:
    """The text under a key.

    Raises:
        InputError: if it is missing, or no text.
    """
    value = record.get(key)
    if not isinstance(value, str):
        what = "is missing" if key not in record else f"is {type(value).__name__}, not a string"
        raise InputError(f"{where}: the key {key!r} {what}")
    return value


def _task(row: Row, weight: float, where: str) -> TaskExample:
    return TaskExample(text_under(row, "input", where), text_under(row, "ref", where), weight, where)


def as_turns(example: TaskExample) -> Conversation:
    """A question and its answer as turns of user and assistant."""
    return _asked(example.input, example.ref, example.weight, example.where)


def _task_chat(row: Row, weight: float, where: str) -> Conversation:
    return as_turns(_task(row, weight, where))


def _completion(row: Row, weight: float, where: str) -> Example:
    if isinstance(row.get("prompt"), str):
        return Completion(text_under(row, "prompt", where), text_under(row, "completion", where), weight, where)
    prompt, completion = (_messages(row, key, where) for key in ("prompt", "completion"))
    return Conversation([*prompt, *completion], weight, where, len(prompt), _tools(row, where))


def _completion_chat(row: Row, weight: float, where: str) -> Example:
    if not isinstance(row.get("prompt"), str):
        return _completion(row, weight, where)
    return _asked(text_under(row, "prompt", where), text_under(row, "completion", where), weight, where)


def _instruction(row: Row, weight: float, where: str) -> Completion:
    """As models without turns are tuned to instructions since Alpaca: under headings."""
    asked, given, answer = _parts(row, where)
    context = f"### Input:\n{given}\n\n" if given else ""
    return Completion(f"### Instruction:\n{asked}\n\n{context}### Response:\n", answer, weight, where)


def _instruction_chat(row: Row, weight: float, where: str) -> Conversation:
    asked, given, answer = _parts(row, where)
    return _asked(f"{asked}\n\n{given}" if given else asked, answer, weight, where)


def _parts(row: Row, where: str) -> tuple[str, str, str]:
    """Instruction, what it is about, answer; the last two under either name."""
    given = next((name for name in ("input", "context") if row.get(name) is not None), None)
    answer = "output" if "output" in row else "response"
    return (
        text_under(row, "instruction", where),
        text_under(row, given, where) if given else "",
        text_under(row, answer, where),
    )


def _question(row: Row, weight: float, where: str) -> Completion:
    return Completion(text_under(row, "question", where), " " + text_under(row, "answer", where), weight, where)


def _question_chat(row: Row, weight: float, where: str) -> Conversation:
    return _asked(text_under(row, "question", where), text_under(row, "answer", where), weight, where)


def _document(row: Row, weight: float, where: str) -> Document:
    return Document(text_under(row, "text", where), weight, where)


def _asked(prompt: str, answer: str, weight: float, where: str) -> Conversation:
    return Conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], weight, where)


def _conversation(row: Row, weight: float, where: str) -> Conversation:
    messages = _messages(row, "messages" if "messages" in row else "conversations", where)
    if not any(message["role"] == "assistant" for message in messages):
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise InputError(f"{where}: no turn of the assistant, so nothing to learn; the roles are {roles}")
    return Conversation(messages, weight, where, None, _tools(row, where))


def _messages(row: Row, key: str, where: str) -> list[Message]:
    """The turns under a key, as {"role", "content"}; also from {"from", "value"} with human and gpt."""
    turns = row.get(key)
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise InputError(f"{where}: the key {key!r} must be a list of turns with 'role' and 'content'")
    return [_message(turn, f"{where}: turn {number} of {key!r}") for number, turn in enumerate(turns, start=1)]


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise InputError(f"{where}: must be an object with 'role' and 'content'")
    names = {"from": "role", "value": "content"}
    own: dict[str, Any] = {names.get(name, str(name)): value for name, value in turn.items() if value is not None}
    role = own["role"] = _ROLES.get(text_under(own, "role", where), own["role"])
    content = own.get("content", "" if own.get("tool_calls") else None)
    own["content"] = _content(content, f"{where}, of role {role!r}")
    return own


def _content(content: Any, where: str) -> str:
    """The text of a turn, also where it comes in parts, {"type": "text", "text": ...}: many templates print those."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}: no text under 'content'")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InputError(f"{where}: 'content' holds a part of type {kind!r}; only text can be learned")
    return "".join(text_under(part, "text", where) for part in content)


def _tools(row: Row, where: str) -> list[Mapping[str, Any]] | None:
    """Functions that the assistant may call, as a list or as JSON."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = parse_json(tools) if tools.strip() else None
        except ValueError as error:
            raise InputError(f"{where}: 'tools' is not valid JSON ({error})") from error
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InputError(f"{where}: 'tools' must be a list of objects")
    return tools or None


FORMS = (  # the first that fits
    Form(("input", "ref"), _task, _task_chat),
    Form(("prompt", "completion"), _completion, _completion_chat, ("tools",)),
    Form(("messages",), _conversation, _conversation, ("tools",)),
    Form(("conversations",), _conversation, _conversation, ("tools",)),
    Form(("instruction", "output"), _instruction, _instruction_chat, ("input", "context")),
    Form(("instruction", "response"), _instruction, _instruction_chat, ("input", "context")),
    Form(("question", "answer"), _question, _question_chat),
    Form(("text",), _document),
)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12]) or "(none)"
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
