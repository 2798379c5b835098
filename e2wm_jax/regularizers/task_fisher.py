"""The Fisher of a finished task, for the tasks behind it."""

from e2wm_jax.fisher.diagonal import Computation, document_fisher
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.regularizers.measure import adapted, documents, target_paths
from e2wm_jax.regularizers.quadratic import placed
from e2wm_jax.regularizers.regularizer import Material


def task_fisher(material: Material) -> Fisher:
    """F of the adapted weights where the task has ended, W + s B A, over that task's own rows.

    The empirical Fisher (`fisher.diagonal`): a row is an example, its loss the mean over the tokens that it trains, in
    nats, without the task's weight.  float32 [L, N, D] by path, on the mesh as the penalty reads it.

    Raises:
        NonFiniteError: if loss or gradient of a row is no finite number.
    """
    scope, paths = material.scope, target_paths(material.scope)
    found = document_fisher(
        scope.config,
        adapted(material),
        documents(material),
        select=paths.__contains__,
        computation=Computation(mesh=scope.mesh),
    )
    return placed(scope, found.values)
