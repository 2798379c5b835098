"""`e2wm train`: settings -> data, model, regularizer, state -> loop -> adapter.  Reads top to bottom."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from e2wm_jax import __version__, lora
from e2wm_jax.adapter_files import read_adapter, write_adapter
from e2wm_jax.checkpoint import Checkpoints
from e2wm_jax.data.loader import Loader
from e2wm_jax.data.source import online_tasks, parse_mixture
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json, sha256, write_json
from e2wm_jax.fisher.corpus import Corpus
from e2wm_jax.fisher.files import read_fisher
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.kernels.weighted_square import check_implementation
from e2wm_jax.lora import Adapters
from e2wm_jax.model_files import ModelFiles, locate
from e2wm_jax.models import spread, weights
from e2wm_jax.models.quantized import compute_dtype, quantizer
from e2wm_jax.models.weights import Model
from e2wm_jax.progress import say
from e2wm_jax.regularizers.catalogue import REGULARIZERS
from e2wm_jax.regularizers.quadratic import rowmax127
from e2wm_jax.regularizers.regularizer import Material, Options, Scope
from e2wm_jax.sharding import join_hosts, make_mesh
from e2wm_jax.train.feed import open_data, read_text, text_loader
from e2wm_jax.train.loop import METRICS_FILE, Job, run_loop
from e2wm_jax.train.report import write_report
from e2wm_jax.train.schedules import learning_rates, strengths
from e2wm_jax.train.settings import TrainSettings, check, check_mesh
from e2wm_jax.train.step import StepConfig, initial_state
from e2wm_jax.train.trackers import check as check_trackers
from e2wm_jax.train.trackers import trackers

CONFIG_FILE, REPORT_FILE = "config.json", "report.html"
CHECKPOINTS, ADAPTER = "checkpoints", "adapter"
# How a run is watched, kept and continued, and not what it computes: these may differ when it is resumed.
_FREE = (
    *("out", "workers", "keep_checkpoints", "keep_best", "on_nonfinite", "trackers", "profile_steps"),
    *("mesh", "distributed", "penalty_kernel", "remat"),
)
_READ = "content"  # in config.json: digests of all that was read


def run(settings: TrainSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings, files or an output directory of another run, before any training.
        FloatingPointError: if loss or gradient stop being numbers.
    """
    check(settings)
    check_implementation("--penalty-kernel", settings.penalty_kernel)
    check_trackers(settings.trackers)
    if settings.distributed:
        join_hosts()
    mesh = _mesh(settings)
    _check_out(settings)

    # Data first: most mistakes are there, and finding them needs no weights.
    files = locate(settings.model)
    tokenizer = load_tokenizer(files)
    corpus = read_text(settings, tokenizer)
    content = _content(settings, corpus)
    _check_same(settings, content)
    with open_data(settings, tokenizer, mesh) as (loader, kept):
        return _train(settings, files, mesh, loader, kept, corpus, content)


def load_model(settings: TrainSettings, files: ModelFiles, mesh: Mesh | None) -> Model:
    """The frozen base, spread over the mesh."""
    base = settings.base_dtype
    model = weights.load(files, compute_dtype(base), mesh=mesh, transform=quantizer(base))
    if mesh is None:
        return model
    return dataclasses.replace(model, params=spread.place(model.config, model.params, mesh))


def _train(
    settings: TrainSettings,
    files: ModelFiles,
    mesh: Mesh | None,
    loader: Loader,
    kept: list[int],
    corpus: Corpus | None,
    content: dict[str, str],
) -> dict[str, Any]:
    model = load_model(settings, files, mesh)
    content["model"] = model.fingerprint
    _check_same(settings, content)
    adapters, spec = _start(settings, model)
    fisher = _fisher(settings, model, spec)
    if fisher is not None:
        content["fisher"] = _digest(fisher)
        _check_same(settings, content)
    config = _step_config(settings, model, spec, mesh)
    steps = settings.steps or settings.epochs * loader.steps_per_epoch
    rows = () if corpus is None else corpus.rows
    material = Material(config.scope, model.params, adapters, fisher, rows, options(settings))
    each_step = REGULARIZERS[settings.regularizer].token_penalty is not None

    first = jax.process_index() == 0
    if first:
        settings.out.mkdir(parents=True, exist_ok=True)
        write_json(settings.out / CONFIG_FILE, _resolved(settings) | {_READ: content})
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("run directory")
    with (
        Checkpoints(settings.out / CHECKPOINTS, keep=settings.keep_checkpoints, keep_best=settings.keep_best) as saves,
        trackers(settings.trackers if first else (), settings.out, _resolved(settings)) as log,
    ):
        state = initial_state(config, adapters)
        found = saves.newest(state) if settings.resume else None
        if found is not None:
            state = found.state
            say(f"resuming after step {found.step} of {steps}")
        job = Job(
            settings=settings,
            config=config,
            model=model,
            constants=REGULARIZERS[settings.regularizer].prepare(material),
            loader=loader,
            text=text_loader(settings, corpus, mesh) if corpus is not None and each_step else None,
            kept=kept,
            rates=learning_rates(settings.schedule, settings.lr, steps, settings.warmup_steps),
            strengths=strengths(settings.strength_schedule, settings.strength, steps),
            validate=None,
            publish=lambda adapters: _publish(settings, adapters, config, model),
            log=log,
        )
        state, summary = run_loop(job, state, saves)
    _publish(settings, state.adapters, config, model)
    if first:
        write_report(settings.out / REPORT_FILE, settings.out / METRICS_FILE, summary, _resolved(settings))
    return {**summary, "adapter": str(settings.out / ADAPTER)}


def options(settings: TrainSettings) -> Options:
    """The numbers that some regularizers have."""
    return Options(
        decay=settings.decay,
        damping=settings.damping,
        batch_size=settings.regularizer_batch_size,
        max_length=settings.max_length,
        seed=settings.seed,
    )


def _mesh(settings: TrainSettings) -> Mesh | None:
    if settings.mesh is None and not settings.distributed:
        return None
    text = settings.mesh or f"data={jax.device_count()}"
    mesh = make_mesh(text)
    check_mesh(settings, text)
    return mesh


def _start(settings: TrainSettings, model: Model) -> tuple[Adapters, lora.AdapterSpec]:
    if settings.adapter is not None:
        return read_adapter(settings.adapter, model.config)
    spec = lora.adapter_spec(model.config, settings.lora)
    return lora.initialize(model.config, spec, jax.random.key(settings.seed)), spec


def _fisher(settings: TrainSettings, model: Model, spec: lora.AdapterSpec) -> Fisher | None:
    if settings.fisher is None:
        return None
    values = read_fisher(settings.fisher, model, [f"{target.path}.weight" for target in spec])
    if settings.fisher_scale == "rowmax127":
        return {path: rowmax127(value) for path, value in values.items()}
    return values


def _step_config(settings: TrainSettings, model: Model, spec: lora.AdapterSpec, mesh: Mesh | None) -> StepConfig:
    return StepConfig(
        scope=Scope(model.config, spec, mesh, settings.penalty_kernel, settings.remat),
        regularizer=settings.regularizer,
        dropout=settings.lora.dropout,
        optimizer=settings.optimizer,
        clip=settings.clip,
    )


def _publish(settings: TrainSettings, adapters: Adapters, config: StepConfig, model: Model) -> None:
    """Write the adapter as users read it; of several hosts the first does."""
    if jax.process_index() != 0:
        return
    write_adapter(
        settings.out / ADAPTER,
        jax.tree.map(np.asarray, adapters),
        config.scope.spec,
        model.config,
        base_model=settings.model,
        dropout=settings.lora.dropout,
    )


def _resolved(settings: TrainSettings) -> dict[str, Any]:
    """The settings as JSON; `resume` is how a run is continued, not what it is."""
    record = dataclasses.asdict(settings)
    del record["resume"]
    return {key: _as_json(value) for key, value in record.items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _content(settings: TrainSettings, corpus: Corpus | None) -> dict[str, str]:
    """Digests of the files that a run reads.  Online data are what this version makes of their names and scenes."""
    mixture = parse_mixture(settings.data)
    tasks = [task for _, task in online_tasks(mixture)]
    paths = [path for _, path in mixture if isinstance(path, Path)]
    paths += [Path(scene) for task in tasks for scene in task.scenes]
    found = {str(path): sha256(path) for path in paths if path.is_file()}
    found |= {task.name: f"made by e2wm_jax {__version__}" for task in tasks}
    if corpus is not None:
        found[" ".join(settings.regularizer_data)] = corpus.digest()
    if settings.adapter is not None:
        files = sorted(path for path in settings.adapter.iterdir() if path.is_file())
        found[str(settings.adapter)] = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()
    return found


def _digest(fisher: Fisher) -> str:
    """Of names, shapes, kinds and evenly spaced values of F."""
    digest = hashlib.sha256()
    for path, value in sorted(fisher.items()):
        for leaf in jax.tree.leaves(value):
            flat = leaf.reshape(-1)
            digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
            digest.update(np.asarray(flat[:: max(1, flat.size // 4096)]).tobytes())
    return digest.hexdigest()


def _check_out(settings: TrainSettings) -> None:
    """A fresh directory, or with --resume one of the same settings."""
    out, config = settings.out, settings.out / CONFIG_FILE
    if not settings.resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--out {out}: already holds a run; continue it with --resume, or give a new directory")
        return
    if not config.is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--resume: {out} holds no {CONFIG_FILE}, so no run; give the directory of a run")
        return  # never started: starts now
    earlier = read_json(config)
    for key, value in _resolved(settings).items():
        if key not in _FREE and earlier.get(key) != value:
            raise InputError(
                f"--resume: {out} was run with {key} = {earlier.get(key)!r}, not {value!r}; "
                "repeat its settings, or give a new --out"
            )


def _check_same(settings: TrainSettings, content: dict[str, str]) -> None:
    """With --resume: what was read is what the run read."""
    config = settings.out / CONFIG_FILE
    if not settings.resume or not config.is_file():
        return
    earlier = read_json(config).get(_READ, {})
    for name, digest in content.items():
        if earlier.get(name) != digest:
            what = f"the {name}" if name in ("model", "fisher") else name
            raise InputError(
                f"--resume: {what} has changed since {settings.out} was run; restore it, or give a new --out"
            )
