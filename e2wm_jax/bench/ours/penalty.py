"""Our side of `e2wm bench penalty`: the penalty with both gradients, and training steps with it and without.

Letters: L matrices, N outputs, D inputs, R rank.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.bench.harness import time_call
from e2wm_jax.bench.jobs.penalty import SCALE, STEPS, factors
from e2wm_jax.bench.ours.step import PreparedStep, prepared
from e2wm_jax.bench.process import Answer
from e2wm_jax.config import LoraConfig
from e2wm_jax.data.batch import Row, collate
from e2wm_jax.fisher.storage import FisherDType, encode, stored_bytes
from e2wm_jax.kernels.weighted_square import Implementation, weighted_square
from e2wm_jax.lora import Scope, adapter_spec, initialize
from e2wm_jax.models import decoder


def penalties(case: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    """Values with gradients of random factors, and reading F."""
    host = factors(case)
    a, b = jnp.asarray(host[0]), jnp.asarray(host[1])
    scales = jnp.full(case["modules"], SCALE, jnp.float32)
    stored = {}
    compiled: dict[Any, Any] = {}

    def fisher(dtype: FisherDType) -> Any:
        if dtype not in stored:
            stored[dtype] = jax.tree.map(jnp.asarray, encode(host[2], dtype))
        return stored[dtype]

    def plain_value(a: jax.Array, b: jax.Array, fisher: jax.Array, scales: jax.Array) -> jax.Array:
        change = scales[:, None, None] * jnp.einsum("lnr,lrd->lnd", b, a, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(fisher * change**2)

    def plain(a: jax.Array, b: jax.Array, fisher: jax.Array, scales: jax.Array) -> Any:
        return jax.value_and_grad(plain_value, (0, 1))(a, b, fisher, scales)

    def timed(key: Any, function: Callable[..., Any], *arguments: Any) -> Answer:
        if key not in compiled:
            compiled[key] = jax.jit(function).lower(*arguments).compile()
        call = compiled[key]
        seconds, result = time_call(lambda: jax.block_until_ready(call(*arguments)))
        memory = call.memory_analysis()
        return {
            "seconds": seconds,
            "value": float(jax.tree.leaves(result)[0]),
            "temporaries_mib": memory.temp_size_in_bytes / 2**20 if memory else None,
        }

    def fused(dtype: FisherDType, implementation: Implementation) -> Answer:
        function = partial(weighted_square, implementation=implementation)
        answer = timed((dtype, implementation), function, a, b, fisher(dtype), scales)
        return {**answer, "bytes_per_entry": stored_bytes(fisher(dtype)) / host[2].size}

    def read() -> Answer:
        answer = timed("read", jnp.sum, fisher("float32"))
        del answer["value"]
        return answer

    return {
        "read": read,
        "plain": lambda: timed("plain", plain, a, b, fisher("float32"), scales),
        "fused": fused,
    }


def training(case: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    """Optimizer steps of random adapters on a random model; every storage type keeps its own state."""
    config, targets, batch_size, tokens, dtype = STEPS[case["name"]]
    key, rng = jax.random.key(case["seed"]), np.random.default_rng(case["seed"])
    params = decoder.initialize(config, key, dtype)
    spec = adapter_spec(config, LoraConfig(rank=case["rank"], targets=targets))
    rows = [Row(ids, 1) for ids in rng.integers(0, config.vocab_size, (batch_size, tokens)).astype(np.int32)]
    batch = collate(rows, length=tokens, num_targets=tokens - 1, batch_size=batch_size)
    batch = jax.tree.map(lambda x: jnp.asarray(x[None]), batch)
    table, paths = decoder.weight_table(config), [f"{target.path}.weight" for target in spec]
    steps: dict[FisherDType | None, PreparedStep] = {}

    def step(dtype: FisherDType | None) -> Answer:
        if dtype not in steps:
            shapes = {path: (config.num_layers, *table[path].shape) for path in paths if dtype is not None}
            squares = {path: np.square(rng.standard_normal(shape, np.float32)) for path, shape in shapes.items()}
            fisher = {path: encode(values, dtype or "float32") for path, values in squares.items()}
            scope, name = Scope(config, spec), "none" if dtype is None else "ewc"
            steps[dtype] = prepared(scope, name, params, initialize(config, spec, key), fisher=fisher)
        return {"seconds": time_call(partial(steps[dtype], batch))[0]}

    return {"step": step}


SIDES = {"ours": penalties, "step": training}
