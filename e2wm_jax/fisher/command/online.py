"""The Fisher of several corpora, one after another: F <- decay * F + F_new (online EWC, Schwarz et al. 2018).

After k corpora F = sum_i decay^(k - i) F_i, in the memory of one; with decay 1 the plain sum of EWC over tasks.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Estimator, Flat
from e2wm_jax.fisher.files import METADATA_FILE, SCALE, stored_tensor
from e2wm_jax.fisher.finite import check_finite
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import hf_names
from e2wm_jax.storage.files import read_json
from e2wm_jax.storage.tensor_files import open_tensors

_RECORDED = ("data", "samples", "tokens", "max_length")  # of each corpus


def check_previous(folder: Path, names: Collection[str], estimator: Estimator) -> dict[str, Any]:
    """The record of the Fisher to go on from, if it is one of these parameters (Hugging Face names), estimated alike.

    Raises:
        InputError: naming the difference, or a tensor that is no Fisher.
    """
    if not (folder / METADATA_FILE).is_file():
        raise InputError(
            f"--previous {folder}: no {METADATA_FILE} in it, so how it was estimated is unknown; give a finished "
            "directory of `e2wm fisher`"
        )
    record = read_json(folder / METADATA_FILE)
    earlier = record.get("estimator", {})
    for key, value in (("labels", estimator.labels), ("reduction", estimator.reduction)):
        if earlier.get(key) != value:
            raise InputError(
                f"--previous {folder}: estimated with --{key} {earlier.get(key)}, not {value}; their sum would be "
                "neither, give the same"
            )
    tensors = open_tensors(folder)
    found = {name for name in tensors.names if not name.endswith(SCALE)}
    if odd := sorted(found ^ set(names)):
        rule = f"has {odd[0]}, which --params leaves out" if odd[0] in found else f"lacks {odd[0]}"
        raise InputError(
            f"--previous {folder}: {rule} ({len(odd)} such parameters); give the --params it was made with"
        )
    for name in sorted(found):  # and once more when the pass is done: one tensor is in memory at a time
        stored_tensor(tensors, name, f"--previous {folder}")
    return record


def check_model(folder: Path, record: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse the Fisher of another model.

    Raises:
        InputError: naming both.
    """
    if record.get("fingerprint") != fingerprint:
        raise InputError(
            f"--previous {folder}: computed for another model (fingerprint {str(record.get('fingerprint'))[:12]}, this "
            f"model {fingerprint[:12]}); F of two models do not add up"
        )


def add_previous(
    config: ModelConfig, values: Flat, names: Collection[str], folder: Path, decay: float
) -> dict[str, Any]:
    """decay * F of `folder` + F, on the host; parameters outside `names` stay as they are.

    Raises:
        InputError: if `folder` holds something that is no Fisher, or the sum is beyond float32.
    """
    tensors, table = open_tensors(folder), weight_table(config)
    added: dict[str, Any] = {}
    for path, value in values.items():
        spec, sums = table[path], np.array(value)
        for layer, name in enumerate(hf_names(spec, config)):
            if name in names:
                at = sums[layer] if spec.stacked else sums
                at += np.float32(decay) * stored_tensor(tensors, name, f"--previous {folder}")
        added[path] = sums
    check_finite(added)
    return added


def corpora(previous: Mapping[str, Any] | None, decay: float, now: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What F is made of, the latest last: each corpus with its weight in the sum.

    Args:
        previous: the record of the Fisher before, if there is one.
        now: the record of this one.
    """
    before: list[dict[str, Any]] = []
    if previous is not None:
        before = previous.get("corpora") or [{**_only_recorded(previous), "weight": 1.0}]
    return [{**one, "weight": decay * one["weight"]} for one in before] + [{**_only_recorded(now), "weight": 1.0}]


def _only_recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in _RECORDED}
