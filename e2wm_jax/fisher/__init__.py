"""How much each parameter matters for what the model already does."""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

if TYPE_CHECKING:
    from e2wm_jax.fisher.diagonal import Computation, Estimator, FisherResult, document_fisher
    from e2wm_jax.fisher.documents import DocumentBatch, document_batches
    from e2wm_jax.fisher.examples import NonFiniteError, fisher_diagonal, sampled_nll
    from e2wm_jax.fisher.files import read_fisher, stored_tensors, write_fisher
else:
    __all__, __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "Computation": "e2wm_jax.fisher.diagonal",
            "DocumentBatch": "e2wm_jax.fisher.documents",
            "Estimator": "e2wm_jax.fisher.diagonal",
            "FisherResult": "e2wm_jax.fisher.diagonal",
            "NonFiniteError": "e2wm_jax.fisher.examples",
            "document_batches": "e2wm_jax.fisher.documents",
            "document_fisher": "e2wm_jax.fisher.diagonal",
            "fisher_diagonal": "e2wm_jax.fisher.examples",
            "read_fisher": "e2wm_jax.fisher.files",
            "sampled_nll": "e2wm_jax.fisher.examples",
            "stored_tensors": "e2wm_jax.fisher.files",
            "write_fisher": "e2wm_jax.fisher.files",
        },
    )
