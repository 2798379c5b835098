"""Rows of a run against the positions of its model, before a weight is read."""

from collections.abc import Callable, Sequence

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.errors import InputError
from e2wm_jax.models.positions import rule_of_positions
from e2wm_jax.progress import say


def check_positions(config: ModelConfig, rows: Sequence[Row], where: Callable[[int], str]) -> None:
    """Refuse rows that the model cannot read; say it where it can but was never trained on so long ones.

    Args:
        where: the place in the data of a row, by its number.

    Raises:
        InputError: naming the first such row, and the way out.
    """
    limit = config.max_positions
    beyond = [number for number, row in enumerate(rows) if len(row.ids) > limit]
    if not beyond:
        return
    first = f"{where(beyond[0])}: {len(rows[beyond[0]].ids)} tokens"
    if rule := rule_of_positions(config):
        raise InputError(f"{first}, but {rule}; give --max-length {limit}")
    say(
        f"{first}, and {len(beyond) - 1} more rows beyond the {limit} positions that the model was trained for; "
        f"--max-length {limit} cuts them"
    )


def check_online_positions(config: ModelConfig, max_length: int, name: str) -> None:
    """The same for rows that are made while training: as long as --max-length lets them be.

    Raises:
        InputError: if they may be longer than the model can read.
    """
    if max_length > config.max_positions and (rule := rule_of_positions(config)):
        raise InputError(
            f"{name}: its rows may have --max-length {max_length} tokens, but {rule}; "
            f"give --max-length {config.max_positions}"
        )
