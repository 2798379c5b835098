"""What `e2wm bench fisher` says of each method: times over the rounds, ratios within a round, memory, error of F."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from e2wm_jax.bench import fisher_peers
from e2wm_jax.bench.fisher_job import Job

Seconds = dict[str, list[float]]  # by what was measured together, of each round


def row_of(name: str, facts: dict[str, Any], seconds: Seconds, about: dict[str, Any], job: Job) -> dict[str, Any]:
    """What is said of one method; memory in units of P, all parameters in float32."""
    row: dict[str, Any] = {"method": name, "side": "peer" if name in fisher_peers.PACKAGES else "ours"}
    row |= {key: facts[key] for key in ("way", "failed", "gflops") if key in facts}
    if name not in seconds:
        return row
    row |= spread(seconds[name])
    row["examples_per_second"] = round(len(job.lengths) / row["seconds"], 3)
    row["tokens_per_second"] = round(sum(job.lengths) / row["seconds"], 1)
    for other in ("textbook", "plain", "fused"):
        if other in seconds:
            row[f"over_{other}"] = ratio(seconds[name], seconds[other])
            row[f"over_{other}_range"] = ratio_range(seconds[name], seconds[other])
    if "official" in seconds:
        row["times_official"] = ratio(seconds["official"], seconds[name])
        row["times_official_range"] = ratio_range(seconds["official"], seconds[name])
    unit = 4 * about["parameters"]
    for key in ("peak_bytes", "extra_bytes", "grown_bytes"):
        if key in facts:
            row[key] = facts[key]
    if "extra_bytes" in facts:
        row["extra_parameters"] = round(facts["extra_bytes"] / unit, 3)
    if "grown_bytes" in facts:
        row["grown_parameters"] = round((facts["grown_bytes"] - 4 * about["selected"]) / unit, 2)
    if facts.get("error") is not None:
        row |= {key: facts[key] for key in ("error", "worst", "tensors", "missing", "wrong", "first_wrong")}
    return row


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """The median over the rounds, and the seconds of each."""
    return {"seconds": round(median(seconds), 5), "rounds": [round(one, 5) for one in seconds]}


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return round(median(a / b for a, b in zip(seconds, base, strict=True)), 3)


def ratio_range(seconds: Sequence[float], base: Sequence[float]) -> list[float]:
    """The least and the greatest ratio within a round."""
    ratios = [a / b for a, b in zip(seconds, base, strict=True)]
    return [round(min(ratios), 3), round(max(ratios), 3)]


def through_textbook(rows: list[dict[str, Any]]) -> None:
    """An estimate for peers that were not measured beside the official loop; tables leave it out, for it is of two
    measurements."""
    official = next((row["over_textbook"] for row in rows if row["method"] == "official" and "over_textbook" in row), 0)
    for row in rows:
        if official and "over_textbook" in row and "times_official" not in row:
            row["times_official"] = round(official / row["over_textbook"], 3)
