"""Model, adapters, Fisher and step of a run, from its settings."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from e2wm_jax import lora
from e2wm_jax.config import LoraConfig, ModelConfig
from e2wm_jax.errors import InputError
from e2wm_jax.fisher import files as fisher_files
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.lora import Adapters, Scope
from e2wm_jax.models import spread, weights
from e2wm_jax.models.quantized import compute_dtype, quantizer
from e2wm_jax.models.weights import Model
from e2wm_jax.regularizers.quadratic import rowmax127
from e2wm_jax.running.progress import busy
from e2wm_jax.storage.adapter_files import read_adapter
from e2wm_jax.storage.model_files import ModelFiles
from e2wm_jax.train.directory import check_same, fisher_digest
from e2wm_jax.train.settings import TrainSettings
from e2wm_jax.train.step import StepConfig


def check_adapter(settings: TrainSettings, config: ModelConfig) -> None:
    """That --adapter fits the model, and --lora.* says nothing else than it.

    Raises:
        InputError: naming file or flag.
    """
    if settings.adapter is None:
        return
    _, spec = read_adapter(settings.adapter, config)
    said = [field.name for field in dataclasses.fields(LoraConfig) if field.name != "dropout"]
    said = [name for name in said if getattr(settings.lora, name) != getattr(LoraConfig(), name)]
    if said and lora.adapter_spec(config, settings.lora) != spec:
        raise InputError(
            f"--lora.{said[0].replace('_', '-')} {getattr(settings.lora, said[0])}: --adapter {settings.adapter} is of "
            "another rank, alpha or choice of targets, and goes on with it; leave --lora.* out, but for the dropout"
        )


def check_fisher(settings: TrainSettings, config: ModelConfig) -> None:
    """That --fisher has what the adapters need of it.

    Raises:
        InputError: naming what is missing.
    """
    if settings.fisher is None:
        return
    adapter = settings.adapter
    spec = lora.adapter_spec(config, settings.lora) if adapter is None else read_adapter(adapter, config)[1]
    fisher_files.check_fisher(settings.fisher, config, [f"{target.path}.weight" for target in spec])


def load_all(
    settings: TrainSettings, files: ModelFiles, mesh: Mesh | None, content: dict[str, Any]
) -> tuple[Model, Adapters, Fisher | None, StepConfig]:
    """Model, first adapters, Fisher if there is one, and step; their digests go into `content`.

    Raises:
        InputError: if they do not fit each other, or with --resume are not those of the run.
    """
    model = load_model(settings, files, mesh)
    content["model"] = model.fingerprint
    check_same(settings, content)
    adapters, spec = start(settings, model)
    fisher = load_fisher(settings, model, spec)
    if fisher is not None:
        content["fisher"] = fisher_digest(fisher)
        check_same(settings, content)
    return model, adapters, fisher, step_config(settings, model, spec, mesh)


def load_model(settings: TrainSettings, files: ModelFiles, mesh: Mesh | None) -> Model:
    """The frozen base, spread over the mesh."""
    base = settings.base_dtype
    with busy("loading the model"):
        model = weights.load(files, compute_dtype(base), mesh=mesh, transform=quantizer(base))
    if mesh is None:
        return model
    return dataclasses.replace(model, params=spread.place(model.config, model.params, mesh))


def start(settings: TrainSettings, model: Model) -> tuple[Adapters, lora.AdapterSpec]:
    """The adapters before the first step: those of --adapter, or fresh ones."""
    if settings.adapter is not None:
        return read_adapter(settings.adapter, model.config)
    spec = lora.adapter_spec(model.config, settings.lora)
    return lora.initialize(model.config, spec, jax.random.key(settings.seed)), spec


def load_fisher(settings: TrainSettings, model: Model, spec: lora.AdapterSpec) -> Fisher | None:
    """--fisher, as its scale has it."""
    if settings.fisher is None:
        return None
    with busy("reading the Fisher"):
        values = fisher_files.read_fisher(settings.fisher, model, [f"{target.path}.weight" for target in spec])
    if settings.fisher_scale == "rowmax127":
        return {path: rowmax127(value) for path, value in values.items()}
    return values


def step_config(settings: TrainSettings, model: Model, spec: lora.AdapterSpec, mesh: Mesh | None) -> StepConfig:
    """What is fixed for the compiled step."""
    return StepConfig(
        scope=Scope(model.config, spec, mesh, settings.penalty_kernel, settings.remat),
        regularizer=settings.regularizer,
        dropout=settings.lora.dropout,
        optimizer=settings.optimizer,
        clip=settings.clip,
    )
