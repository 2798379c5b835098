"""What a run ends with when a loss is not finite: at the first step the model is at fault, later the training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.train.settings import TrainSettings


def complaint(
    settings: TrainSettings, step: int, found: Mapping[str, float], examples: Sequence[Any], kept: Sequence[int]
) -> Exception:
    """Of a step whose loss or gradient is not finite.

    Args:
        found: loss, task_loss, penalty and grad_norm.
        kept: the steps of the checkpoints.

    Returns:
        InputError at the first step of a run, if the model is at fault; else FloatingPointError.
    """
    what = (
        f"step {step}: the loss is {found['loss']}, the norm of its gradient {found['grad_norm']} on examples "
        f"{list(examples)}"
    )
    if step > 1:
        good = f"the last good checkpoint is {kept[-1]}: " if kept else ""
        return FloatingPointError(f"{what}; {good}--resume with --on-nonfinite skip leaves such updates out")
    if math.isfinite(found["task_loss"]) and not math.isfinite(found["penalty"]):
        return FloatingPointError(
            f"{what}, before anything is learned: the penalty of --regularizer {settings.regularizer} is "
            f"{found['penalty']}; lower --strength, or give another --fisher or text for it"
        )
    return InputError(f"{what}, before anything is learned: {_at_fault(settings)}; {_SKIP}")


def check_held_out(settings: TrainSettings, step: int, nats: float, kept: Sequence[int]) -> None:
    """Refuse a held-out loss that is not finite.

    Raises:
        InputError: before the first step; FloatingPointError behind it.
    """
    if math.isfinite(nats):
        return
    if step == 0:
        raise InputError(f"--validation: the loss is {nats} before anything is learned: {_at_fault(settings)}")
    good = f"; the last good checkpoint is {kept[-1]}" if kept else ""
    raise FloatingPointError(f"step {step}: the loss on --validation is {nats}; lower --lr or give --clip{good}")


def check_learned(settings: TrainSettings, steps: int, skipped: int) -> None:
    """Refuse a run of which every update was left out (--on-nonfinite skip).

    Raises:
        InputError: if that is so.
    """
    if skipped == steps:
        raise InputError(f"all {steps} updates were left out, so nothing is learned: {_at_fault(settings)}")


_SKIP = "if it is these examples alone, --on-nonfinite skip leaves them out"


def _at_fault(settings: TrainSettings) -> str:
    adapter = f" with --adapter {settings.adapter}" if settings.adapter is not None else ""
    exact = settings.base_dtype == "float32"
    where = "beyond float32" if exact else f"NaN or infinite in --base-dtype {settings.base_dtype}"
    return (
        f"the scores or gradients of {settings.model}{adapter} are {where} on this text; give weights from before a "
        f"training that diverged{'' if exact else ', or --base-dtype float32'}"
    )
