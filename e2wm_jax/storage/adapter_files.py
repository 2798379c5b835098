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
from e2wm_jax.lora import Adapters, AdapterSpec, TargetSpec, linear_modules
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.storage.adapter_config import MERGE, read_config
from e2wm_jax.storage.files import write_text
from e2wm_jax.storage.tensor_files import READABLE, open_bins, open_safetensors, write_safetensors

_PREFIX = "base_model.model."
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_OLD_WEIGHTS_FILE = "adapter_model.bin"


def write_adapter(
    folder: Path,
    adapters: Adapters,
    spec: AdapterSpec,
    config: ModelConfig,
    *,
    base_model: str,
    revision: str | None = None,
    dropout: float,
) -> None:
    """Write a PEFT directory; at each moment one that has a configuration holds a whole adapter.

    ``base_model`` and ``revision`` are where PEFT finds the base (`model_files.base_reference`).

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
    described = {
        **_peft_config(spec, modules, dropout),
        "base_model_name_or_path": base_model,
        "revision": revision,
    }
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
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
        InputError: if files are missing, the adapter uses something that is not plain LoRA, its modules or shapes are
            not this model's or not those that it says it adapts, or a value is not finite.
    """
    if not (folder / CONFIG_FILE).is_file():
        inner = (folder / "adapter" / CONFIG_FILE).is_file()
        hint = f"the adapter of this run is {folder / 'adapter'}" if inner else "give what `e2wm train` or PEFT wrote"
        raise InputError(f"--adapter: {folder / CONFIG_FILE}: no such file; {hint}")
    said = read_config(folder / CONFIG_FILE)
    file, factors = _read_factors(folder, config)
    where = {
        module: (path, layer) for path, names in linear_modules(config).items() for layer, module in enumerate(names)
    }
    if unknown := sorted(factors.keys() - where.keys()):
        raise InputError(f"{file}: {unknown[0]} is no linear map of this model; use the adapter's own base")
    targets = {module for module in where if said.targets(module)}
    for module in sorted(targets ^ factors.keys()):
        lacks = "its weights are not here" if module in targets else "PEFT leaves these weights out"
        adapts = "adapts" if module in targets else "does not adapt"
        raise InputError(f"{file}: {CONFIG_FILE} {adapts} {module}, and {lacks}; save the adapter again")
    by_path: dict[str, dict[int, tuple[np.ndarray, np.ndarray, float]]] = {}
    for module, (a, b) in sorted(factors.items()):
        path, layer = where[module]
        outputs, inputs = weight_table(config)[f"{path}.weight"].shape
        if a.shape[1:] != (inputs,) or b.shape[:1] != (outputs,) or a.shape[0] != b.shape[1]:
            raise InputError(
                f"{file}: {module} has A {list(a.shape)} and B {list(b.shape)}, but this model's "
                f"weight is [{outputs}, {inputs}]; use the adapter's own base model"
            )
        if said.rank(module) != a.shape[0]:
            raise InputError(
                f"{folder / CONFIG_FILE}: says rank {said.rank(module)} for {module}, but its A is {list(a.shape)}"
            )
        by_path.setdefault(path, {})[layer] = (a, b, said.alpha(module))
    stacked = {path: _stack(path, layers, config, said.rslora) for path, layers in by_path.items()}
    order = [path for path in linear_modules(config) if path in stacked]
    return {path: stacked[path][0] for path in order}, tuple(stacked[path][1] for path in order)


def _peft_config(spec: AdapterSpec, modules: dict[str, list[str]], dropout: float) -> dict[str, Any]:
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


def _read_factors(folder: Path, config: ModelConfig) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The file that PEFT reads, and of it module name -> (A, B) in float32."""
    path = folder / WEIGHTS_FILE
    if not path.is_file() and (folder / _OLD_WEIGHTS_FILE).is_file():  # of PEFT before 0.6
        path = folder / _OLD_WEIGHTS_FILE
    elif not path.is_file():
        raise InputError(f"{path}: no such file; an adapter directory holds {CONFIG_FILE} and {WEIGHTS_FILE}")
    tensors = open_safetensors([path]) if path.name == WEIGHTS_FILE else open_bins([path])
    found: dict[str, dict[str, np.ndarray]] = {}
    others = _other_modules(config)
    for name, (shape, dtype, _) in sorted(tensors.headers.items()):
        for module, kind in others.items():
            if name.startswith(f"{_PREFIX}{module}."):
                raise InputError(
                    f"{path}: {name} changes {module}, {kind}; only the linear layers of blocks can be adapted: {MERGE}"
                )
        match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        if match is None:
            raise InputError(f"{path}: unexpected tensor {name}; only lora_A and lora_B of the layers can be read")
        if 0 in shape:
            raise InputError(
                f"{path}: {name} is empty, of shape {list(shape)}, as saved from one part of a sharded model; "
                "gather the weights and save the adapter again"
            )
        if dtype not in READABLE:
            raise InputError(f"{path}: {name} is of type {dtype}; supported: {', '.join(READABLE)}")
        value = tensors.read(name).astype(np.float32)
        if not np.isfinite(value).all():
            raise InputError(
                f"{path}: {name} has values that are not finite (NaN or infinite), as after a training that diverged; "
                "give an adapter from before"
            )
        found.setdefault(match[1], {})[match[2]] = value
    if not found:
        raise InputError(f"{path}: holds no adapter")
    for module, pair in found.items():
        if len(pair) != 2 or any(value.ndim != 2 for value in pair.values()):
            raise InputError(f"{path}: {module} must have one lora_A and one lora_B matrix")
    return path, {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def _other_modules(config: ModelConfig) -> dict[str, str]:
    """Name of each module that is no linear layer of a block -> what it is."""
    found = {"lm_head": "the output head", "embed_out": "the output head"}  # of tied embeddings too
    for spec in weight_table(config).values():
        if spec.stacked and (len(spec.shape) == 2 or not spec.hf.endswith(".weight")):
            continue
        kind = "a layer norm" if len(spec.shape) == 1 else "a linear layer outside the blocks"
        if spec.axes[0] in ("vocab", "positions"):
            kind = "an embedding"
        for layer in range(config.num_layers if spec.stacked else 1):
            found.setdefault(spec.hf.format(layer).rpartition(".")[0], kind)
    return found


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
