"""The tokenizer rebuilt from a GGUF file's metadata is the model's own, as transformers reads it with torch.

With one difference that is not ours: transformers 5 ignores `tokenizer.ggml.pre`, which for SmolLM2 says that digits
are split off *before* the GPT-2 pattern.  This shows only where several spaces or newlines stand before a digit, and
in numerals other than digits; the model was trained with the split (it finds such text likelier by 8 nats a document).
There, the oracle is transformers' tokenizer with the pattern that llama.cpp applies for "smollm".
"""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.data.source import read_documents
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.storage.model_files import locate

HELLO = ("Hello 123 world", [19556, 216, 33, 34, 35, 905])
TEXTS = {
    "digits": "Hello 123 world 4,567.89 x2y3 2024-11-21 000",
    "spaces": "  two  three   \t tab\n\nnew\r\n lines \u00a0 \u3000 end  ",
    "contractions": "I'm sure they'll've said it's John's; don't DON'T can\u2019t",
    "unicode": "na\u00efve \u4f60\u597d\uff0c\u4e16\u754c \u043f\u0440\u0438\u0432\u0435\u0442"
    " \u0627\u0644\u0633\u0644\u0627\u0645"
    " \u0ba4\u0bae\u0bbf\u0bb4\u0bcd \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301 \u2028 \ufb01",
    "other numerals": "\u0661\u0662\u0663 \u00b2\u00b3 \u2460 \u0967\u0968",
    "code": "def f(x):\n\treturn {'a': x**2, \"b\": [1,2,3]}  # <comment>",
    "special": "<|im_start|>user\nHello<|im_end|> <|endoftext|>text <|im_start|> <empty_output> <repo_name>",
    "control characters": "a\x00b\x07c\x1b[0m\x7f",
    "empty": "",
    "spaces before digits": "Notes:\n\n1. While  2\n   3\t\t4",
}
SPLIT_EARLIER = ("other numerals", "spaces before digits")
LLAMA_CPP_SMOLLM = (r"\p{N}", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@pytest.fixture(scope="module")
def ours(smollm2_gguf: Path) -> Any:
    return load_tokenizer(locate(str(smollm2_gguf)))


@pytest.fixture(scope="module")
def theirs(smollm2_gguf: Path) -> Any:
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)


@pytest.fixture(scope="module")
def exact(theirs: Any) -> Any:
    """`theirs`, with the pattern that the file asks for."""
    from tokenizers import Regex, pre_tokenizers

    tokenizer = copy.deepcopy(theirs)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in LLAMA_CPP_SMOLLM]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
    return tokenizer


def test_known_tokens(ours: Any) -> None:
    text, ids = HELLO
    assert ours(text)["input_ids"] == ids


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("special_tokens", [False, True])
def test_tokens_are_those_of_transformers(name: str, special_tokens: bool, ours: Any, theirs: Any, exact: Any) -> None:
    tokens = ours(TEXTS[name], add_special_tokens=special_tokens)["input_ids"]
    assert tokens == exact(TEXTS[name], add_special_tokens=special_tokens)["input_ids"]
    same = tokens == theirs(TEXTS[name], add_special_tokens=special_tokens)["input_ids"]
    assert same == (name not in SPLIT_EARLIER)


def test_digits_are_split_before_the_spaces_in_front_of_them(ours: Any) -> None:
    assert ours.tokenize("Notes:\n\n1. While") == ["Notes", ":", "\u010a\u010a", "1", ".", "\u0120While"]


@pytest.mark.parametrize("split", ["pydoc:fisher", "pydoc:held-out"])
def test_english_prose_is_tokenized_as_in_transformers(split: str, ours: Any, theirs: Any, exact: Any) -> None:
    documents = read_documents(split)
    tokens = ours(documents, verbose=False)["input_ids"]
    assert tokens == exact(documents, verbose=False)["input_ids"]
    for document, row in zip(documents, tokens, strict=True):
        if not re.search(r"\s\s\d", document):
            assert row == theirs(document, verbose=False)["input_ids"]


def test_special_tokens_are_those_of_transformers(ours: Any, theirs: Any) -> None:
    for role in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        assert getattr(ours, role) == getattr(theirs, role), role
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("name", TEXTS)
def test_decoding_is_the_inverse(name: str, ours: Any) -> None:
    ids = ours(TEXTS[name])["input_ids"]
    assert ours.decode(ids, clean_up_tokenization_spaces=False) == TEXTS[name]


def test_decoding_can_leave_special_tokens_out(ours: Any) -> None:
    ids = ours("<|im_start|>user<|im_end|>")["input_ids"]
    assert ours.decode(ids, skip_special_tokens=True) == "user"


def test_offsets_are_places_in_the_text(ours: Any) -> None:
    text = TEXTS["digits"]
    encoded = ours(text, return_offsets_mapping=True)
    assert "".join(text[start:end] for start, end in encoded["offset_mapping"]) == text


def test_directory_gives_its_own_tokenizer(tiny_llama: Path, tiny_tokenizer: Any) -> None:
    tokenizer = load_tokenizer(locate(str(tiny_llama)))
    text = "Mary walks to the kitchen, caf\u00e9 \U0001f600."
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert tokenizer.eos_token_id == 1


def test_directory_without_or_with_a_damaged_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"no tokenizer files; copy one of tokenizer\.json"):
        load_tokenizer(locate(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(InputError, match=r"tokenizer\.json:1: not valid JSON"):
        load_tokenizer(locate(str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(
        InputError, match=r"unreadable tokenizer \(.*\); one of tokenizer\.json, config\.json is at fault"
    ):
        load_tokenizer(locate(str(tmp_path)))
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    with pytest.raises(
        InputError, match=r"unreadable tokenizer .*; tokenizer\.model needs the package sentencepiece; "
    ):
        load_tokenizer(locate(str(tmp_path)))


def test_other_kinds_in_gguf_are_refused(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("t5")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"model\.gguf: tokenizer kind 't5'/'default' is not supported"):
        load_tokenizer(locate(str(tmp_path / "model.gguf")))


def test_torch_is_not_needed(smollm2_gguf: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from e2wm_jax.data.tokenizer import load_tokenizer\n"
        "from e2wm_jax.storage.model_files import locate\n"
        f"print(load_tokenizer(locate({str(smollm2_gguf)!r}))({HELLO[0]!r})['input_ids'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(HELLO[1])
