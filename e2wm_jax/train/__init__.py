"""Finetuning: the step, the run directory, the loop."""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

if TYPE_CHECKING:
    from e2wm_jax.train.step import Controls, StepConfig, TrainState, initial_state, train_step
else:
    __all__, __getattr__, __dir__ = lazy.exports(__name__)
