"""What a LoRA step needs of each device of a mesh, from compiled programs alone: no accelerator is there.

A process of its own makes CPU devices out of nothing, compiles the step of a small model for each mesh and reads the
program (`program.read_program`): operations of its products, bytes of what its collectives give, and what it holds.
What travels depends on shapes only, so that ratios hold for other devices; how long it takes is not measured.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax import lora
from e2wm_jax.bench.jobs.train import SHAPES
from e2wm_jax.bench.ours.program import read_program
from e2wm_jax.bench.ours.step import prepared
from e2wm_jax.bench.process import Answer
from e2wm_jax.config import LoraConfig
from e2wm_jax.data.batch import Batch, Row, collate
from e2wm_jax.lora import Scope
from e2wm_jax.models import decoder, spread
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.sharding import make_mesh
from e2wm_jax.train.feed import put

LENGTH = 128  # tokens of a row


def operations(case: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    """What the process can be asked for (`process.Peer`); ``case`` has shape, targets, rank and batch_size."""
    config, key = SHAPES[case["shape"]], jax.random.key(0)
    params = decoder.initialize(config, key)
    spec = lora.adapter_spec(config, LoraConfig(rank=case["rank"], targets=case["targets"]))
    adapters = lora.initialize(config, spec, key)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (case["batch_size"], LENGTH), np.int32)
    rows = [Row(row, LENGTH // 2) for row in tokens]
    targets = LENGTH - LENGTH // 2
    whole = collate(rows, length=LENGTH, num_targets=targets, batch_size=len(rows))
    paths = [f"{target.path}.weight" for target in spec]
    fisher = {path: jnp.ones((config.num_layers, *weight_table(config)[path].shape)) for path in paths}

    def mesh(text: str) -> Answer:
        """The step on this mesh; "" is one device."""
        over = make_mesh(text) if text else None
        here = params if over is None else spread.place(config, params, over)
        batch = put(Batch(*(np.asarray(leaf)[None] for leaf in whole)), over)
        compiled = prepared(Scope(config, spec, over), "ewc", here, adapters, fisher=fisher).compiled(batch)
        program, memory = read_program(compiled.as_text() or ""), compiled.memory_analysis()
        assert memory is not None  # XLA knows it on CPU
        return {
            "gflops": program.flops / 1e9,
            "moved_bytes": program.moved,
            "collectives": program.bytes,
            "calls": program.calls,
            "largest": program.largest,
            "unknown_loops": program.unknown_loops,
            "argument_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
        }

    return {"mesh": mesh}


SIDES = {"mesh": operations}
