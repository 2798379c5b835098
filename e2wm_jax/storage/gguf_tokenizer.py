"""Tokenizers rebuilt from a GGUF file's `tokenizer.ggml.*`; transformers can do this only where torch is installed.

Two kinds: byte-level BPE ("gpt2") with the patterns that `tokenizer.ggml.pre` names, and SentencePiece's BPE ("llama").
"""

from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.storage.gguf_file import GgufField
from e2wm_jax.storage.model_files import open_gguf

# How text is cut before merges are applied. In Qwen2 each digit is a part, in LLaMA 3 up to three of them.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2, _LLAMA3 = _WORDS % r"\p{N}", _WORDS % r"\p{N}{1,3}"
_GPT2, _DIGITS = "the pattern of ByteLevel", "single digits, and then the pattern of ByteLevel"
_PATTERNS = {
    **dict.fromkeys(("gpt-2", "gpt2", "default", "olmo", "mpt", "phi-2"), _GPT2),
    "smollm": _DIGITS,
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # token_type
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SPACE = "\u2581"


def gguf_tokenizer(path: Path) -> Any:
    """The tokenizer of a GGUF file as a transformers fast tokenizer, with its chat template if it has one.

    Which tokens stand before and behind a text is what the file says (`add_bos_token`, `add_eos_token`), else what
    llama.cpp takes for granted: a first token in SentencePiece's and LLaMA 3's vocabularies.

    Raises:
        InputError: if the file is damaged or its tokenizer of a kind that is not supported.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    fields = _Fields(path, open_gguf(path).fields)
    kind, split = fields.value("model", str, ""), fields.value("pre", str, "default")
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and split not in _PATTERNS):
        raise InputError(
            f"{path}: tokenizer kind {kind!r}/{split!r} is not supported (supported: byte-level BPE, 'gpt2', with "
            f"{', '.join(_PATTERNS)}; SentencePiece's, 'llama'); use the Hugging Face directory of the model"
        )
    tokens = fields.texts("tokens")
    kinds = fields.numbers("token_type", len(tokens), [_NORMAL] * len(tokens))
    ids = {role: fields.value(f"{name}_token_id", int, None) for role, name in _ROLES.items()}
    for role, index in ids.items():
        if index is not None and not 0 <= index < len(tokens):
            raise InputError(f"{path}: {_ROLES[role]}_token_id is {index}, of {len(tokens)} tokens")
    roles = {role: tokens[index] for role, index in ids.items() if index is not None}
    core = _sentencepiece(fields, tokens) if kind == "llama" else _byte_level(fields, tokens, _PATTERNS[split])
    added = [(token, number != _USER_DEFINED) for token, number in zip(tokens, kinds, strict=True) if _is_added(number)]
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, special in added if special])
    core.add_tokens([AddedToken(token, normalized=False, special=False) for token, special in added if not special])
    first = kind == "llama" or _PATTERNS[split] == _LLAMA3
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=fields.named("tokenizer.chat_template", str, None),
        add_bos_token="bos_token" in roles and fields.value("add_bos_token", bool, first),
        add_eos_token="eos_token" in roles and fields.value("add_eos_token", bool, False),
        **roles,
    )


def _is_added(kind: int) -> bool:
    """Whether a token is found in the text before anything else is."""
    return kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)


class _Fields:
    """The metadata, each value checked to be what it must."""

    def __init__(self, path: Path, fields: dict[str, GgufField]) -> None:
        self.path, self._fields = path, fields

    def named(self, key: str, kind: type, default: Any) -> Any:
        if key not in self._fields:
            return default
        value = self._fields[key].contents()
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InputError(f"{self.path}: {key} is {str(value)[:40]!r}, not of the type {kind.__name__}")
        return value

    def value(self, name: str, kind: type, default: Any) -> Any:
        return self.named(f"tokenizer.ggml.{name}", kind, default)

    def texts(self, name: str) -> list[str]:
        found = self.value(name, list, None)
        if not found or not all(isinstance(text, str) for text in found):
            raise InputError(f"{self.path}: tokenizer.ggml.{name} is missing, empty or not all text")
        return found

    def numbers(self, name: str, count: int, default: Any = None) -> list[Any]:
        found = self.value(name, list, default)
        if not found or len(found) != count or not all(isinstance(number, int | float) for number in found):
            raise InputError(f"{self.path}: tokenizer.ggml.{name} must be {count} numbers, one for each token")
        return found

    def merges(self, tokens: set[str]) -> list[tuple[str, str]]:
        pairs = []
        for merge in self.texts("merges"):
            left, _, right = merge.partition(" ")
            if not {left, right, left + right} <= tokens:
                raise InputError(
                    f"{self.path}: tokenizer.ggml.merges holds {merge!r}, but {left!r}, {right!r} and {left + right!r} "
                    "are not all tokens; use the Hugging Face directory of the model"
                )
            pairs.append((left, right))
        return pairs


def _byte_level(fields: _Fields, tokens: list[str], pattern: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = fields.merges(set(tokens)) if fields.value("merges", list, []) else []
    core = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pattern == _LLAMA3))
    if pattern == _QWEN2:  # not in the file, but in all these models' own tokenizers
        core.normalizer = normalizers.NFC()
    if pattern in (_GPT2, _DIGITS):
        before = [pre_tokenizers.Digits(individual_digits=True)] if pattern == _DIGITS else []
        core.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    else:
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), to_bytes])
    core.decoder = decoders.ByteLevel()
    return core


def _sentencepiece(fields: _Fields, tokens: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    prefix = fields.value("add_space_prefix", bool, True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if fields.value("merges", list, []):
        merges = fields.merges(set(tokens))
    else:
        merges = _merges_of_scores(vocabulary, fields.numbers("scores", len(tokens)))
    core = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme="first" if prefix else "never", split=False
    )
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*parts, decoders.Strip(" ", left=1)] if prefix else parts)
    return core


def _merges_of_scores(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The pairs of tokens that make a token, the best-scored token first, as transformers orders them."""
    found = [
        (scores[index], cut, len(token) - cut, -number, token[:cut], token[cut:])
        for number, (token, index) in enumerate(vocabulary.items())
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return [(left, right) for *_, left, right in sorted(found, key=lambda pair: pair[:4], reverse=True)]
