"""PEFT's `adapter_config.json` of a plain LoRA adapter: which modules, ranks and scales, by PEFT's rules."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.config import QV_TARGETS
from e2wm_jax.errors import InputError
from e2wm_jax.lora import ends_with
from e2wm_jax.storage.files import read_json

# Keys of adapter_config.json that describe the adapter or say nothing about its arithmetic; any other key must be off.
_UNDERSTOOD = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "use_rslora", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "bias", "init_lora_weights",
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "megatron_core", "qalora_group_size", "eva_config",
}  # fmt: skip
MERGE = "merge it into its base with PEFT (merge_and_unload, then save_pretrained) and give that as --model"
_MOST = float(np.finfo(np.float32).max)
_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal", "eva", None)  # others also change the base weights


@dataclass(frozen=True)
class PeftLora:
    """A plain LoRA adapter as its configuration describes it; modules are Hugging Face names."""

    targets: Callable[[str], bool]
    rank: Callable[[str], int]
    alpha: Callable[[str], float]
    rslora: bool


def read_config(path: Path) -> PeftLora:
    """Read an `adapter_config.json`.

    Raises:
        InputError: if it is missing or damaged, or describes something that is not plain LoRA.
    """
    raw = read_json(path)
    _refuse_other_kinds(raw, path)
    rank, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
    ranks, alphas = (_patterns(raw, key, path) for key in ("rank_pattern", "alpha_pattern"))
    for key, value in (("r", rank), *(("rank_pattern", value) for value in ranks.values())):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{path}: {key} is {value!r}; a rank must be a whole number, 1 or more")
    for key, value in (("lora_alpha", alpha), *(("alpha_pattern", value) for value in alphas.values())):
        if not _is_number(value):
            raise InputError(f"{path}: {key} is {value!r}; it must be a finite number, in float32 too")
    if not isinstance(rslora := raw.get("use_rslora"), bool | None):
        raise InputError(f"{path}: use_rslora is {rslora!r}; it must be true or false")
    return PeftLora(
        _targets(raw, path),
        lambda module: _first(ranks, module, rank),
        lambda module: float(_first(alphas, module, alpha)),
        bool(rslora),
    )


def _refuse_other_kinds(raw: dict[str, Any], path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {raw.get('peft_type')!r}; only 'LORA' adapters can be read")
    if raw.get("bias", "none") != "none":
        raise InputError(f"{path}: bias is {raw['bias']!r}; only adapters with bias 'none' can be read; {MERGE}")
    if raw.get("init_lora_weights", True) not in _PLAIN_INITIALIZATIONS:
        raise InputError(
            f"{path}: init_lora_weights {raw['init_lora_weights']!r} also changes the base weights; "
            "convert the adapter to plain LoRA with PEFT first"
        )
    for key, value in sorted(raw.items()):
        if key not in _UNDERSTOOD and value:
            raise InputError(
                f"{path}: {key} = {value!r} is not supported; only plain LoRA (r, alpha, patterns, rsLoRA) of the "
                f"linear layers of blocks; {MERGE}"
            )


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(float(value)) <= _MOST
    except OverflowError:
        return False


def _patterns(raw: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    patterns = raw.get(key) or {}
    if not isinstance(patterns, dict):
        raise InputError(f"{path}: {key} is {patterns!r}; it must map names of modules to numbers")
    for pattern in patterns:
        _compiled(rf"(.*\.)?({pattern})$", key, path)
    return patterns


def _first(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the module's name."""
    return next((value for key, value in patterns.items() if ends_with(key, module)), default)


def _compiled(pattern: str, key: str, path: Path) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():  # of what a later Python may read otherwise
            warnings.simplefilter("ignore")
            return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: {key} holds no regular expression: {pattern!r} ({error})") from error


def _targets(raw: dict[str, Any], path: Path) -> Callable[[str], bool]:
    """Which modules PEFT adapts (`check_target_module_exists`)."""
    modules = raw.get("target_modules")
    chosen = _named(QV_TARGETS if modules is None else modules, "target_modules", path, all_linear=True)
    excluded = _named(raw.get("exclude_modules") or [], "exclude_modules", path)
    layers, patterns = raw.get("layers_to_transform"), raw.get("layers_pattern") or []
    if layers is None and not patterns:
        return lambda module: chosen(module) and not excluded(module)
    numbers = layers if isinstance(layers, list) else [layers]
    if isinstance(modules, str) or not all(isinstance(number, int) for number in numbers):
        raise InputError(
            f"{path}: layers_to_transform is {layers!r} and layers_pattern {patterns!r}; they must be whole numbers "
            "and text, beside a list of target_modules"
        )
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"{path}: layers_pattern is {patterns!r}; it must be text or a list of it")
    before = [rf"(?:^|.*?\.){pattern}" for pattern in patterns] or [r".*?\.[^.]*"]
    found = [_compiled(rf"{one}\.(?P<idx>\d+)\.", "layers_pattern", path) for one in before]

    def in_layers(module: str) -> bool:
        match = next((match for one in found if (match := one.match(module))), None)
        return not numbers or (match is not None and int(match["idx"]) in numbers)

    return lambda module: chosen(module) and not excluded(module) and in_layers(module)


def _named(modules: Any, key: str, path: Path, *, all_linear: bool = False) -> Callable[[str], bool]:
    """A regular expression on whole names, or names or their ends after a dot."""
    if isinstance(modules, str):
        if all_linear and modules.lower() == "all-linear":
            return lambda module: True
        pattern = _compiled(modules, key, path)
        return lambda module: pattern.fullmatch(module) is not None
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        raise InputError(f"{path}: {key} is {modules!r}; it must be a list of names, or a regular expression")
    return lambda module: any(module == name or module.endswith(f".{name}") for name in modules)
