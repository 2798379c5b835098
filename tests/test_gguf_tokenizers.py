"""Tokenizers rebuilt from GGUF files give the ids of transformers' own tokenizers with the same vocabulary."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_tokenizer import TEXTS

from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.storage.model_files import locate

CONTROL, USER_DEFINED, BYTE, UNKNOWN = 3, 4, 6, 2
SENTENCES = [*TEXTS.values(), "the cat sat on the mat and the hat; they're 12345 others there, weren't they?"]
# Spelled out here as the models' tokenizer.json files have them.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level_vocabulary(pattern: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learned from the texts, so that merges apply; the two special tokens and <think> come last."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learned.train_from_iterator(
        SENTENCES * 3, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(learned.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for token in ("<|begin|>", "<|im_end|>", "<think>"):
        vocabulary[token] = len(vocabulary)
    return vocabulary, [tuple(pair) for pair in model["merges"]]


def sentencepiece_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """<unk>, <s>, </s>, 256 bytes, letters, pieces by falling score: the order of LLaMA 2's."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["\u2581t", "he", "\u2581the", "in", "er", "at", "\u2581th", "re", "there", "\u2581there", "\u2581\u2581"]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzABCDEFGH.,;'0123456789"]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *pieces, *letters, "<think>"]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces) + len(letters))] + [0.0]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[1] * (len(pieces) + len(letters)), USER_DEFINED]
    return tokens, scores, kinds


def write(path: Path, *, model: str, architecture: str = "llama", **fields: Any) -> Any:
    """The header of a GGUF file, read as the tokenizer of a model."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for size in ("embedding_length", "block_count", "context_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"{architecture}.{size}", 8)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_string("tokenizer.ggml.model", model)
    for name, value in fields.items():
        add = {str: writer.add_string, bool: writer.add_bool, list: writer.add_array}.get(type(value))
        (add or writer.add_uint32)(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return load_tokenizer(locate(str(path)))


def write_byte_level(path: Path, pre: str, vocabulary: dict[str, int], merges: Any, **fields: Any) -> Any:
    kinds = [{"<think>": USER_DEFINED, "<|begin|>": CONTROL, "<|im_end|>": CONTROL}.get(t, 1) for t in vocabulary]
    given = {
        "pre": pre,
        "tokens": list(vocabulary),
        "merges": [" ".join(pair) for pair in merges],
        "token_type": kinds,
        "bos_token_id": vocabulary["<|begin|>"],
        "eos_token_id": vocabulary["<|im_end|>"],
        **fields,
    }
    return write(path, model="gpt2", **{name: value for name, value in given.items() if value is not None})


def assert_same_ids(ours: Any, theirs: Any) -> None:
    for text in [*SENTENCES, "<think> a <|im_end|> b<think>c", "<|im_end|>\n  x "]:
        for special in (False, True):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours(text, add_special_tokens=special)["input_ids"] == expected, text
        ids = theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids)


def in_order(vocabulary: dict[str, int]) -> dict[str, int]:
    return dict(sorted(vocabulary.items(), key=lambda item: item[1]))


@pytest.mark.parametrize("pre", ["qwen2", "deepseek-r1-qwen"])
def test_qwen(pre: str, tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    vocabulary, merges = byte_level_vocabulary(PRETOKENIZE_REGEX)
    vocabulary = in_order(vocabulary)
    theirs = Qwen2Tokenizer(vocab=vocabulary, merges=merges, eos_token="<|im_end|>", unk_token=None, pad_token=None)
    theirs.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<|begin|>", special=True)])
    ours = write_byte_level(tmp_path / "model.gguf", pre, vocabulary, merges, add_bos_token=False)
    assert_same_ids(ours, theirs)
    assert len(ours("12345", add_special_tokens=False)["input_ids"]) == 5
    assert (ours.eos_token, ours.bos_token) == ("<|im_end|>", "<|begin|>")


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3"])
def test_llama_3(pre: str, tmp_path: Path) -> None:
    """Whole words that are tokens stay whole, whether merges make them or not; <|begin|> stands first."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = byte_level_vocabulary(LLAMA3_PATTERN)
    vocabulary = {**in_order(vocabulary), "\u0120unmerged": len(vocabulary)}
    core = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|begin|>", "<|im_end|>")])
    core.add_tokens([AddedToken("<think>", normalized=False)])
    first = vocabulary["<|begin|>"]
    core.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", first)])
    theirs = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|begin|>", eos_token="<|im_end|>")
    ours = write_byte_level(tmp_path / "model.gguf", pre, vocabulary, merges)
    assert_same_ids(ours, theirs)
    assert ours("an unmerged one")["input_ids"].count(vocabulary["\u0120unmerged"]) == 1
    assert ours("a")["input_ids"] == [first, vocabulary["a"]]


@pytest.mark.parametrize("prefix", [None, True, False])
def test_sentencepiece(prefix: bool | None, tmp_path: Path) -> None:
    from tokenizers import AddedToken
    from transformers import LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    tokens, scores, kinds = sentencepiece_vocabulary()
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = generate_merges(vocabulary, dict(zip(tokens, scores, strict=True)))
    options = {} if prefix is None else {"add_prefix_space": prefix}
    theirs = LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, **options)
    theirs.add_tokens([AddedToken("<think>", normalized=False)])
    fields = {} if prefix is None else {"add_space_prefix": prefix}
    fields |= {"tokens": tokens, "scores": scores, "token_type": kinds, "bos_token_id": 1, "eos_token_id": 2}
    ours = write(tmp_path / "model.gguf", model="llama", unknown_token_id=0, **fields)
    assert_same_ids(ours, theirs)
    expected = [1, vocabulary["\u2581the"]] if prefix is not False else [1, vocabulary["t"], vocabulary["he"]]
    assert ours("the")["input_ids"] == expected
    assert ours("\u4f60", add_special_tokens=False)["input_ids"][-3:] == [3 + 0xE4, 3 + 0xBD, 3 + 0xA0]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_ids_are_those_that_transformers_reads_from_the_file(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers import AutoTokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    path = tmp_path / "model.gguf"
    if architecture == "llama":
        tokens, scores, kinds = sentencepiece_vocabulary()
        fields = {"tokens": tokens, "scores": scores, "token_type": kinds, "bos_token_id": 1, "eos_token_id": 2}
        ours = write(path, model="llama", unknown_token_id=0, **fields)
    else:
        vocabulary, merges = byte_level_vocabulary(PRETOKENIZE_REGEX)
        fields = {"architecture": "qwen2", "add_bos_token": False}
        ours = write_byte_level(path, "qwen2", in_order(vocabulary), merges, **fields)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in SENTENCES:
        # transformers adds the first to a vocabulary of Qwen that has none, and composes the second only where it
        # reads the model's own tokenizer files.
        if "<|endoftext|>" not in text and "e\u0301" not in text:
            assert ours(text)["input_ids"] == theirs(text)["input_ids"], text


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
@pytest.mark.parametrize("bos", [None, False, True])
@pytest.mark.parametrize("eos", [None, False, True])
def test_tokens_that_the_file_adds(pre: str, bos: bool | None, eos: bool | None, tmp_path: Path) -> None:
    vocabulary, merges = byte_level_vocabulary(LLAMA3_PATTERN)
    vocabulary = in_order(vocabulary)
    fields = {"add_bos_token": bos, "add_eos_token": eos}
    ours = write_byte_level(tmp_path / "model.gguf", pre, vocabulary, merges, **fields)
    first = pre == "llama-bpe" if bos is None else bos
    expected = [vocabulary["<|begin|>"]] * first + [vocabulary["a"]] + [vocabulary["<|im_end|>"]] * bool(eos)
    assert ours("a")["input_ids"] == expected
    assert ours("a", add_special_tokens=False)["input_ids"] == [vocabulary["a"]]
    ours.save_pretrained(tmp_path / "saved")
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("a")["input_ids"] == expected


def test_user_defined_tokens_are_whole(tmp_path: Path) -> None:
    """And not special: they stay when special ones are left out of a text."""
    vocabulary, merges = byte_level_vocabulary(LLAMA3_PATTERN)
    vocabulary = in_order(vocabulary)
    ours = write_byte_level(tmp_path / "model.gguf", "gpt-2", vocabulary, merges)
    ids = ours("a<think><|im_end|>")["input_ids"]
    assert ids == [vocabulary[token] for token in ("a", "<think>", "<|im_end|>")]
    assert ours.decode(ids, skip_special_tokens=True) == "a<think>"


def test_an_unknown_token_without_a_role_is_whole(tmp_path: Path) -> None:
    vocabulary, merges = byte_level_vocabulary(LLAMA3_PATTERN)
    vocabulary = in_order(vocabulary)
    kinds = [2 if token == "<think>" else 1 for token in vocabulary]
    ours = write_byte_level(tmp_path / "model.gguf", "gpt-2", vocabulary, merges, token_type=kinds)
    ids = ours("a<think>")["input_ids"]
    assert ids == [vocabulary["a"], vocabulary["<think>"]]
    assert ours.decode(ids, skip_special_tokens=True) == "a"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"merge_list": ["t h", "q zz"]}, r"tokenizer\.ggml\.merges holds 't h', but"),
        ({"merge_list": ["th"]}, r"tokenizer\.ggml\.merges holds 'th', but 'th', '' and 'th' are not all tokens"),
        ({"tokens": None}, r"tokenizer\.ggml\.tokens is missing, empty or not all text"),
        ({"tokens": [1, 2]}, r"tokenizer\.ggml\.tokens is missing, empty or not all text"),
        ({"token_type": [1, 1]}, r"tokenizer\.ggml\.token_type must be \d+ numbers, one for each token"),
        ({"bos_token_id": 99999}, r"bos_token_id is 99999, of \d+ tokens"),
        ({"eos_token_id": "</s>"}, r"tokenizer\.ggml\.eos_token_id is '</s>', not of the type int"),
        ({"add_bos_token": 1}, r"tokenizer\.ggml\.add_bos_token is '1', not of the type bool"),
        (
            {"pre": "tekken"},
            r"tokenizer kind 'gpt2'/'tekken' is not supported \(supported: byte-level BPE, 'gpt2', with",
        ),
    ],
)
def test_damaged_tokenizers_are_named(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    tokens = [*"abcdefghijklmnopqrsuvwxyz", "<|begin|>", "<|im_end|>", "<think>"]  # no "t"
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = [merge.split(" ") for merge in fields.get("merge_list", ())]
    others = {name: value for name, value in fields.items() if name not in ("merge_list", "pre")}
    with pytest.raises(InputError, match=rf"model\.gguf: {message}"):
        write_byte_level(tmp_path / "model.gguf", fields.get("pre", "gpt-2"), vocabulary, pairs, **others)


def test_sentencepiece_without_scores(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.gguf: tokenizer\.ggml\.scores must be 2 numbers, one for each token"):
        write(tmp_path / "model.gguf", model="llama", tokens=["a", "b"])
