"""Token ids against the rows of a model's embedding table."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from e2wm_jax.errors import InputError


def check_ids(tokenizer: Any, vocab_size: int, encoded: Iterable[tuple[str, Sequence[int] | np.ndarray]]) -> None:
    """Refuse tokens for which the model has no row; a tokenizer that could make such is no mistake as long as it does
    not, and a table that is larger than the tokenizer is none at all.

    Args:
        encoded: where a text stands ("file:line"), and its token ids.

    Raises:
        InputError: naming the place, the token and the table of the first that is beyond it.
    """
    for where, ids in encoded:
        if len(ids) and int(np.max(ids)) >= vocab_size:
            token = next(int(one) for one in ids if one >= vocab_size)
            raise InputError(
                f"{where}: token {token} ({tokenizer.convert_ids_to_tokens(token)}), the model has {vocab_size} rows; "
                "give the tokenizer that the weights were trained with, or a model whose embeddings were resized"
            )
