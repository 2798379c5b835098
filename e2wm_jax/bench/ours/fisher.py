"""Our side of `e2wm bench fisher`: ordinary gradients and Fisher passes of one model, each compiled once."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax import lora
from e2wm_jax.bench.harness import PRODUCT, product_rate, seconds_of
from e2wm_jax.bench.jobs.fisher import SHAPES, FisherJob, compare, documents, full_documents, reference_folder
from e2wm_jax.bench.ours.gradient import WAYS, batch_gradient
from e2wm_jax.bench.ours.own_method import check_result, load_own
from e2wm_jax.bench.process import Answer
from e2wm_jax.config import LoraConfig, ModelConfig
from e2wm_jax.fisher.arrange import attention_length
from e2wm_jax.fisher.command.plan import selected_parameters
from e2wm_jax.fisher.command.settings import params_pattern
from e2wm_jax.fisher.diagonal import Computation, Method, accumulate, peak_bytes, result, start
from e2wm_jax.fisher.documents import DocumentBatch, collate_documents, document_batches
from e2wm_jax.models import decoder
from e2wm_jax.models.decoder import Remat
from e2wm_jax.models.layers import Params, negative_log_likelihood
from e2wm_jax.models.saving import write_model
from e2wm_jax.models.weights import flatten, hf_names, load, unflatten
from e2wm_jax.storage.tensor_files import write_shards

Pass = Callable[[], Any]
Flat = Mapping[str, jax.Array]  # arrays by path, those of layers stacked
_TRIALS = 2  # of each way to an ordinary gradient


@dataclasses.dataclass
class _Made:
    """A method that is compiled and has run once."""

    run: Pass  # one pass over the documents; returns when it is done
    facts: dict[str, Any]
    fisher: Callable[[], Mapping[str, jax.Array]] | None = None  # F by path


def operations(job: FisherJob) -> dict[str, Callable[..., Answer]]:
    """What the process can be asked for (`process.Peer`)."""
    config, params = load_model(job)
    chosen = selected(config, job.params)
    of_adapters = {f"{target.path}.weight" for target in lora.adapter_spec(config, LoraConfig())}
    made: dict[str, _Made] = {}

    def describe() -> Answer:
        square = jnp.ones((PRODUCT, PRODUCT))
        multiply = jax.jit(jnp.matmul)
        return {
            "parameters": sum(x.size for x in jax.tree.leaves(params)),
            "selected": sum(x.size for x in start(config, params, chosen.__contains__).totals.values()),
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "gflops": product_rate(lambda: multiply(square, square).block_until_ready(), job.clock),
        }

    def save(weights: bool) -> Answer:
        """F of ours to compare with, by the loop over single documents, the plainest way; and the model for peers."""
        if weights:
            write_model(Path(job.folder), config, params)
        fisher = _fisher(job, config, params, chosen | of_adapters, "scan", _rows(job, config, job.batch_size))
        _write_reference(config, fisher.fisher(), reference_folder(job))  # type: ignore[misc]
        return {}

    def prepare(method: str, own: bool = False) -> Answer:
        if not own:
            made[method] = _make(job, config, params, method, chosen, of_adapters)
            return made[method].facts
        try:
            made[method] = _own(job, config, params, method, chosen)
        except Exception as error:  # a method that cannot: the table says so, and the others go on
            return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"}
        return made[method].facts

    def measure(method: str) -> Answer:
        return {"seconds": seconds_of(made[method].run, job.clock)}

    def check(method: str) -> Answer:
        if made[method].fisher is None:
            return {}
        values = made[method].fisher()  # type: ignore[misc]
        names = {name for path in values for name in hf_names(decoder.weight_table(config)[path], config)}
        return compare(job, hf_tensors(config, values), names)

    return {"describe": describe, "save": save, "prepare": prepare, "measure": measure, "check": check}


def load_model(job: FisherJob) -> tuple[ModelConfig, Params]:
    """A model's files, or random weights of a shape."""
    if job.shape is None:
        model = load(job.model, job.base_dtype)
        return model.config, model.params
    return SHAPES[job.shape], decoder.initialize(SHAPES[job.shape], jax.random.key(job.seed), job.base_dtype)


def selected(config: ModelConfig, params: str) -> set[str]:
    """Paths of the parameters that ``--params`` names.

    Raises:
        InputError: if there are none.
    """
    return selected_parameters(config, params, params_pattern(params))[0]


def _make(
    job: FisherJob, config: ModelConfig, params: Params, method: str, chosen: set[str], of_adapters: set[str]
) -> _Made:
    if method == "textbook":
        return _gradient(config, params, _rows(job, config, job.batch_size), **WAYS["stored"])
    if method == "plain":
        return _fastest(job, config, params, _rows(job, config, job.batch_size))
    if method.startswith("corpus: "):
        return _fisher(job, config, params, chosen, "fused", corpus(job, config, method.removeprefix("corpus: ")))
    size = job.step_size if job.step_size and method.startswith("fused") else job.batch_size
    paths = of_adapters if method == "fused-qv" else chosen
    return _fisher(job, config, params, paths, method.removesuffix("-qv"), _rows(job, config, size))


def _rows(job: FisherJob, config: ModelConfig, batch_size: int) -> list[DocumentBatch]:
    return list(document_batches(documents(job, config.vocab_size), batch_size, max(job.lengths)))


def corpus(job: FisherJob, config: ModelConfig, layout: str) -> list[DocumentBatch]:
    """Documents of unequal lengths in one of four layouts.

    "full" is the comparison, documents all of the greatest length; "padded" pads every row to that; "rows" sorts by
    length and pads to the longest of a batch, about; "packed" puts several into rows of at most `FisherJob.row` tokens.
    """
    longest = max(job.lengths)
    rows, batch_size = documents(job, config.vocab_size), job.step_size or job.batch_size
    if layout == "padded":
        size = {"length": longest, "rows": batch_size, "documents": batch_size, "window": longest, "per_row": 1}
        numbered = [[(number, row)] for number, row in enumerate(rows)]
        starts = range(0, len(rows), batch_size)
        return [collate_documents(numbered[start : start + batch_size], **size) for start in starts]
    if layout == "full":
        rows = documents(full_documents(job), config.vocab_size)
    if layout != "packed":
        return list(document_batches(rows, batch_size, longest))
    room = job.row or job.length
    of_a_step = max(1, round(batch_size * longest / room))  # as many tokens as in the other layouts
    attention = attention_length(config)
    return list(document_batches(rows, of_a_step, room, layout="packed", attention=attention))


def _gradient(
    config: ModelConfig, params: Params, batches: Sequence[DocumentBatch], *, remat: Remat, chunked: bool
) -> _Made:
    step = jax.jit(partial(batch_gradient, config, remat=remat, chunked=chunked))
    batches = jax.device_put(batches)
    compiled = {batch.ids.shape: step.lower(params, batch).compile() for batch in batches}

    def run() -> None:
        for batch in batches:
            jax.block_until_ready(compiled[batch.ids.shape](params, batch))

    run()
    peak = max(map(peak_bytes, compiled.values()))
    given = sum(x.nbytes for x in jax.tree.leaves(params))
    return _Made(run, {"peak_bytes": peak, "extra_bytes": peak - 2 * given})


def _fastest(job: FisherJob, config: ModelConfig, params: Params, batches: Sequence[DocumentBatch]) -> _Made:
    """The fastest way to an ordinary gradient."""
    found: dict[str, tuple[float, _Made]] = {}
    for name, way in WAYS.items():
        made = _gradient(config, params, batches, **way)
        found[name] = (min(seconds_of(made.run, job.clock) for _ in range(_TRIALS)), made)
    best = min(found, key=lambda name: found[name][0])
    made = found[best][1]
    return dataclasses.replace(made, facts={**made.facts, "way": best})


def _fisher(
    job: FisherJob, config: ModelConfig, params: Params, paths: set[str], method: str, batches: Sequence[DocumentBatch]
) -> _Made:
    """Passes over the same documents without end; F, a mean, stays the same."""
    computation = Computation(method=cast(Method, method), group=job.group, kernel=job.kernel, keep=job.keep)
    now = start(config, params, paths.__contains__)
    counted = sum(x.nbytes for x in jax.tree.leaves((params, now.totals)))
    steps = accumulate(config, params, itertools.cycle(batches), now, computation=computation)

    def run() -> None:
        nonlocal now
        for _ in batches:
            now = next(steps)
        jax.block_until_ready(now.totals)

    run()
    facts = {
        "peak_bytes": now.peak_bytes,
        "extra_bytes": now.peak_bytes - counted,
        "documents": now.samples,
        "tokens": int(sum(batch.lengths.sum() for batch in batches)),
        "places": sum(batch.ids.size for batch in batches),
    }
    return _Made(run, facts, lambda: result(config, now).values)


def _own(job: FisherJob, config: ModelConfig, params: Params, method: str, chosen: set[str]) -> _Made:
    """A function of the user's, see `own_method`."""
    function, flat = load_own(method), flatten(params)
    mine = {path: value for path, value in flat.items() if path in chosen}
    rest = {path: value for path, value in flat.items() if path not in chosen}
    ids = jnp.asarray(np.stack([row.ids for row in documents(job, config.vocab_size)]))

    def once(mine: Flat, rest: Flat, ids: jax.Array) -> Any:
        return function(config, mine, ids, document_loss(config, rest))

    compiled = jax.jit(once).lower(mine, rest, ids).compile()
    found: list[Any] = []

    def run() -> None:
        found.clear()  # else there would be two at a time
        found.append(jax.block_until_ready(compiled(mine, rest, ids)))

    run()
    check_result(found[0], mine)
    peak = peak_bytes(compiled)
    counted = sum(x.nbytes for x in jax.tree.leaves((flat, found[0])))
    return _Made(run, {"peak_bytes": peak, "extra_bytes": peak - counted}, lambda: found[0])


def document_loss(config: ModelConfig, constant: Flat) -> Callable[[Flat, jax.Array], jax.Array]:
    """loss(params, ids [T]): mean negative log-likelihood of one document; what params lack is `constant`."""

    def loss(chosen: Flat, ids: jax.Array) -> jax.Array:
        params, row = unflatten({**constant, **chosen}), ids[None]
        order = jnp.arange(row.shape[1])[None]
        hidden = decoder.hidden_states(config, params, row, order, jnp.zeros_like(row))
        return jnp.mean(negative_log_likelihood(decoder.logits(config, params, hidden[:, :-1]), row[:, 1:]))

    return loss


def hf_tensors(config: ModelConfig, values: Flat) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays by path, layers in stacks, one by one under their Hugging Face names."""
    table = decoder.weight_table(config)
    for path, value in values.items():
        for layer, name in enumerate(hf_names(table[path], config)):
            yield name, np.asarray(value[layer] if table[path].stacked else value)


def _write_reference(config: ModelConfig, values: Flat, folder: Path) -> None:
    folder.mkdir()
    tensors = dict(hf_tensors(config, values))
    write_shards(folder, {name: value.nbytes for name, value in tensors.items()}, tensors.__getitem__)


SIDES = {"ours": lambda case: operations(FisherJob(**case))}
