"""What a LoRA step needs of each device of a mesh, from compiled programs alone: no accelerator is there.

A process of its own makes CPU devices out of nothing, compiles the step of a small model for each mesh and reads the
program (`program.read_program`): operations of its products, bytes of what its collectives give, and what it holds.
What travels depends on shapes only, so that ratios hold for other devices; how long it takes is not measured.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from e2wm_jax.bench.peers import Answer, serve

LENGTH = 128  # tokens of a row


def operations(case: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    """What the process can be asked for (`peers.Peer`); ``case`` has shape, targets, rank, batch_size, regularizer."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from e2wm_jax import lora
    from e2wm_jax.bench.program import read_program
    from e2wm_jax.bench.train_job import SHAPES
    from e2wm_jax.bench.train_methods import CONTROLS
    from e2wm_jax.config import LoraConfig
    from e2wm_jax.data.batch import Batch, Row, collate
    from e2wm_jax.models import decoder, spread
    from e2wm_jax.models.decoder import weight_table
    from e2wm_jax.regularizers.catalogue import regularizer
    from e2wm_jax.regularizers.regularizer import Material, Options, Scope
    from e2wm_jax.sharding import make_mesh
    from e2wm_jax.train.feed import put
    from e2wm_jax.train.step import StepConfig, initial_state, train_step

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
        step = StepConfig(Scope(config, spec, over), case["regularizer"], dropout=0.1)
        here = params if over is None else spread.place(config, params, over)
        batch = put(Batch(*(np.asarray(leaf)[None] for leaf in whole)), over)
        prepare = regularizer(case["regularizer"]).prepare
        constants = prepare(Material(step.scope, here, adapters, fisher, (), Options()))
        state = initial_state(step, adapters)
        compiled = train_step.lower(step, state, CONTROLS, here, constants, batch).compile()
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


def main() -> None:
    """The process of a `Peer`."""
    case = json.loads(sys.argv[2])
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={case['devices']}"
    )
    serve(operations(case))


if __name__ == "__main__":
    main()
