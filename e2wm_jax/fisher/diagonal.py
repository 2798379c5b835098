"""The diagonal Fisher information of a language model, exactly per document.

    F_i = 1/N sum_j (d L_j / d theta_i)^2,   L_j = mean (or sum) over the predicted tokens of document j of -log p

(Kirkpatrick et al. 2017; Xiang et al. 2023, equation of section 3.3).  One document is one example: gradients are
squared before they are summed over a batch, never after.  With labels "data" this is the empirical Fisher; with
"sampled" the labels are drawn from the model, an unbiased estimate of the true Fisher (Kunstner et al. 2019).

Three methods give the same numbers: `fused` (module of that name), and `vmap` and `scan` (`textbook`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from e2wm_jax.config import ModelConfig
from e2wm_jax.fisher import fused, sharded, textbook
from e2wm_jax.fisher.documents import DocumentBatch
from e2wm_jax.fisher.finite import NonFiniteError, check_finite
from e2wm_jax.fisher.fused import FusedOptions
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.layers import Params
from e2wm_jax.options.choices import Labels, Reduction

Flat = dict[str, jax.Array]  # path in the parameter tree -> array
Method = Literal["fused", "vmap", "scan"]


@dataclass(frozen=True)
class Estimator:
    """What is estimated, as opposed to how it is computed."""

    labels: Labels = "data"
    """The tokens of the text, or tokens drawn from the model's own distribution."""
    reduction: Reduction = "mean"
    """Whether a document's loss is the mean or the sum over its predicted tokens."""
    seed: int = 0
    """For sampled labels."""


@dataclass(frozen=True)
class Computation:
    """How it is computed; the numbers are the same up to rounding."""

    method: Method = "fused"
    group: int = 1
    """Documents whose products are squared at once: 1 suits a CPU, several an accelerator (`kernels.square_sum`)."""
    kernel: str = "xla"
    keep: float = 0.1
    """Memory for products of the forward pass that the backward pass would make again, as a share of the weights'."""
    mesh: Mesh | None = None
    """Rows of batches are split over "data" and "fsdp", weights as `sharding.partition` says."""


@dataclass(frozen=True)
class FisherResult:
    """F by parameter path with what is needed to judge it."""

    values: Flat  # float32, in the shape of the parameters
    samples: int
    tokens: int  # predicted tokens
    peak_bytes: int  # arguments, results and temporaries of the largest compiled step, on one device
    compilations: int = 0
    nats: float = 0.0  # mean over documents of L_j


class Progress(NamedTuple):
    """A pass so far."""

    totals: Flat  # sums of squares; with a mesh, of each device's documents (`sharded`)
    batches: int
    samples: int
    tokens: int
    nats: float  # sum over documents of L_j
    peak_bytes: int = 0
    compilations: int = 0


def document_fisher(
    config: ModelConfig,
    params: Params,
    batches: Iterable[DocumentBatch],
    *,
    select: Callable[[str], bool] = lambda path: True,
    estimator: Estimator = Estimator(),
    computation: Computation = Computation(),
    progress: Callable[[int], None] = lambda documents: None,
) -> FisherResult:
    """Diagonal Fisher of the selected parameters over all documents.

    Args:
        batches: `documents.document_batches`.
        select: which parameter paths ("layers.q.weight") to compute F for; the others are held constant.
        progress: called with the number of documents done after each batch.

    Returns:
        F in float32, independent of batch size, layout, padding, devices and method up to rounding.

    Raises:
        NonFiniteError: for documents whose loss or gradient is no finite number, and those packed in a row with them.
        InputError: for a parameter whose squares are beyond float32.
    """
    done = start(config, params, select, computation.mesh)
    for now in accumulate(config, params, batches, done, estimator, computation):
        progress(now.samples - done.samples)
        done = now
    return result(config, done, computation.mesh)


def start(config: ModelConfig, params: Params, select: Callable[[str], bool], mesh: Mesh | None = None) -> Progress:
    """Nothing done yet."""
    table = weight_table(config)
    shapes = {
        path: (config.num_layers, *spec.shape) if spec.stacked else spec.shape
        for path, spec in table.items()
        if select(path)
    }
    if mesh is None:
        totals = {path: jnp.zeros(shape, jnp.float32) for path, shape in shapes.items()}
    else:
        totals = sharded.zeros(config, params, shapes, mesh)
    return Progress(totals, 0, 0, 0, 0.0)


def accumulate(
    config: ModelConfig,
    params: Params,
    batches: Iterable[DocumentBatch],
    now: Progress,
    estimator: Estimator = Estimator(),
    computation: Computation = Computation(),
) -> Iterator[Progress]:
    """The pass after each further batch; the totals of one are given away to the next, so copy what shall stay.

    Raises:
        NonFiniteError: see `document_fisher`; totals then are not finite.
    """
    step = _step(config, params, _options(params, estimator, computation), computation)
    compiled: dict[Any, jax.stages.Compiled] = {}
    for batch in batches:
        arguments = (now.totals, params, batch if computation.mesh is None else sharded.put(batch, computation.mesh))
        shapes = (jax.tree.structure(batch), tuple(leaf.shape for leaf in jax.tree.leaves(batch)))
        peak = now.peak_bytes
        if shapes not in compiled:
            compiled[shapes] = step.lower(*arguments).compile()
            peak = max(peak, peak_bytes(compiled[shapes]))
        totals, losses = compiled[shapes](*arguments)
        nats, finite = (sharded.on_host(array) for array in losses)
        numbers = sharded.on_host(arguments[2].numbers)
        if bad := sorted(numbers[~finite & (numbers >= 0)].tolist()):
            raise NonFiniteError(bad)
        now = Progress(
            totals,
            now.batches + 1,
            now.samples + int((numbers >= 0).sum()),
            now.tokens + int(sharded.on_host(jnp.sum(arguments[2].predicted))),
            now.nats + float(nats.sum(dtype=np.float64)),
            peak,
            len(compiled),
        )
        yield now


def not_finite(
    config: ModelConfig,
    params: Params,
    batches: Iterable[DocumentBatch],
    estimator: Estimator = Estimator(),
    computation: Computation = Computation(),
) -> list[int]:
    """Numbers of the documents whose loss or gradient is no finite number; nothing is squared on the way."""
    step = _step(config, params, _options(params, estimator, computation), replace(computation, method="fused"))
    found: list[int] = []
    for batch in batches:
        placed = batch if computation.mesh is None else sharded.put(batch, computation.mesh)
        finite, numbers = (sharded.on_host(array) for array in (step({}, params, placed)[1].finite, placed.numbers))
        found += numbers[~finite & (numbers >= 0)].tolist()
    return sorted(found)


def result(config: ModelConfig, now: Progress, mesh: Mesh | None = None) -> FisherResult:
    """F of a finished pass.

    Raises:
        InputError: for a parameter whose squares are beyond float32.
    """
    totals = now.totals if mesh is None else sharded.summed(config, now.totals, mesh)
    check_finite(totals)
    samples = max(now.samples, 1)
    values = {path: total / samples for path, total in totals.items()}
    return FisherResult(values, now.samples, now.tokens, now.peak_bytes, now.compilations, now.nats / samples)


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes a compiled function holds at once by XLA's own account; 0 where the backend does not say."""
    memory = compiled.memory_analysis()
    if memory is None:
        return 0
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return int(total - memory.alias_size_in_bytes)


def _options(params: Params, estimator: Estimator, computation: Computation) -> FusedOptions:
    seed = estimator.seed if estimator.labels == "sampled" else None
    keep = int(computation.keep * sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    return FusedOptions(estimator.reduction, seed, computation.group, computation.kernel, keep)


def _step(config: ModelConfig, params: Params, options: FusedOptions, computation: Computation) -> Any:
    """(totals, params, batch) -> (totals, losses), compiled by the caller."""
    if computation.method != "fused":
        return jax.jit(partial(textbook.add_squares, config, options, computation.method), donate_argnums=0)
    if computation.mesh is not None:
        return sharded.add_squares(config, options, params, computation.mesh)
    return jax.jit(partial(fused.add_squares, config, options), donate_argnums=0)
