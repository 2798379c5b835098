"""The diagonal Fisher of any loss over any pytree of parameters, exactly per example.

    F_i = sum_j w_j (d L_j / d theta_i)^2 / sum_j w_j,   w_j = 1 unless weights are given

The gradient of every example is squared before anything is summed (Kirkpatrick et al. 2017).  Where L_j is the negative
log-likelihood of the data's own label, that is the empirical Fisher; where the label is drawn from the model
(`sampled_nll`), an unbiased estimate of the true one (Kunstner et al. 2019).

    vmap   the gradients of a microbatch at once: M copies of the selected parameters
    scan   one example after another, without vmap: one copy

Letters: B examples of a batch, M of a microbatch.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from optax.microbatching import reshape_batch_axis

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.finite import NonFiniteError, check_finite

Loss = Callable[..., jax.Array]  # (params, example) -> scalar; where there is a key, (params, example, key)


class Losses(NamedTuple):
    """What became of each example of a batch."""

    nats: jax.Array  # [B] float32: L_j
    finite: jax.Array  # [B] bool: loss and squared gradient are numbers


def fisher_diagonal(
    loss: Loss,
    params: Any,
    examples: Any,
    *,
    method: Literal["vmap", "scan"] = "vmap",
    microbatch: int = 8,
    batch_size: int = 64,
    select: Callable[[str], bool] = lambda path: True,
    weight: Callable[[Any], Any] = lambda example: 1.0,
    key: jax.Array | None = None,
    sharding: NamedSharding | None = None,
    progress: Callable[[int], None] = lambda examples: None,
) -> Any:
    """Diagonal Fisher of the parameters of any differentiable function, over all examples.

    Args:
        loss: (params, example) -> scalar L_j, of ONE example, without a batch axis.
        params: any pytree: nested dicts, a flax or nnx state, an equinox module.
        examples: a pytree of arrays with one leading axis of examples, cut into batches of `batch_size`; or a list or
            iterator of batches, each such a pytree.
        method: `vmap` holds the gradients of `microbatch` examples at once, `scan` one.
        microbatch: M; on a mesh rounded up to a multiple of the devices that share a batch.
        select: which leaves to compute F for, by path such as "layers.0.kernel"; the others are held constant.
        weight: (example) -> w_j, at least 0; 0, or False, for an example that is padding.
        key: makes loss (params, example, key), with a key of each example by its place in the data.
        sharding: how a batch's leading axis is split over devices, `NamedSharding(mesh, PartitionSpec("data"))`.
            Parameters may be split over the same mesh in any way.
        progress: called with the number of examples done after each batch.

    Returns:
        F: `params` with float32 arrays (float64 where they are) of the same shapes and shardings, and None for leaves
        that are not selected, or are no arrays of real floating numbers.  The numbers do not depend on batches,
        microbatches, method and devices, up to rounding.  Unit: that of the loss squared, by the parameters' squared.

    Raises:
        InputError: if no leaf is selected, there are no examples, they have no common leading axis, a weight is
            negative, or squares that are numbers sum to more than float32 holds.
        NonFiniteError: naming the examples whose loss, gradient or squared gradient is no finite number.
    """
    if method not in ("vmap", "scan") or min(microbatch, batch_size) < 1:
        raise InputError(f"{method=}, {microbatch=}, {batch_size=}: method is vmap or scan, the numbers are 1 or more")
    tree = _Tree.of(params, select)
    totals = {at: _zeros(leaf, sharding) for at, leaf in tree.chosen.items()}
    step = _step(loss, weight, tree, method, totals, sharding)
    done, total_weight = 0, 0.0
    for batch in _padded(_batches(examples, batch_size), microbatch if method == "vmap" else 1, sharding):
        on_devices = _put((batch.examples, batch.numbers, batch.real), sharding)
        totals, *found = step(batch.together, totals, tree.chosen, tree.constant, key, *on_devices)
        weights, finite = map(np.asarray, found)
        _check(weights, finite, batch.numbers)
        total_weight += float(weights.sum(dtype=np.float64))
        done += int(np.sum(batch.real))
        progress(done)
    if total_weight == 0:
        raise InputError(f"examples: there are {done}, and their weights sum to 0; give some that count")
    check_finite({tree.names[at]: total for at, total in totals.items()})
    return tree.rebuilt({at: total / total_weight for at, total in totals.items()}, None)


def sampled_nll(logits: Callable[[Any, Any], jax.Array]) -> Loss:
    """The loss of labels that the model draws itself: with it `fisher_diagonal` estimates the true Fisher.

    Args:
        logits: (params, example) -> scores [..., V].

    Returns:
        (params, example, key) -> sum of -log p(label) over all but the last axis, label ~ softmax(scores).
    """

    def loss(params: Any, example: Any, key: jax.Array) -> jax.Array:
        scores = logits(params, example).astype(jnp.float32)
        labels = jax.random.categorical(key, jax.lax.stop_gradient(scores))
        return jnp.sum(optax.losses.softmax_cross_entropy_with_integer_labels(scores, labels))

    return loss


def add_squares(
    loss: Loss, totals: Any, params: Any, examples: Any, weights: Float[Array, " B"], *, microbatch: int | None
) -> tuple[Any, Losses]:
    """totals + sum_j w_j (d loss(params, example_j) / d params)^2, added in the types of `totals`.

    Args:
        examples: leaves [B, ...].
        weights: [B]; the gradient of an example of weight 0 may be anything.
        microbatch: M, a divisor of B: so many gradients at once; None: one after another, without vmap.
    """

    def one(example: Any, weight: jax.Array) -> tuple[Any, Losses]:
        value, gradient = jax.value_and_grad(loss)(params, example)

        def square(total: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.where(weight > 0, weight.astype(total.dtype) * jnp.square(g.astype(total.dtype)), 0)

        squares = jax.tree.map(square, totals, gradient)
        finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(squares)])
        return squares, Losses(value, (jnp.isfinite(value) & jnp.all(finite)) | (weight == 0))

    def add_one(totals: Any, item: tuple[Any, jax.Array]) -> tuple[Any, Losses]:
        squares, losses = one(*item)
        return jax.tree.map(jnp.add, totals, squares), losses

    def add_several(totals: Any, items: tuple[Any, jax.Array]) -> tuple[Any, Losses]:
        squares, losses = jax.vmap(one)(*items)
        return jax.tree.map(lambda total, square: total + jnp.sum(square, axis=0), totals, squares), losses

    items = (examples, weights)
    if microbatch is None:
        return jax.lax.scan(add_one, totals, items)
    if microbatch == weights.shape[0]:
        return add_several(totals, items)
    # Column by column: the axis of a microbatch is split over devices as that of the batch is.
    totals, losses = jax.lax.scan(add_several, totals, reshape_batch_axis(items, microbatch))
    return totals, jax.tree.map(lambda leaf: leaf.reshape(-1, order="F"), losses)


class _Tree(NamedTuple):
    """A parameter tree, taken apart; keys are places among its leaves."""

    structure: Any
    names: list[str]  # of the leaves
    leaves: list[Any]
    chosen: dict[int, jax.Array]  # differentiated
    constant: dict[int, jax.Array]  # the other arrays

    @classmethod
    def of(cls, params: Any, select: Callable[[str], bool]) -> "_Tree":
        found, structure = jax.tree.flatten_with_path(params)
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found]
        leaves = [leaf for _, leaf in found]
        arrays: dict[int, Any] = {
            at: leaf for at, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)
        }
        floating = [at for at, leaf in arrays.items() if jnp.issubdtype(leaf.dtype, jnp.floating)]
        chosen = {at: arrays[at] for at in floating if select(names[at])}
        if not chosen:
            known = ", ".join(names[at] for at in floating[:5]) or "none"
            raise InputError(f"params: no floating-point leaf of {len(names)} is selected; there are, e.g., {known}")
        return cls(structure, names, leaves, chosen, {at: leaf for at, leaf in arrays.items() if at not in chosen})

    def rebuilt(self, values: dict[int, Any], *default: Any) -> Any:
        """The tree with these leaves, and the default, if there is one, or its own for the others."""
        own = [default[0]] * len(self.leaves) if default else self.leaves
        return self.structure.unflatten([values.get(at, leaf) for at, leaf in enumerate(own)])


class _Batch(NamedTuple):
    """Examples of one call, as many as a multiple of M."""

    examples: Any
    numbers: np.ndarray  # [B] int32: places in the data
    real: np.ndarray  # [B] bool: no padding
    together: int  # M


def _batches(examples: Any, batch_size: int) -> Iterable[Any]:
    """A list or iterator of batches as it is, a pytree of arrays in slices."""
    if isinstance(examples, list | Iterator) or not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(examples)):
        return examples
    count = _count(examples)
    slices = (slice(start, start + batch_size) for start in range(0, count, batch_size))
    return (jax.tree.map(lambda leaf, part=part: leaf[part], examples) for part in slices)


def _count(batch: Any) -> int:
    """Length of the axis of examples."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
    counts = {shape[0] if shape else None for shape in shapes}
    if len(counts) != 1 or counts & {None, 0}:
        raise InputError(
            f"examples: arrays of shapes {', '.join(map(str, shapes)) or 'none'}; all need one leading axis of "
            "examples, of one or more"
        )
    return counts.pop() or 0


def _padded(batches: Iterable[Any], microbatch: int, sharding: NamedSharding | None) -> Iterator[_Batch]:
    """Batches of few sizes, so that little is compiled; what is added repeats the last example."""
    parts = 1 if sharding is None else math.prod(sharding.mesh.shape[axis] for axis in _row_axes(sharding))
    size = done = 0
    for examples in batches:
        count = _count(examples)
        # What is no array of jax, such as a tensor of torch, becomes one of numpy.
        examples = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), examples)
        size = max(count, size)
        together = _round_up(min(microbatch, size), parts)
        size = _round_up(size, together)
        at = np.minimum(np.arange(size), count - 1)
        padded = examples if count == size else jax.tree.map(lambda leaf, at=at: leaf[at], examples)
        yield _Batch(padded, np.arange(done, done + size, dtype=np.int32), np.arange(size) < count, together)
        done += count


def _row_axes(sharding: NamedSharding) -> tuple[str, ...]:
    """The axes of the mesh that split the leading axis."""
    first = sharding.spec[0] if len(sharding.spec) else None
    return () if first is None else (first,) if isinstance(first, str) else tuple(first)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _step(
    loss: Loss,
    weight: Callable[[Any], Any],
    tree: _Tree,
    method: str,
    totals: dict[int, jax.Array],
    sharding: NamedSharding | None,
) -> Callable[..., Any]:
    """(M, totals, chosen, constant, key, examples, numbers, real) -> (totals, weights [B], finite [B]), compiled."""

    def step(
        together: int, totals: Any, chosen: Any, constant: Any, key: Any, examples: Any, numbers: Any, real: Any
    ) -> tuple[Any, jax.Array, jax.Array]:
        weights = jax.vmap(lambda example: jnp.asarray(weight(example), jnp.float32))(examples)
        if weights.shape != real.shape:
            raise InputError(f"weight: gives an array of shape {weights.shape[1:]} for an example; give one number")

        def of_one(chosen: dict[int, jax.Array], item: tuple[Any, jax.Array]) -> jax.Array:
            example, number = item
            own = () if key is None else (jax.random.fold_in(key, number),)
            return loss(tree.rebuilt({**constant, **chosen}), example, *own)

        weights = jnp.where(real, weights, 0)
        several = together if method == "vmap" else None
        totals, losses = add_squares(of_one, totals, chosen, (examples, numbers), weights, microbatch=several)
        return totals, weights, losses.finite

    if sharding is None:
        return jax.jit(step, static_argnums=0, donate_argnums=1)
    copied = NamedSharding(sharding.mesh, PartitionSpec())
    homes = (jax.tree.map(lambda total: total.sharding, totals), copied, copied)
    return jax.jit(step, static_argnums=0, donate_argnums=1, out_shardings=homes)


def _zeros(leaf: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """A total where its parameter is: on the mesh of the examples, split as it is or copied."""
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    if sharding is None:
        return jnp.zeros_like(leaf, dtype)
    own = getattr(leaf, "sharding", None)
    return jnp.zeros(leaf.shape, dtype, device=own if isinstance(own, NamedSharding) else sharding.update(spec=()))


def _put(tree: Any, sharding: NamedSharding | None) -> Any:
    return tree if sharding is None else jax.device_put(tree, sharding)


def _check(weights: np.ndarray, finite: np.ndarray, numbers: np.ndarray) -> None:
    right = (weights >= 0) & (weights < np.inf)  # a NaN fails too
    if not right.all():
        wrong = int(np.argmin(right))
        raise InputError(f"weight of example {numbers[wrong]} is {weights[wrong]}; weights are finite, 0 or more")
    if not finite.all():
        raise NonFiniteError(numbers[~finite].tolist())
