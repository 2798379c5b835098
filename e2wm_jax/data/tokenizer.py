"""Tokenizers through transformers: from a model directory, or rebuilt from a GGUF file's own metadata."""

from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError, first_line
from e2wm_jax.running.progress import busy
from e2wm_jax.storage.files import check_fetched, read_json
from e2wm_jax.storage.gguf_tokenizer import gguf_tokenizer
from e2wm_jax.storage.model_files import COMPANIONS, CONFIG_FILE, ModelFiles, locate


def load_tokenizer(model: str | ModelFiles) -> Any:
    """The model's tokenizer as a transformers fast tokenizer.

    Args:
        model: what `locate` finds, or what it has found.

    Raises:
        InputError: if the files hold none, or one of a kind that is not supported.
    """
    files = locate(model) if isinstance(model, str) else model
    return gguf_tokenizer(files.path) if files.format == "gguf" else _from_directory(files.path)


def open_tokenizer(files: ModelFiles) -> Any:
    """`load_tokenizer` for a command, which says what takes long: the import of transformers, and of torch with it."""
    with busy("loading the tokenizer"):
        return load_tokenizer(files)


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
    except Exception as error:  # of any kind: tokenizers raises Exception itself, and files may hold anything
        for name in COMPANIONS:
            if name.endswith(".json") and (path / name).is_file():
                read_json(path / name)  # names the file that is no JSON at all
        found = _found(path)
        way_out = f"one of {', '.join(found)} is at fault, copy them anew from the model"
        if "tokenizer.model" in found and "tokenizer.json" not in found:
            way_out = "tokenizer.model needs the package sentencepiece; install it, or copy the model's tokenizer.json"
        raise InputError(f"{path}: unreadable tokenizer ({first_line(error)}); {way_out}") from error


def _found(path: Path) -> list[str]:
    """The files from which transformers makes a tokenizer; the model's configuration names its kind."""
    return [name for name in (*COMPANIONS, CONFIG_FILE) if name != "generation_config.json" and (path / name).is_file()]
