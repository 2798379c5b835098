"""How much each parameter matters for what the model already does; `textbook` is the page to begin with."""

from typing import TYPE_CHECKING

from e2wm_jax import lazy

if TYPE_CHECKING:
    from e2wm_jax.fisher.diagonal import Computation, Estimator, FisherResult, document_fisher
    from e2wm_jax.fisher.documents import DocumentBatch, document_batches
    from e2wm_jax.fisher.examples import fisher_diagonal, sampled_nll
    from e2wm_jax.fisher.files import read_fisher, stored_tensors, write_fisher
    from e2wm_jax.fisher.finite import NonFiniteError
else:
    __all__, __getattr__, __dir__ = lazy.exports(__name__)
