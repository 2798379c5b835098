"""A training step that is measured: compiled once per shape of its batches, with the state it has come to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from e2wm_jax.bench.jobs.train import LR, STRENGTH, WEIGHT_DECAY
from e2wm_jax.data.batch import Batch, Row
from e2wm_jax.fisher.diagonal import peak_bytes
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.lora import Adapters, Scope
from e2wm_jax.models.layers import Params
from e2wm_jax.regularizers.catalogue import regularizer
from e2wm_jax.regularizers.regularizer import Material, PenaltyOptions, State
from e2wm_jax.train.step import Controls, StepConfig, TrainState, initial_state, train_step

_CONTROLS = Controls(np.float32(LR), np.float32(STRENGTH), np.float32(WEIGHT_DECAY), np.uint32(0))


@dataclass
class PreparedStep:
    """The step of one regularizer; see `prepared`."""

    config: StepConfig
    params: Params
    constants: State
    state: TrainState
    calls: dict[tuple[int, ...], Any] = field(default_factory=dict)  # by the shapes of the batch

    @property
    def peak_bytes(self) -> int:
        """Most bytes of any compiled step, by XLA's account."""
        return max(map(peak_bytes, self.calls.values()))

    def compiled(self, batch: Batch) -> Any:
        """The step for batches of this shape."""
        shapes = (*batch.ids.shape, *batch.targets.shape)
        if shapes not in self.calls:
            self.calls[shapes] = train_step.lower(self.config, *self._given(batch)).compile()
        return self.calls[shapes]

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        """One step, to its end; returns its metrics."""
        self.state, metrics = self.compiled(batch)(*self._given(batch))
        return jax.block_until_ready(metrics)

    def _given(self, batch: Batch) -> tuple[Any, ...]:
        # Text: the same rows, but an argument of its own; else the compiler might see that both passes are one.
        text = None if regularizer(self.config.regularizer).token_penalty is None else batch
        return self.state, _CONTROLS, self.params, self.constants, batch, text


def prepared(
    scope: Scope,
    name: str,
    params: Params,
    adapters: Adapters,
    *,
    fisher: Fisher | None = None,
    text: Sequence[Row] = (),
    options: PenaltyOptions | None = None,
    dropout: float = 0.1,
) -> PreparedStep:
    """The step with the regularizer of that name, which has read what it needs."""
    material = Material(scope, params, adapters, fisher, text, options or PenaltyOptions())
    config = StepConfig(scope, name, dropout=dropout)
    return PreparedStep(config, params, regularizer(name).prepare(material), initial_state(config, adapters))
