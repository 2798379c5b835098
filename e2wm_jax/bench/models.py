"""`e2wm bench models`: forward, gradient and generation of every family, against transformers."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from e2wm_jax.bench.peers import Answer, Peer, Side, best_of, has_transformers
from e2wm_jax.bench.settings import ModelsBenchSettings
from e2wm_jax.config import GPTJConfig, GPTNeoConfig, GPTNeoXConfig, LlamaConfig, ModelConfig, OPTConfig
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.models.weights import config_to_hf
from e2wm_jax.progress import say

_SIZES: dict[str, Any] = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_layers": 6,
    "num_heads": 8,
    "num_kv_heads": 8,
    "head_dim": 32,
    "max_positions": 512,
}
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
    check_at_least(
        ("--batch-size", settings.batch_size, 1),
        ("--tokens", settings.tokens, 8),
        ("--new-tokens", settings.new_tokens, 1),
        ("--rounds", settings.rounds, 1),
    )
    if unknown := [name for name in settings.families if name not in SHAPES]:
        raise InputError(f"--families {unknown[0]}: unknown; choose from {', '.join(SHAPES)}")
    if settings.tokens > _SIZES["max_positions"]:
        raise InputError(f"--tokens {settings.tokens}: at most {_SIZES['max_positions']}")
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
    with Peer("ours", model) as ours:
        if not has_transformers():
            found = {key: _of_all(settings.rounds, key, options, [ours]) for key, (options, _) in work.items()}
        else:
            with Peer("transformers", model) as theirs:
                found = {
                    key: _of_all(settings.rounds, key, options, [ours, theirs]) for key, (options, _) in work.items()
                }
    sides: tuple[Side, ...] = ("ours", "transformers")
    report: dict[str, Any] = {}
    for key, answers in found.items():
        number = settings.batch_size * work[key][1]
        report[key] = {side: round(number / a["seconds"], 1) for side, a in zip(sides, answers, strict=False)}
        if len(answers) == 2:
            report[key]["over_transformers"] = round(answers[1]["seconds"] / answers[0]["seconds"], 3)
    return report


def _of_all(rounds: int, operation: str, options: dict[str, Any], peers: list[Peer]) -> list[Answer]:
    return best_of(rounds, *(partial(peer.ask, operation, **options) for peer in peers))


def show(report: dict[str, Any]) -> None:
    """The report as a table on stdout: tokens per second, and times transformers'."""
    print(f"{'':<16}" + "".join(f"{name + ' tok/s':>18}{'ratio':>8}" for name in ("forward", "gradient", "generate")))
    for name, row in report.items():
        cells = ((work["ours"], work.get("over_transformers")) for work in row.values())
        print(f"{name:<16}" + "".join(f"{ours:>18.1f}{'' if r is None else format(r, '.2f'):>8}" for ours, r in cells))
