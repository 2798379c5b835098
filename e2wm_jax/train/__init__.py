"""Finetuning: the step, the run directory, the loop."""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

if TYPE_CHECKING:
    from e2wm_jax.train.step import Controls, StepConfig, TrainState, initial_state, train_step
else:
    __all__, __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "Controls": "e2wm_jax.train.step",
            "StepConfig": "e2wm_jax.train.step",
            "TrainState": "e2wm_jax.train.step",
            "initial_state": "e2wm_jax.train.step",
            "train_step": "e2wm_jax.train.step",
        },
    )
