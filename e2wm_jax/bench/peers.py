"""Ours and transformers, each in a process of its own that loads one model and is then asked to do this and that.

A request is one line of JSON on stdin, its answer one line on stdout.  So both can be measured in turn, neither sees
the other's threads or memory, and torch, which is optional, is imported in its own process only.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

Side = Literal["ours", "transformers"]
Answer = dict[str, Any]


class Peer:
    """A process with one model in it.

    ``model`` is {"model": name, "dtype": ...} or, for random weights, {"config": a Hugging Face configuration, ...};
    another ``module`` than this, whose `main` calls `serve`, has its own sides and its own way to say it.
    """

    def __init__(self, side: str, model: dict[str, Any], *, module: str = "e2wm_jax.bench.peers") -> None:
        words = [sys.executable, "-m", module, side, json.dumps(model)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._side = side

    def ask(self, operation: str, **arguments: Any) -> Answer:
        """Have it done; the answer has "seconds" and what the operation adds."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench: the process of {self._side} ended with code {self._process.wait()}, see above")
        return dict(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        if error is not None:
            self._process.terminate()
        self._process.stdout.close()
        self._process.wait()


def has_transformers() -> bool:
    """Whether there is a torch for transformers to run on."""
    return importlib.util.find_spec("torch") is not None


def best_of(rounds: int, *measures: Callable[[], Answer]) -> list[Answer]:
    """The fastest answer of each measure, after one that compiles, the measures taken in turn."""
    for measure in measures:
        measure()
    answers = [[measure() for measure in measures] for _ in range(rounds)]
    return [min(column, key=lambda answer: answer["seconds"]) for column in zip(*answers, strict=True)]


def _ours(model: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from e2wm_jax.data.batch import Row, collate
    from e2wm_jax.data.source import Question
    from e2wm_jax.evaluate.answer_scores import answer_scores
    from e2wm_jax.evaluate.model import Evaluated, load_evaluated
    from e2wm_jax.models import decoder
    from e2wm_jax.models.generate import Decoding
    from e2wm_jax.models.generate import generate as continue_prompts
    from e2wm_jax.models.likelihood import target_nll
    from e2wm_jax.models.weights import config_from_hf

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
        "forward": lambda ids: run_pass("forward", ids),
        "gradient": lambda ids: run_pass("gradient", ids),
        "generate": generate,
        "score": score,
    }


def _transformers(model: dict[str, Any]) -> dict[str, Callable[..., Answer]]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from e2wm_jax.model_files import locate

    dtype = getattr(torch, model["dtype"])
    if "config" in model:
        raw = dict(model["config"])
        network = AutoModelForCausalLM.from_config(AutoConfig.for_model(raw.pop("model_type"), **raw), dtype=dtype)
    else:
        files = locate(model["model"])
        where = (files.path.parent, files.path.name) if files.format == "gguf" else (files.path, None)
        network = AutoModelForCausalLM.from_pretrained(where[0], gguf_file=where[1], dtype=dtype)
    network.eval()
    network.generation_config.eos_token_id = None

    def forward(ids: list[list[int]]) -> Answer:
        rows = torch.tensor(ids)
        with torch.no_grad():
            return {"loss": float(network(rows, labels=rows).loss)}

    def gradient(ids: list[list[int]]) -> Answer:
        rows = torch.tensor(ids)
        network.zero_grad(set_to_none=True)
        loss = network(rows, labels=rows).loss
        loss.backward()
        return {"loss": float(loss.detach())}

    def generate(prompts: list[list[int]], new_tokens: int, beams: int = 1) -> Answer:
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = {"num_beams": beams, "do_sample": False, "pad_token_id": 0, "max_new_tokens": new_tokens}
        with torch.no_grad():
            found = network.generate(input_ids=ids, attention_mask=mask, **options)
        return {"tokens": found[:, length:].tolist()}

    return {"forward": forward, "gradient": gradient, "generate": generate}


def main() -> None:
    """The process of a `Peer`."""
    side, model = sys.argv[1], json.loads(sys.argv[2])
    serve({"ours": _ours, "transformers": _transformers}[side](model))


def serve(operations: Mapping[str, Callable[..., Answer]]) -> None:
    """Answer a `Peer`'s requests until it is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what an operation prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        operation = operations[request.pop("operation")]
        started = time.perf_counter()
        answer = operation(**request)
        print(json.dumps({"seconds": time.perf_counter() - started, **answer}), file=answers, flush=True)


if __name__ == "__main__":
    main()
