"""Tokenizers through transformers: from a model directory, or rebuilt from a GGUF file's own metadata."""

from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.files import check_fetched
from e2wm_jax.model_files import COMPANIONS, ModelFiles, locate, open_gguf

# Pre-tokenization of the byte-level BPE kinds that GGUF names: whether digits are split one by one before the GPT-2
# pattern.  ("smollm" = Digits(individual) + ByteLevel, as in SmolLM2's own tokenizer.json.)
_SPLITS_DIGITS = {"smollm": True, "gpt-2": False, "gpt2": False, "default": False}
_CONTROL = 3  # token_type of special tokens


def load_tokenizer(model: str | ModelFiles) -> Any:
    """The model's tokenizer as a transformers fast tokenizer.

    Args:
        model: what `locate` finds, or what it has found.

    Raises:
        InputError: if the files hold none, or one of a kind that is not supported.
    """
    files = locate(model) if isinstance(model, str) else model
    return _from_gguf(files.path) if files.format == "gguf" else _from_directory(files.path)


def _from_directory(path: Path) -> Any:
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((path / name).is_file() for name in names):
        raise InputError(f"{path}: no tokenizer files; copy one of {', '.join(names)} of the model beside its weights")
    for name in COMPANIONS:
        if (path / name).is_file():
            check_fetched(path / name)
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{path}: unreadable tokenizer ({str(error).splitlines()[0]})") from error


def _from_gguf(path: Path) -> Any:
    """Byte-level BPE from `tokenizer.ggml.*`; transformers can do this only where torch is installed."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = open_gguf(path).fields

    def field(name: str, default: Any = None) -> Any:
        key = f"tokenizer.ggml.{name}"
        return fields[key].contents() if key in fields else default

    kind, split = field("model"), field("pre", "default")
    if kind != "gpt2" or split not in _SPLITS_DIGITS:
        raise InputError(
            f"{path}: tokenizer kind {kind!r}/{split!r} is not supported (supported: byte-level BPE with "
            f"{', '.join(_SPLITS_DIGITS)}); use the Hugging Face directory of the model"
        )
    tokens, merges = field("tokens"), [tuple(merge.split(" ", 1)) for merge in field("merges")]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if _SPLITS_DIGITS[split]
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, field("token_type"), strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    roles = {role: field(f"{name}_token_id") for role, name in _ROLES.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template.contents() if (template := fields.get("tokenizer.chat_template")) else None,
        **{role: tokens[index] for role, index in roles.items() if index is not None},
    )


_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
