"""`e2wm bench generate`: new tokens per second against transformers, and answers scored with a shared prompt."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from e2wm_jax.bench.harness import best_of, check_least, print_table
from e2wm_jax.bench.models import SIDES
from e2wm_jax.bench.peers.transformers import has_transformers
from e2wm_jax.bench.process import Answer, Peer
from e2wm_jax.bench.settings import GenerateBenchSettings
from e2wm_jax.data.source import read_documents, read_questions
from e2wm_jax.running.progress import say

_ANSWERS = ("go to sleep", "make coffee", "read a book", "wash the dishes")


def run(settings: GenerateBenchSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    ``over_transformers`` compares with transformers in the same dtype, ``over_float32`` with transformers in float32.

    Raises:
        InputError: for settings out of range.
    """
    check_least(settings, prompts=1, prompt_tokens=2, new_tokens=2, beams=1, questions=0, batch_size=1, rounds=1)
    report: dict[str, Any] = {"generation": _generation(settings)}
    if settings.questions:
        report["scoring"] = _scoring(settings)
    return report


def _generation(settings: GenerateBenchSettings) -> dict[str, Any]:
    rng = np.random.default_rng(settings.seed)
    lengths = np.linspace(settings.prompt_tokens // 2, settings.prompt_tokens, settings.prompts).astype(int)
    prompts = [rng.integers(5, 200, max(length, 1)).tolist() for length in lengths]
    sides: list[tuple[str, str]] = [("ours", dtype) for dtype in settings.dtypes]
    if has_transformers():
        sides += [("transformers", dtype) for dtype in ("float32", "bfloat16") if dtype in settings.dtypes]
    with ExitStack() as stack:
        peers = [stack.enter_context(_peer(settings, side, dtype)) for side, dtype in sides]

        def measures(new_tokens: int) -> list[Answer]:
            say(f"bench generate: {new_tokens} tokens behind {len(prompts)} prompts")
            options = {"prompts": prompts, "new_tokens": new_tokens, "beams": settings.beams}
            return best_of(settings.rounds, *(partial(peer.ask, "generate", **options) for peer in peers))

        prefill, whole = measures(1), measures(settings.new_tokens)
    rows = {
        f"{side} {dtype}": _row(settings, *pair) for (side, dtype), *pair in zip(sides, prefill, whole, strict=True)
    }
    for (side, dtype), row in zip(sides, rows.values(), strict=True):
        for name, other in (("over_transformers", dtype), ("over_float32", "float32")):
            base = rows.get(f"transformers {other}")
            if side == "ours" and base:
                row[name] = round(row["tokens_per_second"] / base["tokens_per_second"], 3)
                row[f"decode_{name}"] = round(row["decode_tokens_per_second"] / base["decode_tokens_per_second"], 3)
    for dtype in ("float32", "bfloat16"):
        if f"ours {dtype}" in rows and f"transformers {dtype}" in rows:
            ours, theirs = (np.array(whole[sides.index((side, dtype))]["tokens"]) for side in SIDES)
            rows[f"ours {dtype}"]["same_tokens"] = round(float(np.mean(ours == theirs)), 4)
    return rows


def _peer(settings: GenerateBenchSettings, side: str, dtype: str) -> Peer:
    return Peer(side, {"model": settings.model, "dtype": dtype}, module=SIDES[side])


def _row(settings: GenerateBenchSettings, prefill: Answer, whole: Answer) -> dict[str, float]:
    tokens, after = settings.prompts * settings.new_tokens, max(whole["seconds"] - prefill["seconds"], 1e-9)
    return {
        "prefill_seconds": round(prefill["seconds"], 4),
        "seconds": round(whole["seconds"], 4),
        "tokens_per_second": round(tokens / whole["seconds"], 2),
        "decode_tokens_per_second": round((tokens - settings.prompts) / after, 2),
    }


def _scoring(settings: GenerateBenchSettings) -> dict[str, Any]:
    """Each question with all its answers in one row, against a row of its own for every answer."""
    say("bench generate: answers")
    if settings.data is None:
        texts = read_documents("pydoc:held-out")
        questions = [[text[:1000], list(_ANSWERS)] for text in texts if len(text) > 1000][: settings.questions]
    else:
        read = sorted(read_questions(settings.data), key=lambda question: len(question.input))
        questions = [[question.input, list(question.answers)] for question in read[: settings.questions]]
    naive = [[text, [answer]] for text, answers in questions for answer in answers]
    with _peer(settings, "ours", "float32") as peer:
        score = partial(peer.ask, "score", batch_size=settings.batch_size)
        found = best_of(settings.rounds, partial(score, questions=questions), partial(score, questions=naive))
    shared, alone = (np.concatenate(answer["scores"]) for answer in found)
    seconds = [answer["seconds"] for answer in found]
    return {
        "questions": len(questions),
        "answers": len(naive),
        "shared_seconds": round(seconds[0], 4),
        "naive_seconds": round(seconds[1], 4),
        "over_naive": round(seconds[1] / seconds[0], 3),
        "largest_difference": float(np.max(np.abs(shared - alone))),
    }


def show(report: dict[str, Any]) -> None:
    """The report as tables on stdout."""
    keys = ("prefill_seconds", "tokens_per_second", "decode_tokens_per_second", "over_transformers", "over_float32")
    rows = [[name, *map(row.get, keys)] for name, row in report["generation"].items()]
    print_table(["", "prefill s", "tokens/s", "decode/s", "ratio", "over f32"], rows)
    if scoring := report.get("scoring"):
        print(
            f"{scoring['answers']} answers of {scoring['questions']} questions: {scoring['shared_seconds']:.2f} s with "
            f"a shared prompt, {scoring['naive_seconds']:.2f} s without, {scoring['over_naive']:.2f} times as fast"
        )
