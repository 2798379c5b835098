"""Rows beyond the positions that a model was trained for: some models cannot read them, others merely never did."""

from collections.abc import Callable, Sequence

from e2wm_jax.config import DynamicScaling, GPTJConfig, ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.errors import InputError
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.running.progress import say


def rule_of_positions(config: ModelConfig) -> str | None:
    """Why a row of more than `max_positions` tokens cannot be read, or not alike in every batch; None where it can,
    as transformers does it."""
    # GPT-J's angles come from a formula here and from a table in transformers, which ends where the positions do.
    if isinstance(config, GPTJConfig) or "positions.weight" in weight_table(config):
        return f"the model has {config.max_positions} positions"
    if isinstance(getattr(config, "rope_scaling", None), DynamicScaling):
        return (
            f"beyond {config.max_positions} positions this model's rotation depends on the longest row of a batch, and "
            "numbers would depend on the batches"
        )
    return None


def fewer_new_tokens(prompt: int, positions: int) -> str:
    """The beginning of a way out for a prompt with too little room behind it: none where the prompt itself is too long.

    Args:
        prompt: its tokens, of several prompts those of the longest.
    """
    return f"lower --max-new-tokens to {positions - prompt}, or " if prompt < positions else ""


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
        f"{first}, beyond the {limit} positions that the model was trained for, as {len(beyond)} of {len(rows)} rows; "
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
