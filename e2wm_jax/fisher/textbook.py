"""Read this first: the diagonal Fisher as it is defined, F = sum over documents of (d loss / d theta)^2.

`loss` is that of one document, `examples.add_squares` takes its gradient and adds the squares:

    vmap   all documents of a batch at once: one copy of the parameters per document
    scan   one after another: one copy in all

`fused` gives the same numbers for the cost of one ordinary gradient, and is tested against this.  From here: `examples`
(of any loss), `fused` and `squares` (of our models), `diagonal` (over a corpus), `command` (`e2wm fisher`).

Letters: B rows, T tokens, J documents.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from e2wm_jax.config import ModelConfig
from e2wm_jax.fisher import examples
from e2wm_jax.fisher import head as heads
from e2wm_jax.fisher.documents import DocumentBatch
from e2wm_jax.fisher.examples import Losses
from e2wm_jax.fisher.fused import FusedOptions, document_weights
from e2wm_jax.models import decoder
from e2wm_jax.models.layers import Params, negative_log_likelihood
from e2wm_jax.models.quantized import dense
from e2wm_jax.models.weights import flatten, unflatten

_Document = tuple[jax.Array, ...]  # row of the batch that holds it, and each token's weight in its loss, [T]


def add_squares(
    config: ModelConfig,
    options: FusedOptions,
    method: Literal["vmap", "scan"],
    totals: dict[str, jax.Array],
    params: Params,
    batch: DocumentBatch,
) -> tuple[dict[str, jax.Array], Losses]:
    """As `fused.add_squares`, from which ``options`` takes what says what is estimated."""
    flat = flatten(params)
    # Quantized weights are written out in float32: the gradient is that of the weight, not of its codes.
    chosen = {path: dense(flat[path]) for path in totals}
    keys = jnp.zeros(batch.slots.shape, jnp.int32)
    if options.sampling_seed is not None:
        keys = heads.token_keys(options.sampling_seed, batch.numbers, batch.slots, batch.positions)
    rows = (batch.ids, batch.positions, batch.segments, batch.labels, keys)

    def loss(chosen: dict[str, Any], document: _Document) -> jax.Array:
        index, weights = document
        ids, positions, segments, labels, keys = (leaf[index][None] for leaf in rows)
        params = unflatten({**flat, **chosen})
        hidden = decoder.hidden_states(config, params, ids, positions, segments)
        if options.sampling_seed is not None:
            head = jax.lax.stop_gradient(params["embed" if config.tied else "head"])
            labels = heads.loss_and_gradient(jax.lax.stop_gradient(hidden), head, labels, weights[None], keys).labels
        nll = negative_log_likelihood(decoder.logits(config, params, hidden), labels)[0]
        return jnp.sum(jnp.where(weights > 0, weights * nll, 0))

    own = batch.slots == jnp.arange(batch.starts.shape[0])[:, None, None]  # [J, B, T]
    of_tokens = jnp.sum(own * document_weights(batch, options.reduction), axis=1)  # [J, T]: a document is in one row
    documents = (batch.starts // batch.ids.shape[1], of_tokens)
    microbatch = len(batch.starts) if method == "vmap" else None
    return examples.add_squares(loss, totals, chosen, documents, jnp.ones(len(batch.starts)), microbatch=microbatch)
