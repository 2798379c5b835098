"""A Fisher pass over a corpus that can be stopped and goes on where it was; documents of NaN gradients may be left out.

The batches follow from the settings alone, so "k batches are done" says what remains.  A document that is left out is
blanked in its batch: the others stay where they are.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.arrange import Layout, attention_length
from e2wm_jax.fisher.command import resume
from e2wm_jax.fisher.command.corpus import Corpus
from e2wm_jax.fisher.diagonal import Computation, Estimator, Progress, accumulate, not_finite, start
from e2wm_jax.fisher.documents import DocumentBatch, document_batches
from e2wm_jax.fisher.finite import NonFiniteError
from e2wm_jax.models.weights import Model
from e2wm_jax.running.hosts import any_host
from e2wm_jax.running.interrupt import StopFlag, stop_requests
from e2wm_jax.running.progress import say

_NAMED = 5  # documents that an error names one by one


@dataclass(frozen=True)
class Pass:
    """What is computed, from what, and where an unfinished pass is kept."""

    model: Model
    corpus: Corpus
    selected: frozenset[str]  # parameter paths
    estimator: Estimator
    computation: Computation
    layout: Layout
    batch_size: int
    max_length: int
    out: Path
    identity: Mapping[str, Any]  # `resume.check_same`
    checkpoint_minutes: float
    skip_nonfinite: bool

    @property
    def parts(self) -> int:
        """Devices that share the rows of a batch."""
        mesh = self.computation.mesh
        return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]

    def batches(self, first: int, skipped: Collection[int]) -> Iterator[DocumentBatch]:
        """This host's parts of the batches from number `first` on."""
        hosts = (jax.process_index(), jax.process_count())
        found = document_batches(
            self.corpus.rows,
            self.batch_size,
            self.max_length,
            layout=self.layout,
            parts=self.parts,
            process=hosts,
            attention=attention_length(self.model.config),
        )
        return (without(batch, skipped, self.parts // hosts[1]) for batch in islice(found, first, None))


def begin(job: Pass) -> tuple[Progress, tuple[int, ...]]:
    """The pass as it was last saved, or from its start; with the documents that are left out."""
    mesh = job.computation.mesh
    empty = start(job.model.config, job.model.params, job.selected.__contains__, mesh)
    saved = resume.find(job.out)
    if saved is None:
        if jax.process_index() == 0:
            resume.remove(job.out)  # saves that were killed
        return empty, ()
    return resume.load(saved, empty.totals), saved.skipped


def stream(
    job: Pass, now: Progress, skipped: tuple[int, ...], report: Callable[[Progress], None]
) -> tuple[Progress, tuple[int, ...]]:
    """The finished pass, and the numbers of the documents left out.

    Args:
        now, skipped: `begin`.
        report: called with the pass after each batch, and where it goes on after a document was left out.

    Raises:
        InputError: for a document whose loss or gradient is no finite number, unless such are to be left out.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with what was done saved.
    """
    save_at = 0
    with stop_requests() as stop:
        while True:
            now, suspects = _forward(job, now, skipped, report, stop, save_at)
            if not suspects:
                return now, skipped
            found = _culprits(job, now.batches, suspects, skipped)
            if not job.skip_nonfinite:
                raise InputError(_complaint(job, found))
            if jax.process_index() == 0:
                say(f"left out: {_named(job.corpus, found)}")
            save_at = now.batches + 1  # so that the next one costs no more than the batches between
            skipped = tuple(sorted({*skipped, *found}))
            now, _ = begin(job)
            report(now)


def without(batch: DocumentBatch, numbers: Collection[int], parts: int) -> DocumentBatch:
    """The batch with padding where these documents were; `parts` as it was made with."""
    gone = np.isin(batch.numbers, list(numbers)).reshape(parts, -1)
    if not gone.any():
        return batch
    slots = batch.slots.reshape(parts, -1)
    tokens = np.take_along_axis(np.pad(gone, ((0, 0), (0, 1))), slots, axis=1).reshape(batch.ids.shape)
    flat = gone.reshape(-1)
    return dataclasses.replace(
        batch,
        ids=np.where(tokens, 0, batch.ids),
        positions=np.where(tokens, 0, batch.positions),
        segments=np.where(tokens, -1, batch.segments),
        labels=np.where(tokens, 0, batch.labels),
        predicted=np.where(tokens, np.float32(0), batch.predicted),
        slots=np.where(tokens, gone.shape[1], batch.slots),
        starts=np.where(flat, 0, batch.starts),
        lengths=np.where(flat, 0, batch.lengths),
        numbers=np.where(flat, -1, batch.numbers),
    )


def _forward(
    job: Pass,
    now: Progress,
    skipped: tuple[int, ...],
    report: Callable[[Progress], None],
    stop: StopFlag,
    save_at: int,
) -> tuple[Progress, list[int]]:
    """The pass at its end, or before the batch in which these documents are not finite; totals are gone then."""
    saved = time.monotonic()
    config, params, batches = job.model.config, job.model.params, job.batches(now.batches, skipped)
    try:
        for later in accumulate(config, params, batches, now, job.estimator, job.computation):
            now = later
            report(now)
            late = 0 < job.checkpoint_minutes <= (time.monotonic() - saved) / 60
            stopping, due = any_host(stop.requested, late or now.batches == save_at)
            if stopping or due:
                resume.save(job.out, now, skipped, job.identity)
                saved = time.monotonic()
            if stopping:
                if jax.process_index() == 0:
                    say(f"stopped after {now.samples} of {len(job.corpus.rows)} examples; continue with --resume")
                raise KeyboardInterrupt
    except NonFiniteError as error:
        return now, error.numbers
    except InputError:
        raise
    except Exception:
        keep(job, now, skipped)
        raise
    return now, []


def keep(job: Pass, now: Progress, skipped: tuple[int, ...]) -> None:
    """Save what there is before an error ends the run, where it can be: other hosts know nothing of the error."""
    if jax.process_count() == 1 and not any(total.is_deleted() for total in now.totals.values()):
        with contextlib.suppress(OSError, InputError):
            resume.save(job.out, now, skipped, job.identity)


def _culprits(job: Pass, index: int, suspects: Sequence[int], skipped: tuple[int, ...]) -> list[int]:
    """Those of the suspects of batch number `index` that are not finite when they are alone.

    In a packed row, one document's infinity is another's too: zero times infinity is NaN.
    """
    if job.layout == "rows":
        return list(suspects)
    batch = next(job.batches(index, skipped))
    own = set(batch.numbers.tolist())
    alone = (without(batch, own - {number}, job.parts // jax.process_count()) for number in suspects)
    found = not_finite(job.model.config, job.model.params, alone, job.estimator, job.computation)
    return found or list(suspects)


def _complaint(job: Pass, found: Sequence[int]) -> str:
    saved = resume.find(job.out)
    kept = f"; {saved.counts['samples']} examples before are kept in {job.out}" if saved else ""
    again = "--resume --skip-nonfinite" if saved else "--skip-nonfinite"
    return (
        f"{_named(job.corpus, found)}: loss or gradient is not finite ({len(found)} of the {len(job.corpus.rows)} "
        f"documents so far); check the text and the model's weights, or leave such documents out with {again}{kept}"
    )


def _named(corpus: Corpus, numbers: Sequence[int]) -> str:
    more = len(numbers) - _NAMED
    names = ", ".join(corpus.places[number] for number in sorted(numbers)[:_NAMED])
    return f"{names} and {more} more" if more > 0 else names
