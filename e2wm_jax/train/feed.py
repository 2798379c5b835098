"""What the training loop reads: files and online tasks as one loader, and its batches on the device in time."""

import dataclasses
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jax

from e2wm_jax.data.loader import Loader, StepBatch
from e2wm_jax.data.online_rows import RowMaker, online_rows
from e2wm_jax.data.source import online_tasks, parse_mixture, read_mixture
from e2wm_jax.data.tokenize import task_rows
from e2wm_jax.progress import say
from e2wm_jax.train.settings import TrainSettings


@contextmanager
def open_data(settings: TrainSettings, tokenizer: Any) -> Iterator[tuple[Loader, list[int]]]:
    """The loader, and for each row of the files the number of its example in them.

    Raises:
        InputError: for data that cannot be read or made, before the context is entered.
    """
    mixture = parse_mixture(settings.data)
    examples = read_mixture(mixture)
    rows, kept = task_rows(
        tokenizer,
        examples,
        max_length=settings.max_length,
        special_tokens=settings.special_tokens,
        skip_truncated=settings.skip_truncated,
    )
    if len(kept) < len(examples):
        say(f"skipped {len(examples) - len(kept)} of {len(examples)} rows: no answer token within --max-length")
    maker = RowMaker(
        tokenizer,
        online_tasks(mixture),
        settings.seed,
        settings.max_length,
        special_tokens=settings.special_tokens,
        skip_truncated=settings.skip_truncated,
    )
    workers = max((os.cpu_count() or 1) - 1, 0) if settings.workers is None else settings.workers
    with online_rows(maker, workers=workers) as online:
        for endless in online:
            endless[0]  # what cannot be made at all fails here, before the model is loaded
        loader = Loader(
            rows,
            settings.batch_size,
            settings.accumulate,
            settings.max_length,
            settings.seed,
            online=online,
            pack=settings.pack,
        )
        yield loader, kept


def on_device(steps: Iterable[StepBatch], *, ahead: int = 2) -> Iterator[StepBatch]:
    """The same batches as device arrays, `ahead` of them at a time: the next one is copied while a step computes."""
    ready: deque[StepBatch] = deque()
    for step in steps:
        ready.append(dataclasses.replace(step, batch=jax.device_put(step.batch)))
        if len(ready) == ahead:
            yield ready.popleft()
    yield from ready
