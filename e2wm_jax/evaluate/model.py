"""The model that is evaluated: a base with or without an adapter."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from e2wm_jax import lora
from e2wm_jax.adapter_files import read_adapter
from e2wm_jax.config import BaseDType, ModelConfig
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.model_files import locate
from e2wm_jax.models.layers import Params
from e2wm_jax.models.likelihood import target_nll
from e2wm_jax.models.quantized import load

# (config, params, batch) -> [B, M]; one cache for all models and data of a process.
batch_nll = jax.jit(target_nll, static_argnums=0)


class Evaluated(NamedTuple):
    """Everything that scoring needs."""

    config: ModelConfig
    params: Params
    tokenizer: Any


def load_evaluated(
    model: str,
    adapters: Path | Sequence[Path] | None = None,
    dtype: BaseDType = "float32",
    *,
    weights: Sequence[float] | None = None,
) -> Evaluated:
    """Load a model, put the sum of its adapters on, if any, each times its weight (1), and load its tokenizer.

    Raises:
        InputError: if files are missing or do not fit each other.
    """
    files = locate(model)
    folders = [adapters] if isinstance(adapters, Path) else list(adapters or ())
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--adapter {folder}: no such directory; give one that `e2wm train` or PEFT wrote")
    tokenizer = load_tokenizer(files)
    loaded = load(files, dtype)
    params = loaded.params
    if folders:
        read = [read_adapter(folder, loaded.config) for folder in folders]
        params = lora.attach(params, *(read[0] if len(read) == 1 and weights is None else lora.combine(read, weights)))
    return Evaluated(loaded.config, params, tokenizer)
