"""`e2wm bench models`: forward, gradient and generation of every family, against transformers."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from e2wm_jax.bench.harness import best_of, check_least, print_table
from e2wm_jax.bench.jobs.shapes import sizes
from e2wm_jax.bench.peers.transformers import has_transformers
from e2wm_jax.bench.process import Peer
from e2wm_jax.bench.settings import ModelsBenchSettings
from e2wm_jax.config import GPTJConfig, GPTNeoConfig, GPTNeoXConfig, LlamaConfig, ModelConfig, OPTConfig
from e2wm_jax.errors import InputError
from e2wm_jax.models.weights import config_to_hf
from e2wm_jax.running.progress import say

SIDES = {"ours": "e2wm_jax.bench.ours.models", "transformers": "e2wm_jax.bench.peers.transformers"}
_POSITIONS = 512
_SIZES = sizes(256, layers=6, heads=8, words=8192, positions=_POSITIONS)
_LLAMA = {**_SIZES, "num_kv_heads": 2, "tied": True}
SHAPES: dict[str, ModelConfig] = {
    "gpt_neo": GPTNeoConfig(**_SIZES, tied=True, windows=(0, 64) * 3),
    "gptj": GPTJConfig(**_SIZES, rotary_dim=16),
    "gpt_neox": GPTNeoXConfig(**_SIZES, rotary_dim=8),
    "opt": OPTConfig(**_SIZES, embedding_size=256, tied=True),
    "llama": LlamaConfig(**_LLAMA),
    "mistral": LlamaConfig(**_LLAMA, model_type="mistral", windows=(64,) * 6),
    "qwen3": LlamaConfig(**_LLAMA, model_type="qwen3"),
}


def run(settings: ModelsBenchSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints: tokens per second, and their ratios to transformers'.

    Raises:
        InputError: for settings out of range or an unknown family.
    """
    check_least(settings, batch_size=1, tokens=8, new_tokens=1, rounds=1)
    if unknown := [name for name in settings.families if name not in SHAPES]:
        raise InputError(f"--families {unknown[0]}: unknown; choose from {', '.join(SHAPES)}")
    if settings.tokens > _POSITIONS:
        raise InputError(f"--tokens {settings.tokens}: at most {_POSITIONS}")
    return {name: _measure(settings, name, model) for name, model in _models(settings)}


def _models(settings: ModelsBenchSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in settings.families:
        yield name, {"config": config_to_hf(SHAPES[name]), "dtype": settings.dtype}
    for name in settings.models:
        yield name, {"model": name, "dtype": settings.dtype}


def _measure(settings: ModelsBenchSettings, name: str, model: dict[str, Any]) -> dict[str, Any]:
    say(f"bench models: {name}")
    ids = np.random.default_rng(settings.seed).integers(5, 200, (settings.batch_size, settings.tokens))
    passes = {"ids": ids.tolist()}
    prompts = {"prompts": ids[:, : settings.tokens // 4].tolist(), "new_tokens": settings.new_tokens}
    work = {
        "forward": (passes, settings.tokens),
        "gradient": (passes, settings.tokens),
        "generate": (prompts, settings.new_tokens),
    }
    sides = ("ours", "transformers") if has_transformers() else ("ours",)
    report: dict[str, Any] = {}
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer(side, model, module=SIDES[side])) for side in sides]
        for key, (options, tokens) in work.items():
            answers = best_of(settings.rounds, *(partial(peer.ask, key, **options) for peer in peers))
            seconds = [answer["seconds"] for answer in answers]
            number = settings.batch_size * tokens
            report[key] = {side: round(number / each, 1) for side, each in zip(sides, seconds, strict=True)}
            if len(sides) == 2:
                report[key]["over_transformers"] = round(seconds[1] / seconds[0], 3)
    return report


def show(report: dict[str, Any]) -> None:
    """The report as a table on stdout: tokens per second, and times transformers'."""
    passes = ("forward", "gradient", "generate")
    headers = ["", *(header for name in passes for header in (f"{name} tok/s", "ratio"))]
    rows = [
        [name, *(cell for key in passes for cell in (row[key]["ours"], row[key].get("over_transformers")))]
        for name, row in report.items()
    ]
    print_table(headers, rows)
