"""`e2wm sequence`: tasks one after another on one adapter, and what each does to all of them.

    for each task    train (a run directory of `e2wm train`) -> losses on all tests -> regularizer.next_task -> ...

With --resume the same way is gone again: a finished task's run gives its last state at once, from its checkpoint, and
the regularizer's state behind it is computed anew, which gives the same numbers; only losses are not measured twice.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.data.loader import Loader
from e2wm_jax.data.tokenizer import open_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.command.corpus import Corpus
from e2wm_jax.fisher.storage import Fisher
from e2wm_jax.lora import Adapters
from e2wm_jax.models.weights import Model, read_config
from e2wm_jax.regularizers.catalogue import REGULARIZERS
from e2wm_jax.regularizers.regularizer import Material, State, same_state
from e2wm_jax.running.progress import say
from e2wm_jax.storage.files import read_json, write_json
from e2wm_jax.storage.model_files import locate
from e2wm_jax.train.directory import (
    CONFIG_FILE,
    CONTENT,
    START,
    check_length,
    check_same,
    content_of,
    mixture_content,
    resolved,
)
from e2wm_jax.train.feed import open_data, read_documents, read_text, say_special_tokens
from e2wm_jax.train.parts import check_adapter, check_fisher, load_all
from e2wm_jax.train.run import (
    ADAPTER,
    REPORT_FILE,
    Inputs,
    make_ready,
    note_rows,
    options,
    publish,
    train_task,
)
from e2wm_jax.train.sequence.page import write_report
from e2wm_jax.train.sequence.scores import scores
from e2wm_jax.train.sequence.settings import SequenceSettings, check_settings, task_settings
from e2wm_jax.train.settings import TrainSettings
from e2wm_jax.train.step import StepConfig
from e2wm_jax.train.watch.samples import Prompts, encoded_prompts
from e2wm_jax.train.watch.validation import held_out_rows, validation_loss

RECORD_FILE = "sequence.json"


@dataclass(frozen=True)
class _Texts:
    """What a sequence reads besides its tasks, in tokens."""

    corpus: Corpus | None  # --regularizer-data
    validation: Sequence[Row]
    tests: tuple[Sequence[Row], ...]  # of each task
    general: Sequence[Row]  # --text; may be empty
    prompts: Prompts  # --prompt


@dataclass(frozen=True)
class _Sequence:
    """What the tasks of a sequence have in common."""

    settings: SequenceSettings
    config: StepConfig
    model: Model
    fisher: Fisher | None  # of --fisher
    tokenizer: Any
    texts: _Texts
    content: dict[str, Any]  # digests of all that was read
    record: dict[str, Any]  # of `RECORD_FILE`; grows

    def material(self, settings: TrainSettings, adapters: Adapters, rows: Sequence[Row]) -> Material:
        """What the regularizer reads where the sequence stands."""
        return Material(self.config.scope, self.model.params, adapters, self.fisher, rows, options(settings))


def run(settings: SequenceSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings, files or an output directory of another sequence, before any training.
        FloatingPointError: if loss or gradient stop being numbers.
    """
    check_settings(settings)
    mesh = make_ready(settings, longer=False)
    files = locate(settings.model)
    tokenizer, shape = open_tokenizer(files), read_config(files)
    check_adapter(settings, shape)
    check_fisher(settings, shape)
    # All data first, the last task's too: a mistake there should not show after days.
    say_special_tokens(settings, tokenizer)
    texts, content = _read_texts(settings, tokenizer, shape)
    for index in range(len(settings.tasks)):
        task = task_settings(settings, index)
        with open_data(task, tokenizer, shape, mesh) as (loader, _):
            check_length(task, loader.steps_per_epoch)
        content[f"tasks {index + 1}"] = mixture_content(task.data, "--tasks")
    check_same(settings, content)

    model, adapters, fisher, config = load_all(settings, files, mesh, content)
    record = _open_record(settings, content)
    sequence = _Sequence(settings, config, model, fisher, tokenizer, texts, content, record)

    _measure(sequence, 0, adapters)
    general = () if texts.corpus is None else texts.corpus.rows
    state = REGULARIZERS[settings.regularizer].prepare(sequence.material(settings, adapters, general))
    for index in range(len(settings.tasks)):
        adapters, state = _learn(sequence, index, adapters, state)
    publish(settings, adapters, config, model)
    _write(settings, record)
    return {name: value for name, value in record.items() if name != "scores"} | {
        **record["scores"],
        "adapter": str(settings.out / ADAPTER),
    }


def show(result: dict[str, Any]) -> None:
    """The matrix of losses as a table, and what it comes to."""
    names, texts = result["tasks"], result["text"]
    columns = [*names, *(["general text"] if texts else [])]
    facts = ("average_loss", "forgetting", "backward_transfer", "forward_transfer", "adapter")
    width = max(map(len, (*facts, *(f"after {name}" for name in names))))
    print(" " * width, *(f"{name:>12}" for name in columns))
    for number, row in enumerate(result["losses"]):
        values = [*row, *([texts[number]] if texts else [])]
        moment = f"after {names[number - 1]}" if number else "before"
        print(f"{moment:<{width}}", *(f"{value:12.4f}" for value in values))
    for name in facts:
        value = result[name]
        print(f"{name:<{width}}", f"{value:12.4f}" if isinstance(value, float) else value)


def _read_texts(settings: SequenceSettings, tokenizer: Any, config: ModelConfig) -> tuple[_Texts, dict[str, Any]]:
    """And digests of them, by name."""
    corpus = read_text(settings, tokenizer, config)
    content = content_of(settings, corpus)
    validation: list[Row] = []
    if settings.validation:
        validation = held_out_rows(settings, tokenizer, config, settings.validation, "--validation")
    tests = tuple(held_out_rows(settings, tokenizer, config, text, "--tests") for text in settings.tests)
    content |= {f"tests {number}": mixture_content(text, "--tests") for number, text in enumerate(settings.tests, 1)}
    general: Sequence[Row] = ()
    if settings.text:
        found = read_documents(settings, tokenizer, config, settings.text, settings.text_samples, "--text")
        general = found.rows
        content["text"] = found.digest()
    return _Texts(corpus, validation, tests, general, encoded_prompts(settings, tokenizer, config)), content


def _learn(sequence: _Sequence, index: int, adapters: Adapters, prepared: State) -> tuple[Adapters, State]:
    """One task: its run, the losses behind it, and the regularizer's state for the next one."""
    settings, texts = sequence.settings, sequence.texts
    task, last = task_settings(settings, index), len(settings.tasks) - 1
    regularizer = REGULARIZERS[settings.regularizer]
    content = content_of(task, texts.corpus) | {START: _digest(adapters)}
    content |= {name: sequence.content[name] for name in ("model", "fisher") if name in sequence.content}
    check_same(task, content)
    say(f"{settings.labels[index]}: task {index + 1} of {last + 1}")
    with open_data(task, sequence.tokenizer, sequence.model.config, sequence.config.scope.mesh) as (loader, kept):
        note_rows(task, loader, content)
        inputs = Inputs(loader, kept, texts.corpus, texts.validation, content, texts.prompts)
        state, summary = train_task(task, sequence.config, sequence.model, adapters, lambda: prepared, inputs)
        _measure(sequence, index + 1, state.adapters, summary)
        if index < last and regularizer.next_task is not same_state:
            material = sequence.material(task, state.adapters, _importance_rows(settings, task, loader))
            prepared = regularizer.next_task(material, prepared, state.path)
    return state.adapters, prepared


def _importance_rows(settings: SequenceSettings, task: TrainSettings, loader: Loader) -> Sequence[Row]:
    """A finished task's own rows, or so many of them as --importance-samples says."""
    sources: list[tuple[Any, int]] = [(loader.rows, len(loader.rows))]
    sources += [(online, online.task.items_per_epoch) for online in loader.online]
    places = [(rows, number) for rows, size in sources for number in range(size)]
    if settings.importance_samples is not None and settings.importance_samples < len(places):
        drawn = np.random.default_rng(task.seed).choice(len(places), settings.importance_samples, replace=False)
        places = [places[number] for number in sorted(drawn)]
    return [rows[number] for rows, number in places]


def _open_record(settings: SequenceSettings, content: dict[str, Any]) -> dict[str, Any]:
    """The record so far; settings and digests are written beside it."""
    path = settings.out / RECORD_FILE
    if settings.resume and path.is_file():
        record = read_json(path)
        if not all(isinstance(record.get(key), list) for key in ("tasks", "losses", "text", "runs")):
            raise InputError(f"{path}: is not as `e2wm sequence` wrote it; restore it, or give a new --out")
        return record
    if jax.process_index() == 0:
        settings.out.mkdir(parents=True, exist_ok=True)
        write_json(settings.out / CONFIG_FILE, resolved(settings) | {CONTENT: content})
    return {"tasks": list(settings.labels), "losses": [], "text": [], "runs": [], "scores": {}}


def _measure(sequence: _Sequence, done: int, adapters: Adapters, summary: dict[str, Any] | None = None) -> None:
    """The losses after `done` tasks into the record, its file and the report, if they are not there already."""
    settings, texts, record = sequence.settings, sequence.texts, sequence.record
    if len(record["losses"]) > done:
        return

    def loss(rows: Sequence[Row]) -> float:
        limits = settings.batch_size, settings.max_length
        return validation_loss(sequence.config.scope, sequence.model.params, adapters, rows, *limits)

    record["losses"].append([loss(rows) for rows in texts.tests])
    record["text"] += [loss(texts.general)] if texts.general else []
    record["runs"] += [] if summary is None else [summary]
    if done == len(settings.tasks):
        record["scores"] = scores(record["losses"])
    _write(settings, record)


def _write(settings: SequenceSettings, record: dict[str, Any]) -> None:
    """The record and the report of it; of several hosts the first does."""
    if jax.process_index() == 0:
        write_json(settings.out / RECORD_FILE, record)
        write_report(settings.out / REPORT_FILE, record, resolved(settings))


def _digest(adapters: Adapters) -> str:
    """Of all their bytes."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(adapters):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()
