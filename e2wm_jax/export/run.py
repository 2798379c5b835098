"""`e2wm export`: a base model, with an adapter merged into it or as it is, as a Hugging Face directory."""

import shutil
from pathlib import Path
from typing import Any

from e2wm_jax import lora
from e2wm_jax.config import DType, ModelConfig
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.export.settings import ExportSettings
from e2wm_jax.models.saving import check_new, new_folder, parameter_sizes, write_model
from e2wm_jax.models.weights import config_to_hf, load, open_model
from e2wm_jax.running.progress import busy
from e2wm_jax.storage.adapter_files import read_adapter
from e2wm_jax.storage.files import read_json
from e2wm_jax.storage.model_files import CHAT_TEMPLATES, COMPANIONS, CONFIG_FILE, ModelFiles, locate

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def run(settings: ExportSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for files that are missing or do not fit each other, or a directory that cannot be written.
    """
    check_new(settings.out)
    if settings.adapter is not None and not settings.adapter.is_dir():
        raise InputError(f"--adapter {settings.adapter}: no such directory; give one that `e2wm train` or PEFT wrote")
    files = locate(settings.model)
    tokenizer = load_tokenizer(files) if files.format == "gguf" else None
    config, source = open_model(files)
    adapter = None if settings.adapter is None else read_adapter(settings.adapter, config)
    sizes = parameter_sizes(config)
    stored = {name: source.headers[name].dtype for name in sizes}
    dtypes = {
        name: settings.dtype or (kind if kind in _BYTES else "float32")  # float64 is read as float32
        for name, kind in stored.items()
    }
    _check_space(settings.out, sum(size * _BYTES[dtypes[name]] for name, size in sizes.items()))

    with busy("loading the model"):
        params = load(files, _exact({*stored.values(), *dtypes.values()})).params
    if adapter is not None:
        params = lora.merge(params, *adapter)
    with busy("writing the model"), new_folder(settings.out) as folder:
        total = write_model(folder, config, params, dtypes=dtypes, hf_config=_hf_config(files, config, tokenizer))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        else:
            _copy_companions(files.path, folder)
    return {"out": str(settings.out), "bytes": total, "parameters": sum(sizes.values())}


def _exact(dtypes: set[str]) -> DType:
    """A dtype to load in that loses nothing, so that a merged weight is rounded once, to its own dtype."""
    return "bfloat16" if dtypes == {"bfloat16"} else "float32"


def _check_space(out: Path, needed: int) -> None:
    above = next(path for path in (out.resolve(), *out.resolve().parents) if path.is_dir())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise InputError(
            f"--out {out}: the weights take {needed / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free in {above}; "
            "make room, or give another directory or --dtype bfloat16"
        )


def _hf_config(files: ModelFiles, config: ModelConfig, tokenizer: Any) -> dict[str, Any]:
    """The model's own configuration, or for a GGUF file one with the ids at which generation begins and ends."""
    if tokenizer is None:
        return {**read_json(files.path / CONFIG_FILE), "tie_word_embeddings": config.tied}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**config_to_hf(config), **ids}


def _copy_companions(source: Path, folder: Path) -> None:
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / CHAT_TEMPLATES).is_dir():
        shutil.copytree(source / CHAT_TEMPLATES, folder / CHAT_TEMPLATES)
