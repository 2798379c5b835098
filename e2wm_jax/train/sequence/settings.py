"""The settings of `e2wm sequence`: those of `e2wm train`, with several tasks in place of --data."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from e2wm_jax.data.source import online_tasks, parse_mixture
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.train import settings as train
from e2wm_jax.train.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class SequenceSettings(TrainSettings):
    """Finetune one LoRA adapter on tasks one after another, and measure what it forgets on the way.

    Each of --tasks is trained as `e2wm train` does, with its options, into OUT/task-1, OUT/task-2, ...; the adapter
    goes on from task to task, and between two tasks the regularizer takes up what the finished one needs (ewc and
    online-ewc its Fisher, si the way its training took, l2 where it ended, ...).  Before the first task and after each,
    the loss on all of --tests is measured: OUT/sequence.json has this matrix with average loss, forgetting, backward
    and forward transfer, OUT/report.html shows it, OUT/adapter is the last adapter.  A killed sequence goes on with
    --resume where it was, to the same numbers.  Example:

    e2wm sequence --model smollm2-135m --out run --regularizer online-ewc --strength 1000
    --tasks "1 train/plan.json" "1 train/count.json" --tests "1 eval/plan.json" "1 eval/count.json"
    """

    data: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()  # of each task in turn
    tasks: tuple[str, ...]
    """The tasks in their order, two or more; each a mixture as of `e2wm train --data`: "1 plan.json 0.7 recog.json".
    --steps or --epochs, --lr and its schedule begin anew with each."""
    tests: tuple[str, ...]
    """A mixture of held-out task files for each task; weights count as in training, so that a single file's loss is in
    nats per answer token."""
    names: tuple[str, ...] = ()
    """What to call the tasks in results; default: task-1, task-2, ..."""
    text: tuple[str, ...] = ()
    """General text whose loss is measured along with the tests: files as of `e2wm fisher`, e.g. pydoc:held-out."""
    text_samples: int | None = None
    """At most so many documents of --text, drawn by --seed."""
    importance_samples: int | None = None
    """At most so many rows of a finished task, drawn by --seed, from which the regularizer measures what it needs;
    default: all, of online data as many as count as one epoch."""

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each task."""
        return self.names or tuple(f"task-{number}" for number in range(1, len(self.tasks) + 1))


def task_settings(settings: SequenceSettings, index: int) -> TrainSettings:
    """The run of one task, counted from 0.  Seeds count up, so that each task has batches and dropout of its own."""
    shared = {field.name: getattr(settings, field.name) for field in dataclasses.fields(TrainSettings)}
    own = {"data": (settings.tasks[index],), "out": settings.out / f"task-{index + 1}", "seed": settings.seed + index}
    # Later tasks go on with the adapter in memory; digests in their config.json say with which.
    start: dict[str, Path | None] = {} if index == 0 else {"adapter": None}
    return TrainSettings(**{**shared, **own, **start})


def check_settings(settings: SequenceSettings) -> None:
    """Refuse settings that cannot work, before anything is loaded.

    Raises:
        InputError: naming the flag, its value and the rule.
    """
    tasks, tests, names = settings.tasks, settings.tests, settings.names
    if settings.data:
        raise InputError(f"--data {' '.join(settings.data)}: a sequence has --tasks instead, one mixture for each task")
    if len(tasks) < 2:
        raise InputError(f"--tasks: {len(tasks)} given; a sequence has two or more, a single one is for `e2wm train`")
    if len(tests) != len(tasks):
        raise InputError(f"--tests: {len(tests)} given for {len(tasks)} --tasks; give each task one, in their order")
    if names and (len(names) != len(tasks) or len(set(names)) != len(names) or not all(map(str.strip, names))):
        raise InputError(f"--names {' '.join(names)}: give {len(tasks)} different names, one for each of --tasks")
    for flag, value in (("--patience", settings.patience), ("--max-minutes", settings.max_minutes)):
        if value is not None:
            raise InputError(f"{flag} {value}: a sequence trains each task to its last step; leave it out")
    check_at_least(
        ("--text-samples", settings.text_samples, 1), ("--importance-samples", settings.importance_samples, 1)
    )
    from e2wm_jax.train.watch.validation import held_out_mixture  # here and below: what the help does not wait for

    for text in tests:
        held_out_mixture(text, "--tests")
    for index, text in enumerate(tasks):
        endless = online_tasks(parse_mixture(text, "--tasks"))
        if endless and settings.steps is None:
            raise InputError(f"--tasks: {endless[0][1].name} has no end; say how far to go with --steps N")
        train.check_settings(_with_a_free_start(task_settings(settings, index)))


def _with_a_free_start(task: TrainSettings) -> TrainSettings:
    """A regularizer that measures finished tasks needs neither Fisher nor text before the first one, which is then
    free; there is nothing else of it to check."""
    from e2wm_jax.regularizers.catalogue import regularizer
    from e2wm_jax.regularizers.regularizer import same_state

    found = regularizer(task.regularizer)
    if found.reads == "nothing" or found.next_task is same_state or task.fisher or task.regularizer_data:
        return task
    return dataclasses.replace(task, regularizer="none")
