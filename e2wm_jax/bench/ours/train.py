"""Our side of `e2wm bench train`: the step with every regularizer, each compiled once per shape of its batches."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from e2wm_jax import lora
from e2wm_jax.bench.harness import PRODUCT, product_rate, seconds_of
from e2wm_jax.bench.jobs.train import (
    SHAPES,
    TrainJob,
    adapter_folder,
    fisher_of,
    loader_of,
    read_rows,
)
from e2wm_jax.bench.ours.step import PreparedStep, prepared
from e2wm_jax.bench.process import Answer
from e2wm_jax.config import LoraConfig, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.lora import Scope
from e2wm_jax.models import decoder
from e2wm_jax.models.families.weight_table import initialize
from e2wm_jax.models.layers import Params
from e2wm_jax.models.quantized import compute_dtype, load, quantizer
from e2wm_jax.models.saving import parameter_sizes, write_model
from e2wm_jax.models.weights import unflatten
from e2wm_jax.regularizers.catalogue import regularizer
from e2wm_jax.regularizers.regularizer import PenaltyOptions
from e2wm_jax.running.allocator import keep_freed_memory
from e2wm_jax.storage.adapter_files import read_adapter, write_adapter
from e2wm_jax.train.feed import on_devices
from e2wm_jax.train.watch.throughput import mean_work, peak_flops

_TEXT_ROWS, _TEXT_LENGTH = 2, 64  # of what a regularizer reads before the first step; its cost is not measured here
_LARGEST_ON_CPU = 5e8  # parameters of random weights


def operations(job: TrainJob) -> dict[str, Callable[..., Answer]]:
    """What the process can be asked for (`process.Peer`)."""
    keep_freed_memory()  # as `e2wm train` does
    side = _Side(job)
    return {
        "describe": side.describe,
        "save": side.save,
        "prepare": side.prepare,
        "measure": side.measure,
        "losses": side.losses,
        "waiting": side.waiting,
        "drop": side.drop,
    }


class _Side:
    """The model, its batches, and the steps that have been made, by place in the job's targets and by regularizer."""

    def __init__(self, job: TrainJob) -> None:
        self.job, (self.config, self.params) = job, load_model(job)
        all_rows, orders = read_rows(job)
        self.rows = [all_rows[number] for order in orders for number in order]
        self.loader = loader_of(job, all_rows)
        self.batches = [jax.device_put(self.loader.step(step + 1).batch) for step in range(len(orders))]
        self.made: dict[tuple[int, str], PreparedStep] = {}

    def describe(self) -> Answer:
        """The machine, and how much there is to do."""
        kind = jax.devices()[0].device_kind
        square = jnp.ones((PRODUCT, PRODUCT), compute_dtype(self.job.base_dtype))
        multiply = jax.jit(jnp.matmul)
        return {
            "parameters": sum(parameter_sizes(self.config).values()),
            "device": kind,
            "jax": jax.__version__,
            "gflops": product_rate(lambda: multiply(square, square).block_until_ready(), self.job.clock),
            "peak": peak_flops(kind),
            "tokens": sum(len(row.ids) for row in self.rows),
            "predicted": sum(row.num_targets for row in self.rows),
            "places": sum(batch.ids.size for batch in self.batches),
        }

    def save(self, weights: bool) -> Answer:
        """The model for the peer, and the adapters that all start from; neither factor is zero."""
        job = self.job
        if weights:
            write_model(Path(job.folder, "model"), self.config, self.params)
        for index, targets in enumerate(job.targets):
            spec = lora.adapter_spec(self.config, LoraConfig(rank=job.rank, targets=targets))
            key = jax.random.key(job.seed)
            adapters = lora.initialize(self.config, spec, key)
            for number, factors in enumerate(adapters.values()):
                noise = jax.random.normal(jax.random.fold_in(key, number), factors["b"].shape)
                factors["b"] = 0.01 * noise
            options: dict[str, Any] = {"base_model": "model", "dropout": job.dropout}
            write_adapter(adapter_folder(job, index), adapters, spec, self.config, **options)
        return {}

    def _make(self, index: int, name: str, dropout: float) -> PreparedStep:
        adapters, spec = read_adapter(adapter_folder(self.job, index), self.config)
        fisher = _fisher(self.job, self.config, spec) if regularizer(name).reads == "fisher" else None
        text = [replace(row, ids=row.ids[:_TEXT_LENGTH], first_target=1) for row in self.rows[:_TEXT_ROWS]]
        options = PenaltyOptions(batch_size=_TEXT_ROWS, max_length=_TEXT_LENGTH)
        scope = Scope(self.config, spec, remat=self.job.remat)
        reads: dict[str, Any] = {"fisher": fisher, "text": text, "options": options}
        return prepared(scope, name, self.params, adapters, dropout=dropout, **reads)

    def prepare(self, index: int, name: str, batches: int | None = None) -> Answer:
        """The step, after it has run once on each batch, or on so many."""
        started = time.perf_counter()
        if (index, name) not in self.made:
            self.made[index, name] = self._make(index, name, self.job.dropout)
        it = self.made[index, name]
        for batch in self.batches[:batches]:
            it(batch)
        lengths = [(len(row.ids), row.num_targets) for row in self.rows]
        return {
            "first_seconds": time.perf_counter() - started,
            "peak_bytes": it.peak_bytes,
            "held_bytes": _bytes((self.params, it.constants, it.state)),
            "state_bytes": _bytes((it.constants, it.state.path)),
            "flops_per_token": mean_work(self.config, it.config.scope.spec, lengths).total,
        }

    def measure(self, index: int, name: str, batches: int | None = None) -> Answer:
        """Seconds of a prepared step over its batches."""
        it = self.made[index, name]
        return {"seconds": seconds_of(lambda: [it(batch) for batch in self.batches[:batches]], self.job.clock)}

    def losses(self, index: int) -> Answer:
        """Of the EWC step without dropout, from where the adapters start."""
        it = self._make(index, "ewc", 0.0)
        return {"losses": [float(it(batch)["loss"]) for batch in self.batches]}

    def waiting(self, index: int, name: str, steps: int) -> Answer:
        """Time until batches are there, from the loader that training has.  Nothing compiles meanwhile, and the first
        step, which waits for the loader to start, is left out."""
        it, waited, total = self.made[index, name], 0.0, 0.0
        for step in range(1, steps + 2):
            it.compiled(self.loader.step(step).batch)
        fed = on_devices(self.loader.batches(1, steps + 1))
        for step in range(steps + 1):
            started = time.perf_counter()
            item = next(fed)
            got = time.perf_counter()
            it(item.batch)
            if step:
                waited, total = waited + got - started, total + time.perf_counter() - started
        return {"waited": waited, "total": total}

    def drop(self, index: int, name: str) -> Answer:
        """Forget a step, and what it holds."""
        self.made.pop((index, name), None)
        return {}


def load_model(job: TrainJob) -> tuple[ModelConfig, Params]:
    """A model's files, or random weights of a shape, one weight at a time in full."""
    if job.shape is None:
        model = load(job.model, job.base_dtype)
        return model.config, model.params
    config = SHAPES[job.shape]
    numbers = sum(parameter_sizes(config).values())
    if jax.default_backend() == "cpu" and numbers > _LARGEST_ON_CPU:
        raise InputError(f"--shape {job.shape}: {numbers / 1e9:.1f} B parameters are too many for a CPU; try neo4")
    dtype, sizes = compute_dtype(job.base_dtype), {"initializer_range": config.initializer_range}
    transform, flat = quantizer(job.base_dtype), {}
    for number, (path, spec) in enumerate(decoder.weight_table(config).items()):
        key = jax.random.fold_in(jax.random.key(job.seed), number)
        (made,) = jax.tree.leaves(initialize({path: spec}, config.num_layers, key, dtype=dtype, **sizes))
        flat[path] = transform(path, spec, made)
    return config, unflatten(flat)


def _bytes(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def _fisher(job: TrainJob, config: ModelConfig, spec: lora.AdapterSpec) -> Fisher:
    modules, table = lora.linear_modules(config), decoder.weight_table(config)
    return {
        f"{target.path}.weight": jnp.stack(
            [fisher_of(name, table[f"{target.path}.weight"].shape, job.seed) for name in modules[target.path]]
        )
        for target in spec
    }


SIDES = {"ours": lambda case: operations(TrainJob(**case))}
