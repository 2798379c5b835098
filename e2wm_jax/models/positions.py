"""Rows beyond the positions that a model was trained for: some models cannot read them, others merely never did."""

from e2wm_jax.config import DynamicScaling, GPTJConfig, ModelConfig
from e2wm_jax.models.decoder import weight_table


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
