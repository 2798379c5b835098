"""The settings of `e2wm train`; defaults are the official run's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from e2wm_jax import lora
from e2wm_jax.config import BaseDType, LoraConfig
from e2wm_jax.data.source import online_tasks, parse_mixture
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.kernels.weighted_square import Implementation
from e2wm_jax.regularizers.quadratic import RegularizerName


@dataclass(frozen=True)
class TrainSettings:
    """Finetune LoRA adapters on tasks, held by a regularizer near what the model knows."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: str
    """Mixture of task files and endless tasks made on demand: "weight name weight name ...", e.g. "1 plan.json 0.7
    online:act_recog". Online: plan_gen, act_recog, count, obj_move, or all; e.g. "online:plan_gen?simulations=500"."""
    out: Path
    """Run directory to write."""
    fisher: Path | None = None
    """Directory of `e2wm fisher`, or F published as a Hugging Face model; for --regularizer ewc."""
    regularizer: RegularizerName = "none"
    """none, l2: sum (sBA)^2, or ewc: sum F (sBA)^2."""
    strength: float = 1.0
    """Factor of the penalty (lambda); no one half."""
    fisher_scale: Literal["none", "rowmax127"] = "none"
    """rowmax127 uses round(127 F / row maximum), for strengths published with the official code."""
    penalty_kernel: Implementation = "xla"
    """How the ewc penalty is computed: xla runs everywhere; pallas_tpu and mosaic_gpu (Hopper) are not yet measured."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    adapter: Path | None = None
    """Start from this PEFT directory; it then decides rank, alpha and targets."""
    lr: float = 8e-4
    """Peak learning rate."""
    epochs: int = 3
    """Passes over the data."""
    steps: int | None = None
    """Optimizer steps; replaces --epochs. Online data needs it."""
    batch_size: int = 20
    """Examples per forward pass."""
    accumulate: int = 1
    """Forward passes per optimizer step; equal to one batch of batch_size * accumulate examples."""
    max_length: int = 800
    """Rows are cut on the right to this many tokens."""
    pack: bool = False
    """Several examples in one row, where they fit: less padding, the same loss."""
    workers: int | None = None
    """Processes that make online data; default: one less than there are cores. The data do not depend on it."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw: betas 0.9, 0.999, eps 1e-8."""
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """linear: lr * (1 - (step - 1) / steps)."""
    base_dtype: BaseDType = "float32"
    """Frozen weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits and compute in float32 on CPU,
    bfloat16 elsewhere. Adapters and losses stay float32."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 3
    """Checkpoints kept, the newest ones."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint."""
    skip_truncated: bool = False
    """Leave out rows whose answer --max-length cuts away."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens (the official code does not)."""
    seed: int = 42


def check(settings: TrainSettings) -> None:
    """Refuse settings that cannot work, before anything is loaded.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    if settings.steps is None and (tasks := online_tasks(parse_mixture(settings.data))):
        raise InputError(f"--data: {tasks[0][1].name} has no end; say how far to go with --steps N")
    check_at_least(
        ("--workers", settings.workers, 0),
        ("--epochs", settings.epochs, 1),
        ("--steps", settings.steps, 1),
        ("--batch-size", settings.batch_size, 1),
        ("--accumulate", settings.accumulate, 1),
        ("--max-length", settings.max_length, 2),
        ("--checkpoint-every", settings.checkpoint_every, 1),
        ("--keep-checkpoints", settings.keep_checkpoints, 1),
    )
    for flag, number in (
        ("--lr", settings.lr),
        ("--strength", settings.strength),
        ("--weight-decay", settings.weight_decay),
    ):
        if not 0 <= number < float("inf"):
            raise InputError(f"{flag} {number}: must be a finite number, 0 or more")
    lora.check(settings.lora)
    if not 0 <= settings.lora.dropout < 1:
        raise InputError(f"--lora.dropout {settings.lora.dropout}: must be at least 0 and below 1")
    if settings.regularizer == "ewc" and settings.fisher is None:
        raise InputError("--regularizer ewc needs --fisher DIR; compute one with `e2wm fisher`")
    if settings.regularizer != "ewc" and settings.fisher is not None:
        raise InputError(f"--fisher is given but --regularizer is {settings.regularizer}; add --regularizer ewc")
    if settings.fisher is not None and not settings.fisher.is_dir():
        raise InputError(f"--fisher {settings.fisher}: no such directory; compute one with `e2wm fisher`")
    if settings.adapter is not None and not settings.adapter.is_dir():
        raise InputError(f"--adapter {settings.adapter}: no such directory; give one that `e2wm train` or PEFT wrote")
