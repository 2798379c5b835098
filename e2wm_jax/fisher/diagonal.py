"""The diagonal Fisher information of a language model, exactly per example.

    F_i = 1/N sum_j (d L_j / d theta_i)^2,   L_j = mean (or sum) over the predicted tokens of sequence j of -log p

(Kirkpatrick et al. 2017; Xiang et al. 2023, equation of section 3.3).  One sequence is one example: gradients are
squared before they are summed over a batch, never after.  With labels "data" this is the empirical Fisher; with
"sampled" the labels are drawn from the model, an unbiased estimate of the true Fisher (Kunstner et al. 2019).

Letters: B examples of a batch, M predicted tokens, V vocabulary.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Batch
from e2wm_jax.models.layers import Params, negative_log_likelihood
from e2wm_jax.models.likelihood import target_labels, target_logits
from e2wm_jax.models.weights import flatten, unflatten

Flat = dict[str, jax.Array]  # path in the parameter tree -> array
Method = Literal["vmap", "scan"]
Labels = Literal["data", "sampled"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Estimator:
    """What is estimated, as opposed to how it is computed."""

    labels: Labels = "data"
    """The tokens of the text, or tokens drawn from the model's own distribution."""
    reduction: Reduction = "mean"
    """Whether an example's loss is the mean or the sum over its predicted tokens."""
    seed: int = 0
    """For sampled labels."""


@dataclass(frozen=True)
class FisherResult:
    """F by parameter path with what is needed to judge it."""

    values: Flat  # float32, in the shape of the parameters
    samples: int
    tokens: int  # predicted tokens
    peak_bytes: int  # arguments, results and temporaries of the largest compiled step
    compilations: int = field(default=0)


def example_loss(
    config: ModelConfig, params: Params, example: Batch, index: jax.Array, estimator: Estimator
) -> jax.Array:
    """L_j in nats of one example: a `Batch` without the leading axis B.  An example without targets has loss 0."""
    row = jax.tree.map(lambda x: x[None], example)
    scores = target_logits(config, params, row)
    if estimator.labels == "sampled":
        key = jax.random.fold_in(jax.random.key(estimator.seed), index)  # by example: the batch size plays no role
        labels = jax.random.categorical(key, jax.lax.stop_gradient(scores.astype(jnp.float32)))
    else:
        labels = target_labels(row)
    counted = (row.weights > 0).astype(jnp.float32)
    total = jnp.sum(counted * negative_log_likelihood(scores, labels))
    return total / jnp.maximum(jnp.sum(counted), 1) if estimator.reduction == "mean" else total


def fisher_diagonal(
    config: ModelConfig,
    params: Params,
    batches: Iterable[tuple[Batch, int]],
    *,
    select: Callable[[str], bool] = lambda path: True,
    method: Method = "vmap",
    estimator: Estimator = Estimator(),
    progress: Callable[[int], None] = lambda examples: None,
) -> FisherResult:
    """Diagonal Fisher of the selected parameters over all examples.

    Args:
        batches: (batch, number of real examples in it); rows beyond that number must be all padding.
        select: which parameter paths ("layers.q.weight") to compute F for; the others are held constant.
        method: "vmap" keeps one gradient per example of a batch in memory, "scan" one in all.
        progress: called with the number of examples done after each batch.

    Returns:
        F in float32, independent of batch size, padding and method up to rounding.
    """
    flat = flatten(params)
    chosen = {path: value for path, value in flat.items() if select(path)}
    constant = {path: value for path, value in flat.items() if path not in chosen}
    total = {path: jnp.zeros(value.shape, jnp.float32) for path, value in chosen.items()}
    compiled: dict[tuple[tuple[int, ...], ...], jax.stages.Compiled] = {}
    samples = tokens = peak = 0
    for batch, examples in batches:
        arguments = (total, chosen, constant, batch, jnp.int32(samples))
        shapes = tuple(x.shape for x in batch)
        if shapes not in compiled:
            compiled[shapes] = _accumulate.lower(config, method, estimator, *arguments).compile()
            peak = max(peak, peak_bytes(compiled[shapes]))
        total = compiled[shapes](*arguments)
        samples += examples
        tokens += int((batch.weights > 0).sum())
        jax.block_until_ready(total)
        progress(examples)
    values = {path: value / max(samples, 1) for path, value in total.items()}
    return FisherResult(values, samples, tokens, peak, len(compiled))


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes a compiled function holds at once by XLA's own account; 0 where the backend does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return int(total - memory.alias_size_in_bytes)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _accumulate(
    config: ModelConfig,
    method: Method,
    estimator: Estimator,
    total: Flat,
    chosen: Flat,
    constant: Flat,
    batch: Batch,
    first_index: jax.Array,
) -> Flat:
    """total + sum over the batch's examples of the squared gradient of each."""

    def loss(chosen: Flat, example: Batch, index: jax.Array) -> jax.Array:
        return example_loss(config, unflatten({**constant, **chosen}), example, index, estimator)

    gradient = jax.grad(loss)
    indices = first_index + jnp.arange(batch.ids.shape[0], dtype=jnp.int32)

    def add_square(total: jax.Array, g: jax.Array) -> jax.Array:
        return total + jnp.sum(jnp.square(g.astype(jnp.float32)), axis=0)

    if method == "vmap":
        return jax.tree.map(add_square, total, jax.vmap(gradient, in_axes=(None, 0, 0))(chosen, batch, indices))

    def body(total: Flat, example: tuple[Batch, jax.Array]) -> tuple[Flat, None]:
        return jax.tree.map(lambda t, g: add_square(t, g[None]), total, gradient(chosen, *example)), None

    return jax.lax.scan(body, total, (batch, indices))[0]
