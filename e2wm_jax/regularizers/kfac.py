"""The Kronecker-factored Fisher of each adapted matrix: entries are held together, not one by one.

    sum G D Q D = tr(G D Q D^T) = s^2 tr((B^T G B)(A Q A^T)),   D = s B A - s B* A*
    Q = mean over tokens of x x^T [D, D]             x the matrix's input at a token
    G = 1/J sum over J documents and their tokens of g g^T [N, N]      g = dL_j / dy, y the matrix's output there

Martens and Grosse 2015; as a penalty Ritter et al. 2018, without the factor one half.  L_j is the mean over a
document's predicted tokens of -log p, and labels are the text's own (the empirical Fisher).  G x Q is the Fisher of the
whole matrix, with all its off-diagonal entries, where one token a document matters or where inputs and gradients are
independent and tokens uncorrelated; otherwise the usual approximation.  Tokens that no predicted one sees are not
counted, which is the last of each document.

Both come from ordinary batched backward passes: `KroneckerMatrix` stands where the weight stood and adds up.  Between
tasks sums are added, G <- decay G + G_t, and Q stays a mean, of all tasks with the same decay: like tasks just add up.

Unit: (nats per token)^2.  State: G and Q, N^2 + D^2 numbers a matrix (q, k and v have a Q each, though the same), split
by rows over all devices of a mesh that divide them; and the anchor, R (N + D).

Letters: L layers, N outputs, D inputs, R rank, B rows, T tokens, J documents.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from e2wm_jax.fisher import head as heads
from e2wm_jax.fisher import sharded
from e2wm_jax.fisher.documents import DocumentBatch
from e2wm_jax.lora import Adapters, Scope, difference
from e2wm_jax.models.decoder import hidden_states, weight_table
from e2wm_jax.models.layers import Matrix, Params, matmul
from e2wm_jax.models.weights import flatten, unflatten
from e2wm_jax.regularizers.measure import adapted, decayed_sum, documents, target_paths
from e2wm_jax.regularizers.regularizer import Material, Regularizer, State, anchor_at
from e2wm_jax.sharding import AXES

Factors = dict[str, dict[str, jax.Array]]  # "layers.q.weight" -> "outputs": G [L, N, N], "inputs": Q [L, D, D]
_EXACT = jax.lax.Precision.HIGHEST


@struct.dataclass
class KroneckerMatrix:
    """A matrix [N, D], of any kind, whose backward pass adds g g^T and x x^T to what it holds: as its cotangent."""

    weight: jax.Array | Matrix
    outputs: jax.Array  # [N, N] float32
    inputs: jax.Array  # [D, D] float32
    counted: jax.Array  # [B, T] float32: 1 for tokens whose x counts

    def matmul(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> x W^T [B, T, N]."""
        return _matmul(x, self)


@jax.custom_vjp
def _matmul(x: jax.Array, leaf: KroneckerMatrix) -> jax.Array:
    # Under differentiation, as where it stands: where nothing is differentiated, quantized products may be rounded.
    return jax.vjp(lambda x: matmul(x, leaf.weight), x)[0]


def _matmul_backward(saved: tuple[jax.Array, KroneckerMatrix], g: jax.Array) -> tuple[jax.Array, KroneckerMatrix]:
    x, leaf = saved
    (dx,) = jax.vjp(lambda x: matmul(x, leaf.weight), x)[1](g)
    x32, g32 = x.astype(jnp.float32), g.astype(jnp.float32)
    outputs = leaf.outputs + jnp.einsum("btn,btm->nm", g32, g32, precision=_EXACT)
    inputs = leaf.inputs + jnp.einsum("btd,bte->de", x32 * leaf.counted[..., None], x32, precision=_EXACT)
    return dx, jax.tree.map(lambda _: None, leaf).replace(outputs=outputs, inputs=inputs)


_matmul.defvjp(lambda x, leaf: (_matmul(x, leaf), (x, leaf)), _matmul_backward)


def factors(scope: Scope, params: Params, batches: Iterable[DocumentBatch]) -> Factors:
    """G and Q of the adapted weights as they stand in `params`, over the documents of all batches."""
    table = weight_table(scope.config)
    totals: Factors = {}
    for path in target_paths(scope):
        for name, size in zip(("outputs", "inputs"), table[path].shape, strict=True):
            zeros = jnp.zeros((scope.config.num_layers, size, size), jnp.float32)
            totals.setdefault(path, {})[name] = (
                zeros if scope.mesh is None else jax.device_put(zeros, _split(scope, size))
            )
    number = tokens = 0
    for batch in batches:
        placed = batch if scope.mesh is None else sharded.put(batch, scope.mesh)
        totals, (more_documents, more_tokens) = _add(scope, totals, params, placed)
        number, tokens = number + int(more_documents), tokens + int(more_tokens)
    return {
        path: {"outputs": total["outputs"] / max(number, 1), "inputs": total["inputs"] / max(tokens, 1)}
        for path, total in totals.items()
    }


def _split(scope: Scope, size: int) -> NamedSharding:
    """Rows of a factor [L, size, size] over all devices that divide them, or copied."""
    assert scope.mesh is not None
    return NamedSharding(scope.mesh, PartitionSpec(None, AXES if size % scope.mesh.size == 0 else None))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add(
    scope: Scope, totals: Factors, params: Params, batch: DocumentBatch
) -> tuple[Factors, tuple[jax.Array, jax.Array]]:
    """The sums with those of a batch, each of whose rows is a document; and its documents and tokens that counted."""
    layers = scope.config.num_layers
    weights = batch.predicted / jnp.maximum(jnp.sum(batch.predicted, axis=1, keepdims=True), 1)
    counted = jnp.cumsum(batch.predicted[:, ::-1], axis=1)[:, ::-1] > 0
    seen = jnp.broadcast_to(counted.astype(jnp.float32), (layers, *counted.shape))
    flat: dict[str, Any] = dict(flatten(params))

    def hidden(totals: Factors) -> jax.Array:
        leaves = {
            path: KroneckerMatrix(flat[path], total["outputs"], total["inputs"], seen) for path, total in totals.items()
        }
        whole = unflatten({**flat, **leaves})
        return hidden_states(scope.config, whole, batch.ids, batch.positions, batch.segments, remat="layers")

    states, pull = jax.vjp(hidden, totals)
    head = params["embed" if scope.config.tied else "head"]
    (totals,) = pull(heads.loss_and_gradient(states, head, batch.labels, weights).dh)
    if scope.mesh is not None:
        totals = jax.tree.map(lambda t: jax.lax.with_sharding_constraint(t, _split(scope, t.shape[1])), totals)
    return totals, (jnp.sum(jnp.any(counted, axis=1)), jnp.sum(counted))


def _measured(material: Material, params: Params) -> dict[str, Any]:
    """What is summed over tasks: G, Q, and the number of tasks that Q is the mean of."""
    return {"factors": factors(material.scope, params, documents(material)), "tasks": jnp.float32(1)}


def prepare(material: Material) -> State:
    """The factors of the pretrained model on general text; without text the first task is free."""
    return {"sums": _measured(material, material.params)} if material.rows else {}


def penalty(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """tr(G D Q D^T)."""
    total = jnp.float32(0)
    if "sums" not in state:
        return total
    change = difference(adapters, state.get("anchor"))
    for target in scope.spec:
        a, b = change[target.path]["a"], change[target.path]["b"]
        found = state["sums"]["factors"][f"{target.path}.weight"]
        outputs = jnp.einsum("lnr,lnm,lmq->lrq", b, found["outputs"], b, precision=_EXACT)
        inputs = jnp.einsum("lrd,lde,lqe->lrq", a, found["inputs"], a, precision=_EXACT)
        total += jnp.einsum("l,lrq,lrq->", target.scales**2, outputs, inputs, precision=_EXACT)
    return total / state["sums"]["tasks"]


def next_task(material: Material, state: State, path: State) -> State:
    """The factors of the task's own rows, where it has ended, are added, and the anchor moves."""
    del path
    more = _measured(material, adapted(material))
    return {
        "sums": decayed_sum(material.options.decay, state.get("sums"), more),
        "anchor": anchor_at(material.adapters),
    }


KFAC = Regularizer(
    formula="tr(G D Q D^T), G of the outputs' gradients, Q of the inputs",
    reference="K-FAC, Martens and Grosse 2015; as a penalty Ritter et al. 2018",
    reads="text",
    prepare=prepare,
    penalty=penalty,
    next_task=next_task,
)
