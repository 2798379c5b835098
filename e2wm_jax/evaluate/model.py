"""The model that is evaluated: a base with or without an adapter."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from e2wm_jax import lora
from e2wm_jax.adapter_files import read_adapter
from e2wm_jax.config import DType, ModelConfig
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.model_files import locate
from e2wm_jax.models.layers import Params
from e2wm_jax.models.likelihood import target_nll
from e2wm_jax.models.weights import load

# (config, params, batch) -> [B, M]; one cache for all models and data of a process.
batch_nll = jax.jit(target_nll, static_argnums=0)


class Evaluated(NamedTuple):
    """Everything that scoring needs."""

    config: ModelConfig
    params: Params
    tokenizer: Any


def load_evaluated(model: str, adapter: Path | None, dtype: DType = "float32") -> Evaluated:
    """Load a model, put its adapter on, if any, and load its tokenizer.

    Raises:
        InputError: if files are missing or do not fit each other.
    """
    files = locate(model)
    if adapter is not None and not adapter.is_dir():
        raise InputError(f"--adapter {adapter}: no such directory; give one that `e2wm train` or PEFT wrote")
    tokenizer = load_tokenizer(files)
    loaded = load(files, dtype)
    params = loaded.params
    if adapter is not None:
        params = lora.attach(params, *read_adapter(adapter, loaded.config))
    return Evaluated(loaded.config, params, tokenizer)
