"""The model that is evaluated: a base with or without an adapter, on one device or on a mesh."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from e2wm_jax import lora
from e2wm_jax.config import BaseDType, ModelConfig
from e2wm_jax.data.batch import Batch
from e2wm_jax.data.chat import as_messages, chat_prompt_ids, end_of_turn
from e2wm_jax.data.tokenize import check_ids, encode_prompts
from e2wm_jax.data.tokenizer import open_tokenizer
from e2wm_jax.errors import InputError, NonFiniteError
from e2wm_jax.evaluate.texts.generation_config import GenerationConfig, read_generation_config
from e2wm_jax.evaluate.texts.prompting import Prompting
from e2wm_jax.models import spread
from e2wm_jax.models.head import target_nll
from e2wm_jax.models.layers import Params
from e2wm_jax.models.quantized import compute_dtype, quantizer
from e2wm_jax.models.weights import load, open_model
from e2wm_jax.running.progress import busy
from e2wm_jax.sharding import batch_sharding, replicate
from e2wm_jax.storage.adapter_files import read_adapter
from e2wm_jax.storage.model_files import ModelFiles, locate

# (config, params, batch) -> [B, M]; one cache for all models and data of a process.
batch_nll = jax.jit(target_nll, static_argnums=0)


class Opened(NamedTuple):
    """What is known of a model before a weight is read: enough to measure what it is to be asked."""

    files: ModelFiles
    config: ModelConfig
    tokenizer: Any
    generation: GenerationConfig  # what the checkpoint says about texts that it writes


class Evaluated(NamedTuple):
    """Everything that scoring needs."""

    config: ModelConfig
    params: Params
    tokenizer: Any
    mesh: Mesh | None = None  # where the parameters lie; rows are split over its data and fsdp
    ends: tuple[int, ...] = ()  # tokens that end a text beside the tokenizer's own
    fingerprint: str = ""  # of the base and its adapters


def open_evaluated(model: str) -> Opened:
    """A model's configuration and tokenizer.

    Raises:
        InputError: if files are missing or damaged.
    """
    files = locate(model)
    return Opened(files, open_model(files)[0], open_tokenizer(files), read_generation_config(files))


def load_evaluated(
    model: str | Opened,
    adapters: Path | Sequence[Path] | None = None,
    dtype: BaseDType = "float32",
    *,
    weights: Sequence[float] | None = None,
    mesh: Mesh | None = None,
) -> Evaluated:
    """Load a model, put the sum of its adapters on, if any, each times its weight (1), and load its tokenizer.

    Raises:
        InputError: if files are missing or do not fit each other.
    """
    opened = open_evaluated(model) if isinstance(model, str) else model
    folders = [adapters] if isinstance(adapters, Path) else list(adapters or ())
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"--adapter {folder}: no such directory; give one that `e2wm train` or PEFT wrote")
    with busy("loading the model"):
        loaded = load(opened.files, compute_dtype(dtype), mesh=mesh, transform=quantizer(dtype))
    params, digest = loaded.params, hashlib.sha256(f"{loaded.fingerprint} {dtype}".encode())
    if mesh is not None:
        params = spread.place(loaded.config, params, mesh)
    if folders:
        read = [read_adapter(folder, loaded.config) for folder in folders]
        factors, spec = read[0] if len(read) == 1 and weights is None else lora.combine(read, weights)
        digest.update(repr(spec).encode())
        for leaf in jax.tree.leaves(factors):
            digest.update(np.asarray(leaf).tobytes())
        params = lora.attach(params, factors if mesh is None else replicate(factors, mesh), spec)
    return Evaluated(loaded.config, params, opened.tokenizer, mesh, opened.generation.ends, digest.hexdigest())


def row_nll(evaluated: Evaluated, batch: Batch) -> np.ndarray:
    """Negative log-likelihood [B, M] in nats, float64, of each target token; meaningless where its weight is 0.

    On a mesh the rows are split over its devices; they must divide evenly (`rows_per_pass`).
    """
    placed = batch if evaluated.mesh is None else jax.device_put(batch, batch_sharding(evaluated.mesh))
    return np.asarray(batch_nll(evaluated.config, evaluated.params, placed), np.float64)


def prompt_ids(
    model: Opened | Evaluated,
    texts: Sequence[str],
    prompting: Prompting = Prompting(),
    *,
    where: Callable[[int], str],
    system: str | None = None,
) -> list[list[int]]:
    """Token ids of each text that is to be continued, for all of which the model has a row.

    Args:
        where: index of a text -> its place, for messages.
        system: what the system says in front of it, of a chat.

    Raises:
        InputError: for a token beyond the model's table (`check_ids`), or a chat without a template.
    """
    if prompting.chat:
        encoded = [
            chat_prompt_ids(model.tokenizer, as_messages(text, system), where(i)) for i, text in enumerate(texts)
        ]
    else:
        encoded = encode_prompts(model.tokenizer, texts, special_tokens=prompting.special_tokens)
    check_ids(model.tokenizer, model.config.vocab_size, ((where(i), ids) for i, ids in enumerate(encoded)))
    return encoded


def ending_tokens(evaluated: Evaluated, *, chat: bool = False) -> set[int]:
    """Tokens that end what the model writes: the tokenizer's, the checkpoint's, and of a chat the one behind a turn."""
    own = evaluated.tokenizer.eos_token_id
    turn = end_of_turn(evaluated.tokenizer) if chat else None
    return {*evaluated.ends, *(end for end in (own, turn) if end is not None)}


def check_finite(values: float | np.ndarray, where: str) -> None:
    """Refuse scores that are NaN or infinite: a model is judged by numbers, or not at all.

    Raises:
        NonFiniteError: naming ``where``, the example.
    """
    if not np.all(np.isfinite(values)):
        raise NonFiniteError(where)


def check_positions(evaluated: Opened | Evaluated, tokens: int, where: str, way_out: str = "shorten it") -> None:
    """Refuse a row that is too long for the model.

    Raises:
        InputError: naming ``where``, the row, and the way out.
    """
    if tokens > evaluated.config.max_positions:
        raise InputError(
            f"{where}: {tokens} tokens, the model has {evaluated.config.max_positions} positions; {way_out}"
        )


def rows_per_pass(evaluated: Evaluated, batch_size: int) -> int:
    """The batch size, on a mesh rounded up to what the devices that split its rows can share."""
    if evaluated.mesh is None:
        return batch_size
    parts = evaluated.mesh.shape["data"] * evaluated.mesh.shape["fsdp"]
    return -(-batch_size // parts) * parts
