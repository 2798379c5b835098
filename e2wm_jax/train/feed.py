"""What the training loop reads: files, online tasks and general text as loaders, and their batches on the devices."""

import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Batch, Row
from e2wm_jax.data.chat import check_template
from e2wm_jax.data.loader import Loader, StepBatch
from e2wm_jax.data.online.names import OnlineTask
from e2wm_jax.data.online.rows import RowMaker, online_rows
from e2wm_jax.data.source import online_tasks, parse_mixture, read_mixture
from e2wm_jax.data.tokenize import check_ids, encode, say_cut, task_rows
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.command.corpus import Corpus, check_corpus, read_corpus
from e2wm_jax.fisher.files import METADATA_FILE
from e2wm_jax.models.positions import check_online_positions, check_positions
from e2wm_jax.running.progress import say
from e2wm_jax.sharding import row_parts
from e2wm_jax.storage.files import read_json
from e2wm_jax.train.settings import APPEND_EOS, TASK_ROWS, TrainSettings

_ROWS = PartitionSpec(None, ("data", "fsdp"))  # of the [K, B] of a step's batch


def file_rows(
    settings: TrainSettings,
    tokenizer: Any,
    config: ModelConfig,
    mixture: Sequence[tuple[float, Path | OnlineTask]],
    flag: str = "--data",
) -> tuple[list[Row], list[int]]:
    """The rows of the files of a mixture, which was given to `flag`; and for each the number of its example in them.

    Raises:
        InputError: for data that cannot be read, or that the model cannot read.
    """
    if settings.chat:
        check_template(tokenizer)
    examples = read_mixture(mixture, columns=settings.columns, chat=settings.chat)
    rows, kept = task_rows(
        tokenizer,
        examples,
        max_length=settings.max_length,
        special_tokens=settings.special_tokens,
        skip_truncated=settings.skip_truncated,
        append_eos=APPEND_EOS[settings.append_eos],
    )
    if len(kept) < len(examples):
        say(f"{flag}: skipped {len(examples) - len(kept)} of {len(examples)} rows: no answer token within --max-length")
    check_positions(config, rows, lambda number: examples[kept[number]].where)
    check_ids(tokenizer, config.vocab_size, ((examples[n].where, row.ids) for n, row in zip(kept, rows, strict=True)))
    return rows, kept


@contextmanager
def open_data(
    settings: TrainSettings, tokenizer: Any, config: ModelConfig, mesh: Mesh | None = None
) -> Iterator[tuple[Loader, list[int]]]:
    """The loader, and for each row of the files the number of its example in them.

    Raises:
        InputError: for data that cannot be read or made, or that the model cannot read, before the context is entered.
    """
    mixture = parse_mixture(settings.data)
    rows, kept = file_rows(settings, tokenizer, config, mixture)
    say_cut(rows, settings.max_length)
    for _, task in online_tasks(mixture):
        check_online_positions(config, settings.max_length, f"--data: {task.name}")
    maker = RowMaker(
        tokenizer,
        online_tasks(mixture),
        settings.seed,
        settings.max_length,
        special_tokens=settings.special_tokens,
        skip_truncated=settings.skip_truncated,
        append_eos=APPEND_EOS[settings.append_eos],
        chat=settings.chat,
    )
    if settings.pack and online_tasks(mixture) and jax.process_count() > 1:
        raise InputError(
            "--pack: with online data on several hosts their lengths are not known everywhere; leave it out"
        )
    workers = max((os.cpu_count() or 1) - 1, 0) if settings.workers is None else settings.workers
    with online_rows(maker, workers=workers) as online:
        for endless in online:
            endless[0]  # what cannot be made at all fails here, before the model is loaded
        sizes = settings.batch_size, settings.accumulate, settings.max_length
        loader = Loader(rows, *sizes, settings.seed, online=online, pack=settings.pack)
        steps = settings.steps or settings.epochs * loader.steps_per_epoch
        yield _shared(dataclasses.replace(loader, steps=steps), mesh), kept


def say_special_tokens(settings: TrainSettings, tokenizer: Any) -> None:
    """One line if --fisher was made of text with special tokens that this run trains without, or the other way."""
    path = settings.fisher and settings.fisher / METADATA_FILE
    if not path or not path.is_file():
        return
    made_with = read_json(path).get("special_tokens", settings.special_tokens)
    plain, special = (encode(tokenizer, ["a"], special_tokens=flag) for flag in (False, True))
    if made_with != settings.special_tokens and plain != special:
        say(
            f"--fisher {settings.fisher} was made {'with' if made_with else 'without'} the tokenizer's special tokens, "
            f"this run trains {'with' if settings.special_tokens else 'without'} them; "
            f"{'--special-tokens adds them' if made_with else 'leave --special-tokens out'}, or make F anew"
        )


def read_text(settings: TrainSettings, tokenizer: Any, config: ModelConfig) -> Corpus | None:
    """The general text that the regularizer reads, if it does.

    Raises:
        InputError: as `read_documents`.
    """
    data, samples = settings.regularizer_data, settings.regularizer_samples
    if not data or TASK_ROWS in data:
        return None
    return read_documents(settings, tokenizer, config, data, samples, "--regularizer-data")


def read_documents(
    settings: TrainSettings, tokenizer: Any, config: ModelConfig, data: Sequence[str], samples: int | None, flag: str
) -> Corpus:
    """General text, which was given to `flag`.

    Raises:
        InputError: as `read_corpus`, or for a document that the model cannot read.
    """
    corpus = read_corpus(
        tokenizer,
        data,
        samples=samples,
        max_length=settings.max_length,
        special_tokens=settings.special_tokens,
        seed=settings.seed,
    )
    say_cut(corpus.rows, settings.max_length, flag)
    check_corpus(tokenizer, config, corpus)
    return corpus


def text_loader(settings: TrainSettings, corpus: Corpus, tasks: Loader, mesh: Mesh | None = None) -> Loader:
    """General text for the same steps: as many passes, each of --regularizer-batch-size rows."""
    sizes = settings.regularizer_batch_size, settings.accumulate, settings.max_length
    # A step is compiled for each pair of a task batch's length and a text batch's.
    most = max(1, 4 // max(len(tasks.shapes), 2))
    return _shared(Loader(corpus.rows, *sizes, settings.seed, steps=tasks.steps, most_lengths=most), mesh)


def on_devices(steps: Iterable[StepBatch], mesh: Mesh | None = None, *, ahead: int = 2) -> Iterator[StepBatch]:
    """The same batches as device arrays, `ahead` of them at a time: the next one is copied while a step computes."""
    ready: deque[StepBatch] = deque()
    for step in steps:
        ready.append(dataclasses.replace(step, batch=put(step.batch, mesh)))
        if len(ready) == ahead:
            yield ready.popleft()
    yield from ready


def put(batch: Batch, mesh: Mesh | None) -> Batch:
    """Rows [K, B] -> the batch on the device, or split over the mesh; of several hosts each gives its `row_parts`."""
    if mesh is None:
        return jax.device_put(batch)
    sharding, mine = NamedSharding(mesh, _ROWS), row_parts(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def placed(leaf: Any) -> jax.Array:
        share = leaf.shape[1] // len(mine)

        def rows(index: Any) -> Any:
            first = mine.index((index[1].start or 0) // share) * share
            return leaf[:, first : first + share]

        return jax.make_array_from_callback((leaf.shape[0], share * parts, *leaf.shape[2:]), sharding, rows)

    return jax.tree.map(placed, batch)


def _shared(loader: Loader, mesh: Mesh | None) -> Loader:
    """The loader of this host."""
    if mesh is None:
        return loader
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    apart = any(len(row_parts(mesh, host)) < parts for host in range(jax.process_count()))
    return dataclasses.replace(loader, parts=parts, mine=row_parts(mesh), apart=apart)
