"""sum F D^2 of a weight change D = s B A: on one device, by a kernel, or with F spread over a mesh.

What is held where is for the regularizers to say; the change may be that of the adapters, or their difference from
where a task began (`lora.difference`).  F is in any storage type and never decoded as a whole.

L2-SP (Li et al. 2018) holds every entry alike, sum D^2 with D = s B A - s B* A*: the distance to where the task began,
in the first task to the pretrained weights.  sum D^2 = s^2 tr((B^T B)(A A^T)), R x R products only, also of the
difference, which is an adapter of twice the rank.  State: the anchor, R (N + D) numbers a matrix, from the second task
on.

Letters: L layers, N outputs, D inputs, R rank.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from e2wm_jax.config import ModelConfig
from e2wm_jax.fisher.storage import BLOCK, Fisher, SquareRootCodes, StoredFisher, decode
from e2wm_jax.kernels.weighted_square import Implementation, weighted_square
from e2wm_jax.lora import Adapters, AdapterSpec, Scope, difference
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.regularizers.regularizer import Material, Regularizer, State, anchor_at
from e2wm_jax.sharding import partition


def weighted_change(scope: Scope, change: Adapters, fisher: Fisher) -> Float[Array, ""]:
    """sum over adapted matrices of F D^2, on the run's mesh or by its kernel; float32 scalar.

    Args:
        change: adapters of any rank whose s B A is the change D.
        fisher: `placed`.
    """
    if scope.mesh is not None:
        return sharded_ewc_penalty(scope.mesh, scope.config, change, scope.spec, fisher)
    return lora_ewc_penalty(change, scope.spec, fisher, implementation=scope.kernel)


def placed(scope: Scope, fisher: Fisher) -> Fisher:
    """F of the adapted matrices on the run's devices, as `weighted_change` reads it."""
    wanted = {f"{target.path}.weight": fisher[f"{target.path}.weight"] for target in scope.spec}
    if scope.mesh is not None:
        return place_fisher(scope.mesh, scope.config, wanted)
    return jax.tree.map(jnp.asarray, wanted)


def lora_ewc_penalty(
    adapters: Adapters, spec: AdapterSpec, fisher: Fisher, *, implementation: Implementation = "xla"
) -> Float[Array, ""]:
    """sum over adapted matrices of F * (s B A)^2; F holds "<target>.weight" for every target of `spec`, in any storage
    type: codes are read as they are."""
    function = partial(weighted_square, implementation=implementation)
    return _sum_over_targets(adapters, spec, fisher, lambda path: function)


def sharded_ewc_penalty(
    mesh: Mesh, config: ModelConfig, adapters: Adapters, spec: AdapterSpec, fisher: Fisher
) -> Float[Array, ""]:
    """`lora_ewc_penalty` with F spread over the devices as `fisher_partition` says.

    Every device reads its own part of F and no other; what travels is the value and the gradients, R (N + D) numbers a
    matrix.  Adapters may live anywhere.  Left to itself, the compiler would gather F or B A where rows are split over
    two axes of the mesh.
    """

    def on_mesh(path: str) -> _WeightedSquare:
        return partial(_on_mesh, mesh, fisher_partition(mesh, config, path, fisher[path]))

    return _sum_over_targets(adapters, spec, fisher, on_mesh)


def fisher_partition(mesh: Mesh, config: ModelConfig, path: str, fisher: StoredFisher) -> PartitionSpec:
    """Which axes of the mesh split F of the stacked matrices `path`, [L, N, D].

    As the matrices themselves are split (`sharding.partition`), and besides over the data axis, along which the
    matrices are copied but each device need only read its share of F.  Blocks of uint8 codes stay whole.
    """
    rows, columns = partition(mesh, fisher.shape[1:], weight_table(config)[path].axes)
    inputs = fisher.shape[2] if not isinstance(fisher, SquareRootCodes) else fisher.shape[2] / BLOCK
    if columns is not None and inputs % mesh.shape[columns]:
        columns = None
    more = tuple(axis for axis in ("data", rows) if axis is not None)
    size = math.prod(mesh.shape[axis] for axis in more)
    return PartitionSpec(None, rows if fisher.shape[1] % size else more, columns)


def place_fisher(mesh: Mesh, config: ModelConfig, fisher: Fisher) -> Fisher:
    """F on the mesh, as `sharded_ewc_penalty` reads it."""
    return {
        path: jax.device_put(value, NamedSharding(mesh, fisher_partition(mesh, config, path, value)))
        for path, value in fisher.items()
    }


def rowmax127(fisher: StoredFisher) -> jax.Array:
    """round(127 F / max of F over each row): the int8 codes that the official run multiplies by.

    It loads F in 8 bits and reads the codes without their scales, so its published strengths belong to this F.
    F [L, N, D], in any storage type -> [L, N, D] float32.
    """
    values = decode(fisher)
    row_maximum = jnp.max(values, axis=-1, keepdims=True)
    return jnp.round(127 * values / jnp.where(row_maximum > 0, row_maximum, 1))


_WeightedSquare = Callable[
    [jax.Array, jax.Array, StoredFisher, jax.Array], tuple[jax.Array, jax.Array, jax.Array]
]  # value, dA, dB


def _sum_over_targets(
    adapters: Adapters, spec: AdapterSpec, fisher: Fisher, function: Callable[[str], _WeightedSquare]
) -> jax.Array:
    total = jnp.float32(0)
    for target in spec:
        path = f"{target.path}.weight"
        factors = adapters[target.path]
        total += _value(function(path), factors["a"], factors["b"], fisher[path], jnp.asarray(target.scales))
    return total


def _on_mesh(
    mesh: Mesh, where: PartitionSpec, a: jax.Array, b: jax.Array, fisher: StoredFisher, scales: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`weighted_square` of the parts, each on its device, and their sums."""
    _, rows, columns = where
    of_a, of_b = PartitionSpec(None, None, columns), PartitionSpec(None, rows)

    def add(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
        named = (name for axis in axes if axis for name in ((axis,) if isinstance(axis, str) else axis))
        names = tuple(name for name in named if mesh.shape[name] > 1)
        return jax.lax.psum(x, names) if names else x

    def local(
        a: jax.Array, b: jax.Array, fisher: StoredFisher, scales: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        value, da, db = weighted_square(a, b, fisher, scales)
        return add(value, rows, columns), add(da, rows), add(db, columns)

    # Nothing is differentiated inside, and loops there start from zeros that are the same everywhere: no vma types.
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(of_a, of_b, where, PartitionSpec()),
        out_specs=(PartitionSpec(), of_a, of_b),
        check_vma=False,
    )(a, b, fisher, scales)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _value(function: _WeightedSquare, a: jax.Array, b: jax.Array, fisher: StoredFisher, scales: jax.Array) -> jax.Array:
    """The value; its gradients come with it, so the backward pass only scales them."""
    return function(a, b, fisher, scales)[0]


def _forward(
    function: _WeightedSquare, a: jax.Array, b: jax.Array, fisher: StoredFisher, scales: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    value, da, db = function(a, b, fisher, scales)
    return value, (da, db)


def _backward(
    function: _WeightedSquare, gradients: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    da, db = gradients
    return cotangent * da, cotangent * db, None, None


_value.defvjp(_forward, _backward)


def l2_penalty(change: Adapters, spec: AdapterSpec) -> Float[Array, ""]:
    """Squared Frobenius norm of all s B A, from R x R products only; float32 scalar."""
    total, exact = jnp.float32(0), jax.lax.Precision.HIGHEST
    for target in spec:
        a, b = change[target.path]["a"], change[target.path]["b"]
        rows = jnp.einsum("lrd,lqd->lrq", a, a, precision=exact)
        columns = jnp.einsum("lnr,lnq->lrq", b, b, precision=exact)
        total += jnp.einsum("l,lrq,lrq->", target.scales**2, rows, columns, precision=exact)
    return total


def l2_prepare(material: Material) -> State:
    """No anchor: the first task is held at the pretrained weights."""
    del material
    return {}


def l2_at(scope: Scope, adapters: Adapters, state: State) -> jax.Array:
    """sum D^2."""
    return l2_penalty(difference(adapters, state.get("anchor")), scope.spec)


def l2_next_task(material: Material, state: State, path: State) -> State:
    """The anchor moves to where the task has ended."""
    del state, path
    return {"anchor": anchor_at(material.adapters)}


L2 = Regularizer(
    formula="sum D^2",
    reference="L2-SP, Li et al. 2018",
    prepare=l2_prepare,
    penalty=l2_at,
    next_task=l2_next_task,
)
