"""`e2wm train`: settings -> data, model, regularizer, state -> loop -> adapter.  Reads top to bottom."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from e2wm_jax.data.batch import Row
from e2wm_jax.data.loader import Loader
from e2wm_jax.data.tokenizer import open_tokenizer
from e2wm_jax.fisher.command.corpus import Corpus
from e2wm_jax.kernels.weighted_square import check_implementation
from e2wm_jax.lora import Adapters
from e2wm_jax.models import weights
from e2wm_jax.models.weights import Model
from e2wm_jax.regularizers.catalogue import REGULARIZERS
from e2wm_jax.regularizers.regularizer import Material, PenaltyOptions, State
from e2wm_jax.running.hosts import sync_hosts
from e2wm_jax.running.progress import say
from e2wm_jax.sharding import join_hosts, make_mesh
from e2wm_jax.storage.adapter_files import write_adapter
from e2wm_jax.storage.checkpoint import Checkpoints
from e2wm_jax.storage.files import write_json
from e2wm_jax.storage.model_files import ModelFiles, base_reference, locate
from e2wm_jax.train.directory import (
    CONFIG_FILE,
    CONTENT,
    LENGTHS,
    check_length,
    check_out,
    check_same,
    content_of,
    resolved,
    rows_digest,
)
from e2wm_jax.train.feed import open_data, read_text, say_special_tokens, text_loader
from e2wm_jax.train.loop import METRICS_FILE, TrainingRun, run_loop
from e2wm_jax.train.page import write_report
from e2wm_jax.train.parts import check_adapter, check_fisher, load_all
from e2wm_jax.train.schedules import learning_rates, strengths
from e2wm_jax.train.settings import TrainSettings, check_mesh, check_settings
from e2wm_jax.train.step import StepConfig, TrainState, initial_state
from e2wm_jax.train.watch.samples import Prompts, encoded_prompts, sampler
from e2wm_jax.train.watch.throughput import Pace, mean_work, peak_flops
from e2wm_jax.train.watch.trackers import Names, trackers
from e2wm_jax.train.watch.trackers import check_trackers as check_trackers
from e2wm_jax.train.watch.validation import held_out_rows, validator

REPORT_FILE, CHECKPOINTS, ADAPTER = "report.html", "checkpoints", "adapter"


class Inputs(NamedTuple):
    """What a run reads besides the model, in tokens."""

    loader: Loader
    kept: list[int]  # for each row of the loader the number of its example in the files
    corpus: Corpus | None  # --regularizer-data
    held_out: Sequence[Row]  # --validation
    content: dict[str, Any]  # digests of all that was read, and the steps of the run
    prompts: Prompts  # --prompt


def run(settings: TrainSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings, files or an output directory of another run, before any training.
        FloatingPointError: if loss or gradient stop being numbers.
    """
    check_settings(settings)
    mesh = make_ready(settings)

    # Data first: most mistakes are there, and finding them needs no weights.
    files = locate(settings.model)
    tokenizer, shape = open_tokenizer(files), weights.read_config(files)
    say_special_tokens(settings, tokenizer)
    corpus = read_text(settings, tokenizer, shape)
    text = settings.validation
    held_out = held_out_rows(settings, tokenizer, shape, text, "--validation") if text else []
    prompts = encoded_prompts(settings, tokenizer, shape)
    check_adapter(settings, shape)
    check_fisher(settings, shape)
    content = content_of(settings, corpus)
    check_same(settings, content)
    with open_data(settings, tokenizer, shape, mesh) as (loader, kept):
        note_rows(settings, loader, content)
        return _train(settings, files, mesh, Inputs(loader, kept, corpus, held_out, content, prompts))


def note_rows(settings: TrainSettings, loader: Loader, content: dict[str, Any]) -> None:
    """What the rows say of a run into `content`: their digest, and the steps that it is to have.

    Raises:
        InputError: if they are not those of the run that is resumed, or more steps than there are to be.
    """
    if len(loader.rows):
        content["tokens"] = rows_digest(loader.rows)
        check_same(settings, content)
    content[LENGTHS] = check_length(settings, loader.steps_per_epoch)


def make_ready(settings: TrainSettings, *, longer: bool = True) -> Mesh | None:
    """Refuse what this machine or the output directory does not allow; join the other hosts; returns the mesh.

    Args:
        longer: `check_out`.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    check_trackers(settings.trackers)
    if settings.distributed:
        join_hosts()  # before anything asks for a device
    check_implementation("--penalty-kernel", settings.penalty_kernel)
    mesh = _mesh(settings)
    check_out(settings, longer=longer)
    return mesh


def _train(settings: TrainSettings, files: ModelFiles, mesh: Mesh | None, inputs: Inputs) -> dict[str, Any]:
    model, adapters, fisher, config = load_all(settings, files, mesh, inputs.content)
    rows = () if inputs.corpus is None else inputs.corpus.rows
    material = Material(config.scope, model.params, adapters, fisher, rows, options(settings))
    prepare = partial(REGULARIZERS[settings.regularizer].prepare, material)
    _, summary = train_task(settings, config, model, adapters, prepare, inputs)
    return {**summary, "adapter": str(settings.out / ADAPTER)}


def train_task(
    settings: TrainSettings,
    config: StepConfig,
    model: Model,
    adapters: Adapters,
    constants: Callable[[], State],
    inputs: Inputs,
) -> tuple[TrainState, dict[str, Any]]:
    """One run directory: train from `adapters` on, or with --resume from its last checkpoint.

    Args:
        constants: gives what the regularizer has prepared; called when the run directory is there.

    Returns:
        The last state, and what `--json` prints but for the adapter's place.
    """
    loader, corpus = inputs.loader, inputs.corpus
    scope = config.scope
    steps = inputs.content[LENGTHS][-1]
    each_step = REGULARIZERS[settings.regularizer].token_penalty is not None

    first, called = jax.process_index() == 0, Names(settings.run_name, settings.project)
    if first:
        settings.out.mkdir(parents=True, exist_ok=True)
        write_json(settings.out / CONFIG_FILE, resolved(settings) | {CONTENT: inputs.content})
    sync_hosts("run directory")
    with (
        Checkpoints(settings.out / CHECKPOINTS, keep=settings.keep_checkpoints, keep_best=settings.keep_best) as saves,
        trackers(settings.trackers if first else (), settings.out, resolved(settings), called) as log,
    ):
        state = initial_state(config, adapters)
        found = saves.newest(state) if settings.resume else None
        if found is not None:
            state = found.state
            say(f"resuming after step {found.step} of {steps}")
        job = TrainingRun(
            settings=settings,
            config=config,
            model=model,
            constants=constants(),
            loader=loader,
            text=text_loader(settings, corpus, loader, scope.mesh) if corpus is not None and each_step else None,
            kept=inputs.kept,
            rates=learning_rates(settings.schedule, settings.lr, steps, settings.warmup_steps),
            strengths=strengths(settings.strength_schedule, settings.strength, steps),
            validate=validator(settings, scope, model.params, inputs.held_out),
            samples=sampler(inputs.prompts, scope, model.params),
            publish=lambda adapters: publish(settings, adapters, config, model),
            log=log,
            pace=_pace(config, loader, steps),
        )
        state, summary = run_loop(job, state, saves)
    if settings.patience is None:
        publish(settings, state.adapters, config, model)
    if first:
        write_report(settings.out / REPORT_FILE, settings.out / METRICS_FILE, summary, resolved(settings))
    return state, summary


def _pace(config: StepConfig, loader: Loader, steps: int) -> Pace:
    """How speed is to be measured: by the work of the files' rows and the peak of the devices, where it is known."""
    mesh = config.scope.mesh
    work = mean_work(config.scope.config, config.scope.spec, ((len(row.ids), row.num_targets) for row in loader.rows))
    peak = peak_flops(jax.devices()[0].device_kind) if work.total else None
    return Pace(steps, flops_per_token=work.total, peak=peak and peak * (1 if mesh is None else mesh.size))


def options(settings: TrainSettings) -> PenaltyOptions:
    """The numbers that some regularizers have."""
    return PenaltyOptions(
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


def publish(settings: TrainSettings, adapters: Adapters, config: StepConfig, model: Model) -> None:
    """Write the adapter as users read it; of several hosts the first does."""
    if jax.process_index() != 0:
        return
    base_model, revision = base_reference(settings.model)
    write_adapter(
        settings.out / ADAPTER,
        jax.tree.map(np.asarray, adapters),
        config.scope.spec,
        model.config,
        base_model=base_model,
        revision=revision,
        dropout=settings.lora.dropout,
    )
