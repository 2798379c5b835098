"""The loss on held-out rows, without dropout: what checkpoints are chosen and sequences of tasks are judged by.

Letters: B rows, M predicted tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Batch, Row
from e2wm_jax.data.loader import sorted_batches
from e2wm_jax.data.online.names import OnlineTask
from e2wm_jax.data.source import parse_mixture
from e2wm_jax.data.tokenize import say_cut
from e2wm_jax.errors import InputError
from e2wm_jax.lora import Adapters, Scope, attach
from e2wm_jax.models.layers import Params
from e2wm_jax.sharding import row_parts
from e2wm_jax.train.feed import file_rows, put, read_text
from e2wm_jax.train.passes import summed_over_devices, task_nll
from e2wm_jax.train.settings import TrainSettings


def validation_loss(
    scope: Scope, params: Params, adapters: Adapters, rows: Sequence[Row], batch_size: int, max_length: int
) -> float:
    """sum(weights * nll) / count(weights > 0) over all rows, in nats: the task loss of one batch of them all.

    Args:
        rows: the same on every host.
        batch_size: rows per forward pass; on a mesh rounded up to what its devices can share.
    """
    parts = 1 if scope.mesh is None else scope.mesh.shape["data"] * scope.mesh.shape["fsdp"]
    share = -(-batch_size // parts)
    here = (0,) if scope.mesh is None else row_parts(scope.mesh)
    mine = [row for part in here for row in range(part * share, (part + 1) * share)]
    sums, count = [], 0
    for batch, _ in sorted_batches(rows, share * parts, max_length):
        on_devices = put(Batch(*(leaf[None, mine] for leaf in batch)), scope.mesh)
        sums.append(_weighted_sum(scope, params, adapters, on_devices))
        count += int(np.count_nonzero(batch.weights > 0))
    # Asked for at the end, so that devices do not wait for the next batch.
    return sum(map(float, sums)) / max(count, 1)


def held_out_mixture(text: str | Sequence[str], flag: str) -> list[tuple[float, Path]]:
    """Files of a mixture with their weights.

    Raises:
        InputError: naming `flag`, for a malformed mixture or an online task in it.
    """
    mixture = parse_mixture(text, flag)
    for _, source in mixture:
        if isinstance(source, OnlineTask):
            raise InputError(f"{flag}: {source.name} has no end; give files, whose rows are the same each time")
    return [(weight, source) for weight, source in mixture if isinstance(source, Path)]


def held_out_rows(
    settings: TrainSettings, tokenizer: Any, config: ModelConfig, text: str | Sequence[str], flag: str
) -> list[Row]:
    """The rows of a mixture of files, tokenized as the training data are.

    Raises:
        InputError: as `held_out_mixture`, or for a file or row that cannot be read.
    """
    rows, _ = file_rows(settings, tokenizer, config, held_out_mixture(text, flag), flag)
    say_cut(rows, settings.max_length, flag)
    return rows


def check_rows(settings: TrainSettings, tokenizer: Any, config: ModelConfig) -> None:
    """That the model can read all files of a run: of --data, --validation and --regularizer-data.

    Raises:
        InputError: naming file and row.
    """
    file_rows(settings, tokenizer, config, parse_mixture(settings.data))
    read_text(settings, tokenizer, config)
    if settings.validation:
        held_out_rows(settings, tokenizer, config, settings.validation, "--validation")


def validator(
    settings: TrainSettings, scope: Scope, params: Params, rows: Sequence[Row]
) -> Callable[[Adapters], float] | None:
    """The loss on the rows of --validation as a function of the adapters; None where there are none."""
    if not rows:
        return None
    return partial(_loss_of, settings, scope, params, rows)


def _loss_of(settings: TrainSettings, scope: Scope, params: Params, rows: Sequence[Row], adapters: Adapters) -> float:
    return validation_loss(scope, params, adapters, rows, settings.batch_size, settings.max_length)


@partial(jax.jit, static_argnums=0)
def _weighted_sum(scope: Scope, params: Params, adapters: Adapters, batch: Batch) -> jax.Array:
    """sum(weights * nll) over a batch [1, B]; each device of a mesh goes through its own rows (`passes`)."""

    def local(adapters: Adapters, params: Params, batch: Batch, first_row: jax.Array | int) -> jax.Array:
        del first_row
        rows = Batch(*(leaf[0] for leaf in batch))
        nll = task_nll(scope, params, attach(params, adapters, scope.spec), rows)
        return jnp.sum(rows.weights * nll)

    return summed_over_devices(scope, local)(adapters, params, batch)
