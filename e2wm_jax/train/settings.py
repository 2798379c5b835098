"""The settings of `e2wm train`; defaults are the official run's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from e2wm_jax.config import BaseDType, LoraConfig
from e2wm_jax.data.source import online_tasks, parse_mixture
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.options.choices import Implementation, Remat, Schedule, StrengthSchedule, TrackerName

APPEND_EOS = {"auto": None, "yes": True, "no": False}
MOST_STEPS = 100_000_000  # a learning rate for each is kept
_INFINITE = 2.0**128  # of float32
_MOST_ROWS = 1_000_000  # of a step
TASK_ROWS = "task"  # in place of general text: the rows of the task itself


@dataclass(frozen=True)
class TrainSettings:
    """Finetune LoRA adapters on tasks, held by a regularizer near what the model knows."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: tuple[str, ...]
    """What to learn: files (docs/data.md), FILE:WEIGHT, or a mixture "weight name weight name ...", e.g. "1 plan.json
    0.7 online:act_recog"; may be given several times. Endless tasks made on demand: online:plan_gen, act_recog, count,
    obj_move, or all; e.g. "online:plan_gen?simulations=500"."""
    out: Path
    """Run directory to write."""
    columns: str = ""
    """Which column of --data is which, where their names do not say it: prompt=question,completion=answer."""
    chat: bool = False
    """Rows of a question and its answer are turns of a conversation, put together by the tokenizer's chat template.
    Rows of messages always are."""
    append_eos: Literal["auto", "yes", "no"] = "auto"
    """End examples with the tokenizer's end-of-text token, so that `e2wm generate` stops: yes, as --append-eos alone,
    or no, as --no-append-eos. auto: texts, and completions of prompts, but not rows of input and ref, as the official
    code has it."""
    fisher: Path | None = None
    """Directory of `e2wm fisher`, or F published as a Hugging Face model; for ewc, online-ewc and row-column."""
    regularizer: str = "none"
    """none, l2, ewc, online-ewc, row-column, kfac, mas, factor-ewc, si, rwalk, kl-forward, kl-reverse or replay:
    docs/regularizers.md."""
    strength: float = 1.0
    """Factor of the penalty (lambda); no one half."""
    strength_schedule: StrengthSchedule = "constant"
    """constant, or linearly up from 0 or down to 0 over the run."""
    regularizer_data: tuple[str, ...] = ()
    """General text that a regularizer reads (mas, kfac, factor-ewc, kl-*, replay): files as of `e2wm fisher`, or the
    word task: kl-forward and kl-reverse on the batch's own rows."""
    regularizer_samples: int | None = None
    """At most so many documents of --regularizer-data, drawn by --seed."""
    regularizer_batch_size: int = 4
    """Rows of general text per forward pass."""
    decay: float = 1.0
    """Of earlier tasks' importance (gamma), in sequences of tasks."""
    damping: float = 1e-3
    """xi of si: added to the squared way of each number that its path is divided by."""
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
    schedule: Schedule = "linear"
    """linear: lr * (1 - (step - 1) / steps)."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises to --lr; the schedule has the others."""
    clip: float | None = None
    """Largest norm of the gradient; a longer one is scaled down."""
    mesh: str | None = None
    """Devices as data=2,fsdp=2,tensor=2: rows over data and fsdp, weights over fsdp and tensor. Default: the first
    device, or with --distributed all of them along data."""
    distributed: bool = False
    """One of several hosts that run the same command: docs/scale.md."""
    base_dtype: BaseDType = "float32"
    """Frozen weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits and compute in float32 on CPU,
    bfloat16 elsewhere. Adapters and losses stay float32."""
    remat: Remat = "none"
    """What the backward pass computes again instead of keeping it: layers (all but each layer's input), or products
    (all but what was multiplied with a weight)."""
    validation: tuple[str, ...] = ()
    """Held-out files, given as --data; their loss is measured before the first step and at every checkpoint
    (validation.jsonl)."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 3
    """Checkpoints kept, the newest ones."""
    keep_best: int = 0
    """Besides those, so many of the lowest --validation loss; without one, of the lowest mean training loss since the
    checkpoint before."""
    prompt: tuple[str, ...] = ()
    """Text to continue before the first step and at every checkpoint, greedily, to see what is learned (samples.jsonl);
    may be given several times. With --chat a user says it."""
    patience: int | None = None
    """Stop when so many checkpoints in a row had no lower --validation loss than the best before them; OUT/adapter is
    then that of the lowest."""
    max_minutes: float | None = None
    """Stop, with a checkpoint, after so many minutes of training; --resume goes on."""
    resume: bool = False
    """Continue the run in --out from its last whole checkpoint."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite: stop and name the examples, or leave that update out."""
    trackers: tuple[TrackerName, ...] = ()
    """tensorboard, wandb, trackio: metrics there too, besides metrics.jsonl; none: no tracker."""
    run_name: str | None = None
    """What --trackers call the run; default: the name of --out."""
    project: str | None = None
    """The project that wandb and trackio file it under; default: $WANDB_PROJECT, $TRACKIO_PROJECT or e2wm."""
    profile_steps: int = 0
    """Write a profile (jax.profiler, for xprof or Perfetto) of so many steps, after the first two, to OUT/profile."""
    skip_truncated: bool = False
    """Leave out rows whose answer --max-length cuts away."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens (the official code does not)."""
    seed: int = 42


def check_settings(settings: TrainSettings) -> None:
    """Refuse settings that cannot work, before anything is loaded.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    if settings.steps is None and (tasks := online_tasks(parse_mixture(settings.data))):
        raise InputError(f"--data: {tasks[0][1].name} has no end; say how far to go with --steps N")
    _check_numbers(settings)
    if settings.steps is not None and settings.warmup_steps >= settings.steps:
        raise InputError(f"--warmup-steps {settings.warmup_steps}: must be fewer than --steps {settings.steps}")
    if settings.prompt and (settings.mesh or settings.distributed):
        raise InputError(
            "--prompt: continued on one device only; leave out --mesh, or use `e2wm generate` on OUT/adapter"
        )
    if settings.patience is not None and not settings.validation:
        raise InputError(f"--patience {settings.patience}: needs held-out rows to go by; give --validation FILE")
    if settings.run_name is not None and Path(settings.run_name).name != settings.run_name:
        raise InputError(f"--run-name {settings.run_name}: it names a folder too; leave slashes out")
    from e2wm_jax import lora  # here and below: what the help does not wait for

    lora.check_lora(settings.lora)
    if not 0 <= settings.lora.dropout < 1:
        raise InputError(f"--lora.dropout {settings.lora.dropout}: must be at least 0 and below 1")
    _check_regularizer(settings)
    if settings.fisher is not None and not settings.fisher.is_dir():
        raise InputError(f"--fisher {settings.fisher}: no such directory; compute one with `e2wm fisher`")
    if settings.adapter is not None and not settings.adapter.is_dir():
        raise InputError(f"--adapter {settings.adapter}: no such directory; give one that `e2wm train` or PEFT wrote")


def _check_numbers(settings: TrainSettings) -> None:
    """That each number by itself is one that it may be."""
    check_at_least(
        ("--workers", settings.workers, 0),
        ("--epochs", settings.epochs, 1),
        ("--steps", settings.steps, 1),
        ("--batch-size", settings.batch_size, 1),
        ("--accumulate", settings.accumulate, 1),
        ("--max-length", settings.max_length, 2),
        ("--checkpoint-every", settings.checkpoint_every, 1),
        ("--keep-checkpoints", settings.keep_checkpoints, 1),
        ("--keep-best", settings.keep_best, 0),
        ("--patience", settings.patience, 1),
        ("--warmup-steps", settings.warmup_steps, 0),
        ("--regularizer-samples", settings.regularizer_samples, 1),
        ("--regularizer-batch-size", settings.regularizer_batch_size, 1),
        ("--profile-steps", settings.profile_steps, 0),
    )
    for flag, value, most in (
        ("--steps", settings.steps or 0, MOST_STEPS),
        ("--batch-size x --accumulate", settings.batch_size * settings.accumulate, _MOST_ROWS),
        ("--regularizer-batch-size", settings.regularizer_batch_size, _MOST_ROWS),
        ("--seed", settings.seed, 2**32 - 1),
    ):
        if not 0 <= value <= most:
            raise InputError(f"{flag} {value}: must be from 0 to {most}")
    for flag, number in (
        ("--lr", settings.lr),
        ("--strength", settings.strength),
        ("--weight-decay", settings.weight_decay),
        ("--decay", settings.decay),
    ):
        if not 0 <= number < _INFINITE:
            raise InputError(f"{flag} {number}: must be a finite number, 0 or more")
    for flag, positive in (
        ("--damping", settings.damping),
        ("--clip", settings.clip),
        ("--max-minutes", settings.max_minutes),
    ):
        if positive is not None and not 0 < positive < _INFINITE:
            raise InputError(f"{flag} {positive}: must be a finite number above 0")


def _check_regularizer(settings: TrainSettings) -> None:
    """That the regularizer exists, and has what it reads and nothing else."""
    from e2wm_jax.regularizers.catalogue import regularizer

    name, found = settings.regularizer, regularizer(settings.regularizer)
    if found.reads == "fisher" and settings.fisher is None:
        raise InputError(f"--regularizer {name} needs --fisher DIR; compute one with `e2wm fisher`")
    if found.reads != "fisher" and settings.fisher is not None:
        raise InputError(f"--fisher is given but --regularizer is {name}; add --regularizer ewc")
    if found.reads == "text" and not settings.regularizer_data:
        raise InputError(f"--regularizer {name} needs --regularizer-data: files of general text, e.g. pydoc:fisher")
    if found.reads != "text" and settings.regularizer_data:
        raise InputError(f"--regularizer-data is given but --regularizer {name} reads no text; leave it out")
    if TASK_ROWS in settings.regularizer_data:
        if not name.startswith("kl"):
            raise InputError(
                f"--regularizer-data {TASK_ROWS}: only kl-forward and kl-reverse; {name} reads general text"
            )
        if len(settings.regularizer_data) > 1:
            raise InputError(f"--regularizer-data {' '.join(settings.regularizer_data)}: {TASK_ROWS} stands alone")


def check_mesh(settings: TrainSettings, mesh: str) -> None:
    """That the devices can share the rows of every pass.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    from e2wm_jax.sharding import mesh_shape

    sizes = mesh_shape(mesh)
    parts = sizes["data"] * sizes["fsdp"]
    shared = [("--batch-size", settings.batch_size)]
    if settings.regularizer_data and TASK_ROWS not in settings.regularizer_data:
        shared.append(("--regularizer-batch-size", settings.regularizer_batch_size))
    for flag, size in shared:
        if size % parts:
            raise InputError(
                f"{flag} {size}: data x fsdp = {parts} devices of --mesh {mesh} cannot share it; "
                f"give a multiple of {parts}"
            )
