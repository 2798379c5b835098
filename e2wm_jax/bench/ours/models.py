"""Our side of `e2wm bench models` and `generate`: passes, continuations and scores of one model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.bench.process import Answer
from e2wm_jax.data.batch import Row, collate
from e2wm_jax.data.source import Question
from e2wm_jax.evaluate.model import Evaluated, load_evaluated
from e2wm_jax.evaluate.questions.answer_scores import answer_scores
from e2wm_jax.models import decoder
from e2wm_jax.models.decoding.generate import Decoding
from e2wm_jax.models.decoding.generate import generate as continue_prompts
from e2wm_jax.models.head import target_nll
from e2wm_jax.models.weights import config_from_hf


def operations(model: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    """What the process can be asked for (`process.Peer`).

    ``model`` is {"model": name, "dtype": ...} or, for random weights, {"config": a Hugging Face configuration, ...}.
    """
    if "config" in model:
        config = config_from_hf(model["config"], Path("bench"))
        evaluated = Evaluated(config, decoder.initialize(config, jax.random.key(0), model["dtype"]), None)
    else:
        evaluated = load_evaluated(model["model"], None, model["dtype"])
        config = evaluated.config
    params = evaluated.params
    unstacked = decoder.unstack(params)

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean(target_nll(config, params, batch))

    passes = {"forward": jax.jit(loss), "gradient": jax.jit(jax.value_and_grad(loss))}

    def run_pass(name: str, ids: list[list[int]]) -> Answer:
        rows = [Row(np.asarray(row, np.int32), 1) for row in ids]
        batch = collate(rows, length=len(ids[0]), num_targets=len(ids[0]) - 1, batch_size=len(rows))
        return {"loss": float(jax.tree.leaves(jax.block_until_ready(passes[name](params, batch)))[0])}

    def generate(prompts: list[list[int]], new_tokens: int, beams: int = 1) -> Answer:
        return {"tokens": continue_prompts(config, unstacked, prompts, Decoding(new_tokens, beams))}

    def score(questions: list[Any], batch_size: int) -> Answer:
        made = [Question(text, tuple(answers), 0, "bench") for text, answers in questions]
        scores = answer_scores(evaluated, made, "normalized", batch_size=batch_size)
        return {"scores": [row.tolist() for row in scores]}

    return {
        "forward": partial(run_pass, "forward"),
        "gradient": partial(run_pass, "gradient"),
        "generate": generate,
        "score": score,
    }


SIDES = {"ours": operations}
