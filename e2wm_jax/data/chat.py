"""Conversations through the tokenizer's chat template: their tokens, and which of them the assistant says.

Templates are programs that come with a model; transformers runs them in a sandbox.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from e2wm_jax.data.example import Conversation, Message
from e2wm_jax.errors import InputError

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")  # what the assistant says, in templates that mark it


def check_template(tokenizer: Any, where: str = "--chat") -> None:
    """
    Raises:
        InputError: starting with `where`, if the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{where}: the model's tokenizer has no chat template; put a chat_template.jinja beside it, or give "
            "prompts and texts without turns"
        )


def as_messages(prompt: str, system: str | None = None) -> list[Message]:
    """What a user says, behind what the system says, if anything."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": prompt}]


def chat_prompt(
    tokenizer: Any, messages: Sequence[Message], where: str = "--chat", *, answer_begun: bool = False
) -> str:
    """The text that asks for the assistant's next turn, special tokens written out: encode it without others.

    Args:
        answer_begun: the last of the messages is the assistant's, and is to go on.

    Raises:
        InputError: if there is no chat template, or it does not take the messages.
    """
    check_template(tokenizer, where)
    options = {"add_generation_prompt": not answer_begun, "continue_final_message": answer_begun}
    return str(_apply(tokenizer, messages, where, tokenize=False, **options))


def chat_prompt_ids(tokenizer: Any, messages: Sequence[Message], where: str = "--chat") -> list[int]:
    """`chat_prompt` in tokens.

    Raises:
        InputError: as `chat_prompt`.
    """
    check_template(tokenizer, where)
    return _ids(tokenizer, messages, where, add_generation_prompt=True)


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that the template writes behind what the assistant says, such as <|im_end|>; None where it has none."""
    said = "answer"
    messages = [*as_messages("question"), {"role": "assistant", "content": said}]
    text = str(_apply(tokenizer, messages, "--chat", tokenize=False))
    behind = tokenizer(text.rpartition(said)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return int(behind[0]) if behind and behind[0] in tokenizer.added_tokens_decoder else None


def conversation_tokens(tokenizer: Any, talk: Conversation) -> tuple[list[int], list[int]]:
    """The tokens of a conversation, and the places of those to be learned.

    Of messages these are the assistant's turns: what the template marks as generated; in templates without such marks
    what it writes from behind the prompt for a turn to the end of the turn.  Of a prompt and its completion: all tokens
    from where they part from the prompt's.

    Raises:
        InputError: if there is no chat template, or it does not take the messages.
    """
    check_template(tokenizer, talk.where)
    shared: dict[str, Any] = {"tools": talk.tools} if talk.tools else {}
    if talk.prompt is not None:
        ids = _ids(tokenizer, talk.messages, talk.where, **shared)
        asked = _ids(tokenizer, talk.messages[: talk.prompt], talk.where, add_generation_prompt=True, **shared)
        return ids, list(range(common_prefix(asked, ids), len(ids)))
    if _MARKED.search(tokenizer.get_chat_template(tools=talk.tools or None)):
        marked: Any = _apply(
            tokenizer, talk.messages, talk.where, return_dict=True, return_assistant_tokens_mask=True, **shared
        )
        return list(marked["input_ids"]), [place for place, own in enumerate(marked["assistant_masks"]) if own]
    ids = _ids(tokenizer, talk.messages, talk.where, **shared)
    turns = [index for index, message in enumerate(talk.messages) if message["role"] == "assistant"]
    return ids, [place for index in turns for place in _turn(tokenizer, talk, ids, index, shared)]


def _turn(tokenizer: Any, talk: Conversation, ids: Sequence[int], index: int, shared: Mapping[str, Any]) -> range:
    """The places of one of the assistant's turns."""
    before, through = talk.messages[:index], talk.messages[: index + 1]
    if before:
        asked = _ids(tokenizer, before, talk.where, add_generation_prompt=True, **shared)
    else:  # a prompt of no messages may lack what the template writes in front of the first one
        text = str(_apply(tokenizer, through, talk.where, tokenize=False, **shared))
        asked = tokenizer(text[: text.rfind(str(through[0]["content"]))], add_special_tokens=False)["input_ids"]
    start = common_prefix(asked, ids)
    said = ids if len(through) == len(talk.messages) else _ids(tokenizer, through, talk.where, **shared)
    end = common_prefix(said, ids)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    # Templates that write earlier turns otherwise, e.g. without what was thought: to the token that closes the turn.
    if end <= start or (said[end:] and said[end] not in special and special.intersection(said[end:])):
        end = next((place + 1 for place in range(start, len(ids)) if ids[place] in special), len(ids))
    return range(start, end)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two texts share."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _ids(tokenizer: Any, messages: Sequence[Message], where: str, **options: Any) -> list[int]:
    return list(_apply(tokenizer, messages, where, return_dict=False, **options))


def _apply(tokenizer: Any, messages: Sequence[Message], where: str, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template([dict(message) for message in messages], **options)
    except Exception as error:  # whatever a template does with messages that it was not written for
        said = str(error).strip().splitlines() or [""]
        raise InputError(
            f"{where}: the chat template does not take these messages ({type(error).__name__}: {said[0]})"
        ) from error
