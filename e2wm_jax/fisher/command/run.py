"""`e2wm fisher`: plan -> model -> pass over the corpus -> directory.  Reads top to bottom."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax

from e2wm_jax.data.tokenize import say_cut
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.command import online, resume
from e2wm_jax.fisher.command.corpus import Corpus, describe
from e2wm_jax.fisher.command.page import write_report
from e2wm_jax.fisher.command.plan import FisherPlan, make_plan
from e2wm_jax.fisher.command.settings import FisherSettings
from e2wm_jax.fisher.command.streaming import Pass, begin, keep, stream
from e2wm_jax.fisher.command.summary import as_text, summarize, tensors_of
from e2wm_jax.fisher.diagonal import FisherResult, Progress, result
from e2wm_jax.fisher.files import METADATA_FILE, write_fisher
from e2wm_jax.models.quantized import compute_dtype, quantizer
from e2wm_jax.models.weights import Model, load
from e2wm_jax.running.hosts import sync_hosts
from e2wm_jax.running.progress import busy, progress_bar, say
from e2wm_jax.storage.files import read_json, write_json

REPORT_FILE = "report.html"


def run(settings: FisherSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, before the model is loaded; for documents that are not finite.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with what was done saved.
    """
    plan = make_plan(settings)
    job = _pass(settings, plan, _load(settings, plan))
    first = jax.process_index() == 0
    if first:
        say(plan.why)
        say_cut(plan.corpus.rows, settings.max_length)
        if plan.corpus.too_short:
            say(f"{plan.corpus.too_short} documents have fewer than two tokens and nothing to predict: left out")

    started = time.monotonic()
    done, skipped = begin(job)
    earlier = done.samples
    with _reporting(plan.corpus, done) as report:
        done, skipped = stream(job, done, skipped, report)
    seconds = max(time.monotonic() - started, 1e-9)
    if not done.samples:
        raise InputError(f"--data {' '.join(settings.data)}: no document is left; none gave finite numbers")
    try:
        found = result(job.model.config, done, job.computation.mesh)
        modules = _finish(settings, plan, job, found, skipped) if first else {}
    except Exception:
        keep(job, done, skipped)
        raise
    sync_hosts("written")
    return {
        "samples": found.samples,
        "tokens": found.tokens,
        "nats": found.nats,
        "seconds": seconds,
        "examples_per_second": (found.samples - earlier) / seconds,
        "method": job.computation.method,
        "layout": job.layout,
        "why": plan.why,
        "peak_bytes": found.peak_bytes,
        "skipped": len(skipped),
        "resumed_after": earlier,
        "modules": modules,
        "out": str(settings.out),
    }


def show(result: dict[str, Any]) -> None:
    """Print what `run` returned."""
    facts = {key: value for key, value in result.items() if key != "modules"}
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:<{width}}  {f'{value:.6g}' if isinstance(value, float) else value}")
    if result["modules"]:
        print(f"\n{as_text(result['modules'])}")


def _load(settings: FisherSettings, plan: FisherPlan) -> Model:
    """The model, on the mesh if there is one, and what only its weights can tell checked."""
    mesh = plan.computation.mesh
    dtype = settings.base_dtype
    with busy("loading the model"):
        model = load(plan.files, compute_dtype(dtype), mesh=mesh, transform=quantizer(dtype))
    if saved := resume.find(settings.out):
        resume.check_same(saved, {"fingerprint": model.fingerprint})
    if settings.previous is not None and plan.previous is not None:
        online.check_model(settings.previous, plan.previous, model.fingerprint)
    resume.check_shared(settings.out)
    return model


def _pass(settings: FisherSettings, plan: FisherPlan, model: Model) -> Pass:
    return Pass(
        model=model,
        corpus=plan.corpus,
        selected=plan.selected,
        estimator=plan.estimator,
        computation=plan.computation,
        layout=plan.layout,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        out=settings.out,
        identity={**plan.identity, "fingerprint": model.fingerprint},
        checkpoint_minutes=settings.checkpoint_minutes,
        skip_nonfinite=settings.skip_nonfinite,
    )


def _finish(
    settings: FisherSettings, plan: FisherPlan, job: Pass, found: FisherResult, skipped: tuple[int, ...]
) -> dict[str, Any]:
    """Write F, the record and the report; returns the summary by module."""
    config, mesh = job.model.config, job.computation.mesh
    if settings.previous is not None:
        values = online.add_previous(config, found.values, plan.names, settings.previous, settings.decay)
        found = replace(found, values=values)
    write_fisher(
        settings.out,
        job.model,
        found,
        keep=plan.pattern,
        estimator=job.estimator,
        method=job.computation.method,
        base_dtype=settings.base_dtype,
        max_length=settings.max_length,
        data=[describe(path) for path in settings.data],
        dtype=settings.dtype,
    )
    tensors = tensors_of(config, found.values, plan.names)
    summary = summarize(tensors)
    record = read_json(settings.out / METADATA_FILE)
    record |= {
        "params": settings.params,
        "special_tokens": settings.special_tokens,
        "nats": found.nats,
        "layout": job.layout,
        "batch_size": settings.batch_size,
        "mesh": None if mesh is None else dict(mesh.shape),
        "hosts": jax.process_count(),
        "skipped": [job.corpus.places[number] for number in skipped],
        "corpora": online.corpora(plan.previous, settings.decay, record),
    }
    write_report(settings.out / REPORT_FILE, tensors, summary, record)
    write_json(settings.out / METADATA_FILE, {**record, "summary": summary})
    resume.remove(settings.out)
    return summary["modules"]


@contextmanager
def _reporting(corpus: Corpus, begun: Progress) -> Iterator[Callable[[Progress], None]]:
    """A bar over tokens, for batches of long documents take longer; examples and their rate beside it."""
    if jax.process_index() != 0:
        yield lambda _: None
        return
    started = time.monotonic()
    with progress_bar("fisher", corpus.tokens, "token") as bar:
        bar.initial = bar.n = begun.tokens

        def report(now: Progress) -> None:
            rate = (now.samples - begun.samples) / max(time.monotonic() - started, 1e-9)
            bar.set_postfix_str(f"{now.samples}/{len(corpus.rows)} examples, {rate:.3g} examples/s", refresh=False)
            bar.update(now.tokens - bar.n)

        yield report
