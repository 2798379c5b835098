"""`e2wm bench penalty`: the EWC penalty with its gradients, in every storage type, against the official expression.

The official expression (torch, where it is installed) and ours run in a process each, in turn; `taskset -c 0 e2wm bench
penalty` gives both the same core.  G6 of the GPU cases is `--modules 48 --implementations xla mosaic_gpu`, G7 is
`--steps gpt-neo-1.3b-qv gpt-neo-1.3b-all`.

Letters: L matrices, N outputs, D inputs, R rank, B rows, T tokens.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from e2wm_jax import report as html
from e2wm_jax.bench.harness import best_of, check_least, print_table
from e2wm_jax.bench.jobs.shapes import sizes
from e2wm_jax.bench.peers.transformers import has_transformers
from e2wm_jax.bench.process import Answer, Peer
from e2wm_jax.bench.settings import PenaltyBenchSettings
from e2wm_jax.config import MODELS, DType, GPTNeoConfig, LoraConfig, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.storage import FisherDType
from e2wm_jax.kernels.weighted_square import Implementation
from e2wm_jax.running.progress import say

_LEAST_SECONDS = 0.05  # of one measurement: what is faster is called several times
_SCALE = 4.0  # s of the official run: alpha 32, rank 8


class StepCase(NamedTuple):
    """A training step whose cost is measured with the penalty and without."""

    config: ModelConfig
    targets: str
    batch_size: int
    tokens: int
    dtype: DType


_SMALL = GPTNeoConfig(**sizes(512, layers=6, heads=8, words=8192, positions=512), tied=True, windows=(0, 256) * 3)
STEPS = {
    "small-qv": StepCase(_SMALL, "q_proj,v_proj", 4, 128, "float32"),
    "small-all": StepCase(_SMALL, "all-linear", 4, 128, "float32"),
    "gpt-neo-1.3b-qv": StepCase(MODELS["gpt-neo-1.3b"], "q_proj,v_proj", 20, 512, "bfloat16"),
    "gpt-neo-1.3b-all": StepCase(MODELS["gpt-neo-1.3b"], "all-linear", 20, 512, "bfloat16"),
}


def run(settings: PenaltyBenchSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    ``over_read`` is time over the time to read F in float32 once, ``speedup`` the official expression's time (or, in
    ``speedup_over_plain``, that of autodiff of the plain expression) over this one's, ``overhead`` the time of a step
    with the penalty over that without.

    Raises:
        InputError: for settings out of range or an unknown step.
    """
    check_least(settings, modules=1, size=1, rank=1, repeats=1)
    steps = [name for name in settings.steps if name != "none"]
    if unknown := [name for name in steps if name not in STEPS]:
        raise InputError(f"--steps {unknown[0]}: unknown; choose from {', '.join(STEPS)}, none")
    report: dict[str, Any] = {
        "modules": settings.modules,
        "size": settings.size,
        "rank": settings.rank,
        "penalty": _penalties(settings),
        "steps": {name: _step(settings, name) for name in steps},
    }
    if settings.out is not None:
        html.write(settings.out, _page(report))
    return report


def _penalties(settings: PenaltyBenchSettings) -> dict[str, Any]:
    case = {key: getattr(settings, key) for key in ("modules", "size", "rank", "seed")}
    named = [
        (dtype if implementation == "xla" else f"{dtype}, {implementation}", dtype, implementation)
        for dtype in settings.dtypes
        for implementation in settings.implementations
    ]
    say(f"bench penalty: {settings.modules} matrices of {settings.size} x {settings.size}, rank {settings.rank}")
    with ExitStack() as stack:
        ours = stack.enter_context(Peer("ours", case, module=__name__))
        measures: dict[str, Callable[[], Answer]] = {
            "reading F once": partial(ours.ask, "read"),
            "plain, autodiff": partial(ours.ask, "plain"),
        }
        for name, dtype, implementation in named:
            measures[name] = partial(ours.ask, "fused", dtype=dtype, implementation=implementation)
        if has_transformers():
            theirs = stack.enter_context(Peer("official", case, module=__name__))
            measures["official, torch"] = partial(theirs.ask, "official")
        found = dict(zip(measures, best_of(settings.repeats, *measures.values()), strict=True))
    read, plain, official = (found.get(name) for name in ("reading F once", "plain, autodiff", "official, torch"))
    for row in found.values():
        row["over_read"] = row["seconds"] / read["seconds"] if read else None
        row["speedup_over_plain"] = plain["seconds"] / row["seconds"] if plain else None
        row["speedup"] = official["seconds"] / row["seconds"] if official else None
        if plain and "value" in row:
            row["value_error"] = abs(row["value"] / plain["value"] - 1)
    return found


def _step(settings: PenaltyBenchSettings, name: str) -> dict[str, Any]:
    say(f"bench penalty: training step {name}")
    with Peer("step", {"name": name, "rank": settings.rank, "seed": settings.seed}, module=__name__) as peer:
        measures = [partial(peer.ask, "step", dtype=dtype) for dtype in (None, *settings.dtypes)]
        without, *others = best_of(settings.repeats, *measures)
    rows: dict[str, Any] = {
        dtype: {"seconds": answer["seconds"], "overhead": answer["seconds"] / without["seconds"]}
        for dtype, answer in zip(settings.dtypes, others, strict=True)
    }
    return {"without": {"seconds": without["seconds"]}, **rows}


# --------------------------------------------------------------------------------------------------- in their processes


def _factors(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and F: the same numbers in both processes."""
    rng = np.random.default_rng(case["seed"])
    layers, size, rank = case["modules"], case["size"], case["rank"]
    a, b = (
        rng.standard_normal(shape, np.float32) * np.float32(0.02)
        for shape in ((layers, rank, size), (layers, size, rank))
    )
    fisher = np.square(rng.standard_normal((layers, size, size), np.float32)) * np.float32(1e-6)
    return a, b, fisher


def _ours(case: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    import jax
    import jax.numpy as jnp

    from e2wm_jax.fisher.storage import encode, stored_bytes
    from e2wm_jax.kernels.weighted_square import weighted_square

    host = _factors(case)
    a, b = jnp.asarray(host[0]), jnp.asarray(host[1])
    scales = jnp.full(case["modules"], _SCALE, jnp.float32)
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


def _official(case: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    """torch.sum(F * (s B A) ** 2) of every adapted module, added up, and its backward pass."""
    import torch

    cuda = torch.cuda.is_available()
    factors = [torch.from_numpy(x).to("cuda" if cuda else "cpu") for x in _factors(case)]
    a, b = (list(x.unbind(0)) for x in factors[:2])
    fisher = list(factors[2].unbind(0))
    for factor in (*a, *b):
        factor.requires_grad_(True)

    def call() -> float:
        for factor in (*a, *b):
            factor.grad = None
        total = sum(torch.sum(f * ((b_i @ a_i) * _SCALE) ** 2) for a_i, b_i, f in zip(a, b, fisher, strict=True))
        total.backward()
        if cuda:
            torch.cuda.synchronize()
        return float(total.detach())

    def official() -> Answer:
        seconds, value = time_call(call)
        return {"seconds": seconds, "value": value}

    return {"official": official}


def _training(case: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    """Optimizer steps of random adapters on a random model; every storage type keeps its own state."""
    import jax
    import jax.numpy as jnp

    from e2wm_jax.bench.ours.step import PreparedStep, prepared
    from e2wm_jax.data.batch import Row, collate
    from e2wm_jax.fisher.storage import encode
    from e2wm_jax.lora import Scope, adapter_spec, initialize
    from e2wm_jax.models import decoder

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


def time_call(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, as the mean of as many as fill `_LEAST_SECONDS`, and the last one's result."""
    calls, started = 0, time.perf_counter()
    while True:
        result = call()
        calls += 1
        if (seconds := time.perf_counter() - started) >= _LEAST_SECONDS:
            return seconds / calls, result


# ----------------------------------------------------------------------------------------------------------- the report


def show(report: dict[str, Any]) -> None:
    """The report as tables on stdout."""
    print_table(*_table(report))
    for name, step in report["steps"].items():
        times = ", ".join(f"with {key} {row['overhead']:.3f}" for key, row in step.items() if "overhead" in row)
        print(f"step {name}: {1000 * step['without']['seconds']:.1f} ms without the penalty; {times} times that")


def _table(report: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    headers = ["", "ms", "x reading F", "x official", "temps, MiB", "bytes/entry", "value error"]
    keys = ("over_read", "speedup", "temporaries_mib", "bytes_per_entry", "value_error")
    rows = [[name, 1000 * row["seconds"], *(row.get(key) for key in keys)] for name, row in report["penalty"].items()]
    return headers, rows


def _page(report: dict[str, Any]) -> str:
    headers, rows = _table(report)
    chart = html.bar_chart(
        {name: {"time": 1000 * row["seconds"]} for name, row in report["penalty"].items()},
        title="Value and gradients of the penalty",
        x_label="milliseconds",
    )
    lead = f"{report['modules']} matrices of {report['size']} x {report['size']}, rank {report['rank']}"
    sections = [html.Section("Penalty", [chart, html.table(headers, rows)])]
    if report["steps"]:
        steps = [
            [name, key, 1000 * row["seconds"], row.get("overhead")]
            for name, step in report["steps"].items()
            for key, row in step.items()
        ]
        sections.append(html.Section("Training step", [html.table(["step", "F", "ms", "x without"], steps)]))
    return html.page("The EWC penalty", sections, lead=lead)


SIDES = {"ours": _ours, "official": _official, "step": _training}
