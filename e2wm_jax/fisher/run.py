"""`e2wm fisher`: documents -> batches -> F -> directory."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from e2wm_jax.config import BaseDType
from e2wm_jax.data.loader import sorted_batches
from e2wm_jax.data.source import PYDOC_SPLITS, read_documents
from e2wm_jax.data.tokenize import document_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.files import sha256
from e2wm_jax.fisher.diagonal import Estimator, Labels, Method, Reduction, fisher_diagonal
from e2wm_jax.fisher.files import write_fisher
from e2wm_jax.lora import linear_modules
from e2wm_jax.model_files import locate
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.quantized import dense_params, load
from e2wm_jax.progress import progress_bar


@dataclass(frozen=True)
class FisherSettings:
    """Compute the exact per-example diagonal Fisher of a model on text."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: tuple[str, ...]
    """JSON lines with "text", .txt with blank lines between documents (either .gz), or pydoc:fisher."""
    out: Path
    """Directory to write: model.safetensors under Hugging Face names, and fisher.json."""
    samples: int | None = None
    """Use the first N documents of at least two tokens; all by default."""
    max_length: int = 800
    """Documents are cut to this many tokens."""
    method: Literal["auto", "vmap", "scan"] = "auto"
    """How per-example gradients are computed; the result is the same."""
    labels: Labels = "data"
    """Labels from the text (empirical Fisher) or sampled from the model (true Fisher, one draw)."""
    reduction: Reduction = "mean"
    """An example's loss: mean (the official run) or sum over its predicted tokens."""
    params: str = "all"
    """all, lora-targets (every linear map of the blocks), or a regular expression on Hugging Face parameter names."""
    batch_size: int = 4
    """Examples per compiled step."""
    seed: int = 0
    """For --labels sampled."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; with int8 and nf4, those that --params leaves out stay in 8 or 4 bits."""
    special_tokens: bool = True
    """Add the tokenizer's default special tokens, as the official code does."""


def run(settings: FisherSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, before the model is loaded.
    """
    keep = check(settings)
    files = locate(settings.model)
    documents = [document for path in settings.data for document in read_documents(path)]
    rows, _ = document_rows(
        load_tokenizer(files), documents, max_length=settings.max_length, special_tokens=settings.special_tokens
    )
    rows = rows[: settings.samples]
    if not rows:
        raise InputError(
            f"--data {' '.join(settings.data)}: no document of two tokens or more; nothing can be predicted"
        )
    model = load(files, settings.base_dtype)
    layers = range(model.config.num_layers)
    selected = {
        path
        for path, spec in weight_table(model.config).items()
        if keep is None or any(keep.fullmatch(spec.hf.format(layer)) for layer in (layers if spec.stacked else (0,)))
    }
    if settings.params == "lora-targets":
        selected = {f"{path}.weight" for path in linear_modules(model.config)}
    if not selected:
        raise InputError(
            f"--params {settings.params!r} matches no parameter, e.g. model.layers.0.self_attn.q_proj.weight"
        )
    method: Method = "vmap" if settings.method == "auto" else settings.method
    estimator = Estimator(settings.labels, settings.reduction, settings.seed)
    started = time.monotonic()
    with progress_bar("fisher", len(rows), "example") as bar:
        result = fisher_diagonal(
            model.config,
            # F is of the weights that the base computes with: the selected ones are written out, the others stay.
            dense_params(model.params, selected.__contains__),
            sorted_batches(rows, settings.batch_size, settings.max_length),
            select=selected.__contains__,
            method=method,
            estimator=estimator,
            progress=bar.update,
        )
    seconds = time.monotonic() - started
    write_fisher(
        settings.out,
        model,
        result,
        keep=keep,
        estimator=estimator,
        method=method,
        base_dtype=settings.base_dtype,
        max_length=settings.max_length,
        data=[describe(path) for path in settings.data],
    )
    return {
        "samples": result.samples,
        "tokens": result.tokens,
        "seconds": seconds,
        "examples_per_second": result.samples / seconds,
        "method": method,
        "peak_bytes": result.peak_bytes,
        "out": str(settings.out),
    }


def check(settings: FisherSettings) -> re.Pattern[str] | None:
    """Refuse settings that cannot work; returns the pattern of the parameters to keep, if one was given."""
    check_at_least(
        ("--samples", settings.samples, 1),
        ("--max-length", settings.max_length, 2),
        ("--batch-size", settings.batch_size, 1),
    )
    if settings.out.exists() and (not settings.out.is_dir() or any(settings.out.iterdir())):
        raise InputError(f"--out {settings.out}: already holds something; give a new or empty directory")
    if settings.params in ("all", "lora-targets"):
        return None
    try:
        return re.compile(settings.params)
    except re.error as error:
        raise InputError(f"--params {settings.params!r}: not a regular expression ({error})") from error


def describe(path: str) -> dict[str, str]:
    """Name and content hash of a data file, for the record."""
    return {"path": path} if path in PYDOC_SPLITS else {"path": path, "sha256": sha256(Path(path))}
