"""Conversations: the text that a template makes of them, and which tokens of it are the assistant's."""

from typing import Any

import pytest
from helpers import byte_tokenizer

from e2wm_jax.data.chat import as_messages, chat_prompt, chat_prompt_ids, conversation_tokens
from e2wm_jax.data.example import Conversation
from e2wm_jax.data.tokenize import task_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.storage.model_files import locate

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Thoughts of earlier turns are left out, as by the templates of models that think.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Writes a turn for the system where there is none, and has users and assistants speak in turn.
STRICT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if loop.index0 > 0 and messages[loop.index0 - 1]['role'] == m['role'] %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def turns(*texts: str, first: str = "user") -> list[dict[str, str]]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


def tokenizer_with(template: str | None) -> Any:
    return byte_tokenizer(special=("<|im_start|>", "<|im_end|>"), chat_template=template)


def learned(template: str, talk: Conversation) -> str:
    """The text of the tokens that are learned, with `...` for what lies between."""
    tokenizer = tokenizer_with(template)
    ids, places = conversation_tokens(tokenizer, talk)
    pieces, last = [], None
    for place in places:
        pieces += ["..."] if last is not None and place != last + 1 else []
        pieces.append(tokenizer.decode([ids[place]]))
        last = place
    return "".join(pieces)


TALK = turns("Hi", "Hello!", "How are you?", "Fine.")


@pytest.mark.parametrize("template", [CHATML, MARKED, STRICT])
def test_what_the_assistant_says_is_learned_and_the_end_of_its_turns(template: str) -> None:
    talk = Conversation(TALK, 1.0, "a:1")
    assert learned(template, talk) == "Hello!<|im_end|>\n...Fine.<|im_end|>\n"
    system = Conversation([{"role": "system", "content": "Be short."}, *TALK, *turns("Bye")], 1.0, "a:1")
    assert learned(template, system) == "Hello!<|im_end|>\n...Fine.<|im_end|>\n"


def test_templates_with_and_without_marks_give_the_same_tokens_and_targets() -> None:
    talk = Conversation(turns("One\n", "\ntwo", "", "", "five", "six\n\n"), 1.0, "a:1")
    assert conversation_tokens(tokenizer_with(CHATML), talk) == conversation_tokens(tokenizer_with(MARKED), talk)


@pytest.mark.parametrize("template", [CHATML, STRICT])
def test_an_assistant_that_speaks_first(template: str) -> None:
    talk = Conversation(turns("Welcome.", "Hi", "Yes?", first="assistant"), 1.0, "a:1")
    assert learned(template, talk) == "Welcome.<|im_end|>\n...Yes?<|im_end|>\n"


def test_turns_that_are_written_otherwise_once_others_follow() -> None:
    assert learned(THINKING, Conversation(TALK, 1.0, "a:1")) == "Hello!<|im_end|>...<think></think>Fine.<|im_end|>\n"


# What was thought is left out of earlier turns, and the token that closes turns has no role in the tokenizer.
SPLITTING = (
    "{% for m in messages %}{{ '<|turn|>' + m['role'] + '\n' }}"
    "{{ m['content'] if loop.last else m['content'].split('</t>')[-1] }}{{ '<|over|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("thought", ["", "hm</t>", "He</t>", "Hello?</t>"])
def test_thoughts_that_begin_like_the_answer(thought: str) -> None:
    tokenizer = tokenizer_with(SPLITTING)
    tokenizer.add_tokens(["<|turn|>", "<|over|>"], special_tokens=True)
    talk = Conversation(turns("Hi", f"{thought}Hello!", "How are you?", f"{thought}Fine."), 1.0, "a:1")
    ids, places = conversation_tokens(tokenizer, talk)
    assert places == sorted(set(places))
    first = "Hello!<|over|>" if thought else "Hello!<|over|>\n"
    assert tokenizer.decode([ids[place] for place in places]) == f"{first}{thought}Fine.<|over|>\n"


def test_of_prompt_and_completion_all_of_the_completion_is_learned() -> None:
    talk = Conversation(TALK, 1.0, "a:1", prompt=1)
    said = "Hello!<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\nFine.<|im_end|>\n"
    assert learned(CHATML, talk) == learned(MARKED, talk) == said


def test_rows_of_conversations_have_their_targets_where_the_assistant_speaks() -> None:
    tokenizer = tokenizer_with(CHATML)
    talks = [Conversation(TALK, 0.5, "a:1"), Conversation(turns("x", "y"), 1.0, "a:2")]
    ids, places = conversation_tokens(tokenizer, talks[0])
    (row, second), kept = task_rows(tokenizer, talks, max_length=999)
    assert kept == [0, 1]
    assert (row.ids.tolist(), row.targets.tolist(), row.num_targets, row.weight) == (ids, places, len(places), 0.5)
    assert second.chosen is None, "one turn that goes on to the end needs no list"
    (short,), _ = task_rows(tokenizer, talks[:1], max_length=places[2] + 1)
    assert short.targets.tolist() == places[:3]
    assert short.cut == len(ids) - len(short.ids)
    with pytest.raises(InputError, match=r"^a:1: --max-length 9 leaves no answer token"):
        task_rows(tokenizer, talks[:1], max_length=9)


def test_prompts_ask_for_the_assistant() -> None:
    tokenizer = tokenizer_with(CHATML)
    text = chat_prompt(tokenizer, as_messages("Hi", system="Be short."))
    assert text == "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = chat_prompt_ids(tokenizer, as_messages("Hi", system="Be short."))
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_embedded_default_has_its_template(smollm2_gguf: Any) -> None:
    tokenizer = load_tokenizer(locate(str(smollm2_gguf)))
    assert chat_prompt(tokenizer, as_messages("What is gravity?")) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids, places = conversation_tokens(tokenizer, Conversation(TALK, 1.0, "a:1"))
    assert tokenizer.decode([ids[place] for place in places]) == "Hello!<|im_end|>\nFine.<|im_end|>\n"


def test_a_template_beside_the_tokenizer_is_read(tmp_path: Any, tiny_llama: Any) -> None:
    for path in tiny_llama.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    assert chat_prompt(load_tokenizer(locate(str(tmp_path))), as_messages("Hi")) == "Hi!"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, TALK, "a:1: the model's tokenizer has no chat template; put a chat_template.jinja beside it"),
        (STRICT, [*TALK, TALK[-1]], r"a:1: the chat template does not take these messages \(.*Roles must alternate\)$"),
        (CHATML, [{"role": "user", "content": None}], "a:1: the chat template does not take these messages"),
        (CHATML, [{"role": "user"}], "a:1: the chat template does not take these messages"),
        ("{% if %}", TALK, r"a:1: the chat template does not take these messages \(TemplateSyntaxError: "),
        ("{{ ''.__class__.mro() }}", TALK, r"a:1: the chat template does not take these messages \(SecurityError"),
    ],
)
def test_what_a_template_does_not_take_is_one_line(template: str | None, messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        conversation_tokens(tokenizer_with(template), Conversation(messages, 1.0, "a:1"))
    assert "\n" not in str(caught.value)
