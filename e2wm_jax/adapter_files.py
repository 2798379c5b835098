"""Adapters in PEFT's own layout: `adapter_config.json` and `adapter_model.safetensors`, both directions.

PEFT keeps lora_A as [R, D] and lora_B as [N, R] per layer under "base_model.model.<module>.lora_A.weight"; we stack the
layers, pad to the highest rank, and undo both when writing.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json, write_text
from e2wm_jax.lora import Adapters, AdapterSpec, TargetSpec, ends_with, linear_modules
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.tensor_files import open_safetensors, write_safetensors

_PREFIX = "base_model.model."
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

# Keys of adapter_config.json that describe the adapter or say nothing about its arithmetic; any other key must be off.
_UNDERSTOOD = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
    "use_rslora", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "bias", "init_lora_weights",
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "megatron_core", "qalora_group_size",
}  # fmt: skip
_PLAIN_INITIALIZATIONS = (True, False, "gaussian", "orthogonal", "eva", None)  # others also change the base weights


def write_adapter(
    folder: Path, adapters: Adapters, spec: AdapterSpec, config: ModelConfig, *, base_model: str, dropout: float
) -> None:
    """Write a PEFT directory; at each moment one that has a configuration holds a whole adapter.

    The configuration comes last, and that of an adapter of another kind goes first. Each file is replaced at once, so a
    directory that is written again and again by a run always holds one of its adapters.
    """
    modules = linear_modules(config)
    tensors: dict[str, np.ndarray] = {}
    for target in spec:
        a, b = (np.asarray(adapters[target.path][name], np.float32) for name in ("a", "b"))
        for layer, rank in enumerate(target.ranks):
            if rank:
                name = f"{_PREFIX}{modules[target.path][layer]}"
                tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[layer, :rank])
                tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[layer, :, :rank])
    text = json.dumps(_peft_config(spec, modules, base_model, dropout), indent=2, ensure_ascii=False) + "\n"
    config_file = folder / CONFIG_FILE
    if config_file.is_file() and config_file.read_bytes() != text.encode():
        config_file.unlink()
    for leftover in folder.glob(f".{WEIGHTS_FILE}.*"):  # of a write that was killed
        leftover.unlink()
    write_safetensors(folder / WEIGHTS_FILE, tensors)
    write_text(config_file, text)


def read_adapter(folder: Path, config: ModelConfig) -> tuple[Adapters, AdapterSpec]:
    """Read a PEFT directory for a model of this configuration.

    Raises:
        InputError: if files are missing, the adapter uses something that is not plain LoRA, or its modules or shapes
            are not this model's.
    """
    raw = read_json(folder / CONFIG_FILE)
    _refuse_other_kinds(raw, folder / CONFIG_FILE)
    factors = _read_factors(folder / WEIGHTS_FILE)
    where = {
        module: (path, layer) for path, names in linear_modules(config).items() for layer, module in enumerate(names)
    }
    if unknown := sorted(factors.keys() - where.keys()):
        raise InputError(
            f"{folder / WEIGHTS_FILE}: {unknown[0]} is no linear map of this model; use the adapter's own base"
        )
    by_path: dict[str, dict[int, tuple[np.ndarray, np.ndarray, float]]] = {}
    for module, (a, b) in sorted(factors.items()):
        path, layer = where[module]
        outputs, inputs = weight_table(config)[f"{path}.weight"].shape
        if a.shape[1:] != (inputs,) or b.shape[:1] != (outputs,) or a.shape[0] != b.shape[1]:
            raise InputError(
                f"{folder / WEIGHTS_FILE}: {module} has A {list(a.shape)} and B {list(b.shape)}, but this model's "
                f"weight is [{outputs}, {inputs}]; use the adapter's own base model"
            )
        alpha = float(_pattern(raw.get("alpha_pattern"), module, raw.get("lora_alpha", 8)))
        declared = int(_pattern(raw.get("rank_pattern"), module, raw.get("r", 8)))
        if declared != a.shape[0]:
            raise InputError(f"{folder / CONFIG_FILE}: says rank {declared} for {module}, but its A is {list(a.shape)}")
        by_path.setdefault(path, {})[layer] = (a, b, alpha)
    rslora = bool(raw.get("use_rslora"))
    stacked = {path: _stack(path, layers, config, rslora) for path, layers in by_path.items()}
    order = [path for path in linear_modules(config) if path in stacked]
    return {path: stacked[path][0] for path in order}, tuple(stacked[path][1] for path in order)


def _peft_config(spec: AdapterSpec, modules: dict[str, list[str]], base_model: str, dropout: float) -> dict[str, Any]:
    adapted = [
        (modules[target.path][layer], rank, alpha)
        for target in spec
        for layer, (rank, alpha) in enumerate(zip(target.ranks, target.alphas, strict=True))
        if rank
    ]
    rank, alpha = adapted[0][1], adapted[0][2]
    wanted = {module for module, _, _ in adapted}
    ends = {module.rpartition(".")[2] for module in wanted}
    by_end = {module for names in modules.values() for module in names if module.rpartition(".")[2] in ends}
    target_modules = sorted(ends) if by_end == wanted else "|".join(re.escape(module) for module, _, _ in adapted)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": target_modules,
        "rank_pattern": {module: r for module, r, _ in adapted if r != rank},
        "alpha_pattern": {module: a for module, _, a in adapted if a != alpha},
        "use_rslora": any(target.rslora for target in spec),
        "fan_in_fan_out": False,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _refuse_other_kinds(raw: dict[str, Any], path: Path) -> None:
    if raw.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {raw.get('peft_type')!r}; only 'LORA' adapters can be read")
    if raw.get("bias", "none") != "none":
        raise InputError(f"{path}: bias is {raw['bias']!r}; only adapters with bias 'none' can be read")
    if raw.get("init_lora_weights", True) not in _PLAIN_INITIALIZATIONS:
        raise InputError(
            f"{path}: init_lora_weights {raw['init_lora_weights']!r} also changes the base weights; "
            "convert the adapter to plain LoRA with PEFT first"
        )
    for key, value in sorted(raw.items()):
        if key not in _UNDERSTOOD and value:
            raise InputError(
                f"{path}: {key} = {value!r} is not supported; only plain LoRA (r, alpha, patterns, rsLoRA)"
            )


def _read_factors(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Module name -> (A, B) in float32."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; an adapter directory holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    found: dict[str, dict[str, np.ndarray]] = {}
    tensors = open_safetensors([path])
    for name in sorted(tensors.names):
        match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match is None:
            raise InputError(f"{path}: unexpected tensor {name}; only lora_A and lora_B can be read")
        found.setdefault(match[1], {})[match[2]] = tensors.read(name).astype(np.float32)
    if not found:
        raise InputError(f"{path}: holds no adapter")
    for module, pair in found.items():
        if len(pair) != 2 or any(value.ndim != 2 for value in pair.values()):
            raise InputError(f"{path}: {module} must have one lora_A and one lora_B matrix")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the module's name."""
    for key, value in (patterns or {}).items():
        if ends_with(key, module):
            return value
    return default


def _stack(
    path: str, layers: dict[int, tuple[np.ndarray, np.ndarray, float]], config: ModelConfig, rslora: bool
) -> tuple[dict[str, jax.Array], TargetSpec]:
    outputs, inputs = weight_table(config)[f"{path}.weight"].shape
    ranks = tuple(layers[layer][0].shape[0] if layer in layers else 0 for layer in range(config.num_layers))
    alphas = tuple(layers[layer][2] if layer in layers else 0.0 for layer in range(config.num_layers))
    a = np.zeros((config.num_layers, max(ranks), inputs), np.float32)
    b = np.zeros((config.num_layers, outputs, max(ranks)), np.float32)
    for layer, (layer_a, layer_b, _) in layers.items():
        a[layer, : ranks[layer]], b[layer, :, : ranks[layer]] = layer_a, layer_b
    return {"a": jnp.asarray(a), "b": jnp.asarray(b)}, TargetSpec(path, ranks, alphas, rslora)
