"""The settings of `e2wm fisher`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2wm_jax.config import BaseDType
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.options.choices import FisherDType, Labels, Reduction


@dataclass(frozen=True)
class FisherSettings:
    """Compute the exact per-example diagonal Fisher of a model on text."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: tuple[str, ...]
    """Text: .txt with blank lines between documents, rows with "text" or of another form (docs/data.md), or
    pydoc:fisher."""
    out: Path
    """Directory to write: model.safetensors under Hugging Face names, fisher.json, report.html."""
    samples: int | None = None
    """Use N documents of at least two tokens, drawn by --seed; all by default."""
    columns: str = ""
    """Which column is which, where their names do not say it: text=body."""
    max_length: int = 800
    """Documents are cut to this many tokens; no row is longer."""
    method: Literal["auto", "fused", "vmap", "scan"] = "auto"
    """How per-example gradients are computed; the result is the same. auto: fused."""
    layout: Literal["auto", "rows", "packed"] = "auto"
    """A row for each document, or rows filled with several; the result is the same. auto: what should take
    less time."""
    labels: Labels = "data"
    """Labels from the text (empirical Fisher) or sampled from the model (true Fisher, one draw)."""
    reduction: Reduction = "mean"
    """An example's loss: mean (the official run) or sum over its predicted tokens."""
    params: str = "all"
    """all, lora-targets (every linear map of the blocks), or a regular expression on Hugging Face parameter names."""
    batch_size: int = 4
    """Rows of a compiled step at most, over all devices; packed rows: as many as hold the tokens of so many of
    --max-length."""
    group: int = 1
    """Documents whose products are squared at once: 1 suits a CPU, several an accelerator."""
    keep: float = 0.1
    """Memory for products of the forward pass that the backward pass would make again, as a share of the weights'."""
    kernel: Literal["xla", "pallas_tpu", "mosaic_gpu"] = "xla"
    """What squares the documents' products, see kernels/README.md."""
    seed: int = 0
    """Of --samples, and of --labels sampled."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits, F is that of the matrices they stand
    for."""
    dtype: FisherDType = "float32"
    """Of the F that is written; sums are float32. uint8: codes of its square root."""
    special_tokens: bool = True
    """Add the tokenizer's default special tokens, as the official code does."""
    mesh: str | None = None
    """Devices to use, such as data=2,fsdp=2,tensor=2; rows are split over data x fsdp, weights over fsdp and tensor."""
    distributed: bool = False
    """One of several hosts, all of which run this command with one --out: from the cluster's scheduler, or from
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. --mesh is then over the devices of all; without it,
    data."""
    checkpoint_minutes: float = 5.0
    """Minutes between saves of the unfinished pass; 0: only when it is stopped or fails."""
    resume: bool = False
    """Continue the unfinished pass in --out."""
    skip_nonfinite: bool = False
    """Leave out documents whose loss or gradient is not finite, and name them in fisher.json."""
    previous: Path | None = None
    """Directory of `e2wm fisher` for the same model and --params: F = decay * previous + F of --data (online EWC)."""
    decay: float = 1.0
    """Factor of --previous, in (0, 1]."""


def check_settings(settings: FisherSettings) -> re.Pattern[str] | None:
    """Refuse settings that cannot work, before anything is loaded; returns the pattern of --params, if it is one.

    Raises:
        InputError: naming the flag, its value, the rule and the way out.
    """
    check_at_least(
        ("--samples", settings.samples, 1),
        ("--max-length", settings.max_length, 2),
        ("--batch-size", settings.batch_size, 1),
        ("--group", settings.group, 1),
    )
    if not 0 <= settings.checkpoint_minutes < float("inf"):
        raise InputError(f"--checkpoint-minutes {settings.checkpoint_minutes}: must be a finite number, 0 or more")
    if not 0 <= settings.keep < float("inf"):
        raise InputError(f"--keep {settings.keep}: must be a finite number, 0 or more")
    if not 0 < settings.decay <= 1:
        raise InputError(f"--decay {settings.decay}: must be above 0 and at most 1")
    if settings.decay != 1 and settings.previous is None:
        raise InputError(f"--decay {settings.decay} needs --previous DIR, the Fisher that it is a factor of")
    if settings.mesh is not None:
        from e2wm_jax.sharding import mesh_shape  # the help does not wait for it

        mesh_shape(settings.mesh)
    if settings.method in ("vmap", "scan") and (settings.mesh is not None or settings.distributed):
        flag = "--distributed" if settings.mesh is None else f"--mesh {settings.mesh}"
        raise InputError(f"{flag}: --method {settings.method} works on one device; leave --method out, or give fused")
    return params_pattern(settings.params)


def params_pattern(params: str) -> re.Pattern[str] | None:
    """The regular expression that --params is, if it is one.

    Raises:
        InputError: if it is none.
    """
    if params in ("all", "lora-targets"):
        return None
    try:
        return re.compile(params)
    except re.error as error:
        raise InputError(f"--params {params!r}: not a regular expression ({error})") from error
