"""What a Fisher pass will do: all that can be decided, or be wrong, before a weight is read."""

from dataclasses import dataclass
from re import Pattern
from typing import Any

import jax
from jax.sharding import Mesh

from e2wm_jax import __version__
from e2wm_jax.config import ModelConfig
from e2wm_jax.data.tokenizer import open_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.arrange import ATTENTION, Layout, arrange, attention_length, cost, real_share
from e2wm_jax.fisher.command import online, resume
from e2wm_jax.fisher.command.corpus import Corpus, check_corpus, describe, read_corpus
from e2wm_jax.fisher.command.settings import FisherSettings, check_settings
from e2wm_jax.fisher.diagonal import Computation, Estimator, Method
from e2wm_jax.fisher.files import METADATA_FILE
from e2wm_jax.kernels.weighted_square import check_implementation
from e2wm_jax.lora import linear_modules
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import hf_names, open_model
from e2wm_jax.sharding import join_hosts, make_mesh
from e2wm_jax.storage.model_files import ModelFiles, locate

_WORTH_PACKING = 0.95  # of the time of a row for each document, which is simpler
_OF_THE_PASS = (  # settings on which the sums depend, if only by a rounding
    "params",
    "samples",
    "max_length",
    "labels",
    "reduction",
    "seed",
    "batch_size",
    "group",
    "kernel",
    "keep",
    "base_dtype",
    "special_tokens",
)


@dataclass(frozen=True)
class FisherPlan:
    """A checked pass."""

    files: ModelFiles
    corpus: Corpus
    pattern: Pattern[str] | None  # of --params, where it is one
    selected: frozenset[str]  # paths of the parameters to compute F for
    names: list[str]  # Hugging Face names of the tensors to write
    estimator: Estimator
    computation: Computation
    layout: Layout
    why: str  # a line on method and layout
    previous: dict[str, Any] | None  # the record of --previous
    identity: dict[str, Any]  # what must be the same for a saved pass to go on, but for the model's fingerprint


def make_plan(settings: FisherSettings) -> FisherPlan:
    """Read the data and the model's headers, and check that everything fits.

    Raises:
        InputError: naming the flag, file or document, the rule and the way out.
    """
    pattern = check_settings(settings)
    _check_out(settings)
    if settings.distributed:
        join_hosts()
    check_implementation("--kernel", settings.kernel)
    files = locate(settings.model)
    tokenizer = open_tokenizer(files)
    corpus = read_corpus(
        tokenizer,
        settings.data,
        samples=settings.samples,
        max_length=settings.max_length,
        special_tokens=settings.special_tokens,
        columns=settings.columns,
        seed=settings.seed,
    )
    config, _ = open_model(files)
    check_corpus(tokenizer, config, corpus)
    selected, names = selected_parameters(config, settings.params, pattern)
    estimator = Estimator(settings.labels, settings.reduction, settings.seed)
    mesh = _mesh(settings)
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    method, layout, why = choose(settings, corpus, parts, attention_length(config))
    found = FisherPlan(
        files=files,
        corpus=corpus,
        pattern=pattern,
        selected=frozenset(selected),
        names=names,
        estimator=estimator,
        computation=Computation(method, settings.group, settings.kernel, settings.keep, mesh),
        layout=layout,
        why=why,
        previous=None if settings.previous is None else online.check_previous(settings.previous, names, estimator),
        identity=_identity(settings, corpus, method, layout, mesh),
    )
    if saved := resume.find(settings.out):
        resume.check_same(saved, found.identity)
    return found


def choose(
    settings: FisherSettings, corpus: Corpus, parts: int = 1, attention: float = ATTENTION
) -> tuple[Method, Layout, str]:
    """The method, the layout, and a line that says why.

    Args:
        parts, attention: `arrange`.
    """
    if settings.method == "auto":
        method: Method = "fused"
        why = "method fused: exact for every parameter, in one ordinary backward pass per batch"
    else:
        method, why = settings.method, f"method {settings.method}: as asked"
    if settings.layout != "auto":
        return method, settings.layout, f"{why}; layout {settings.layout}: as asked"
    if method != "fused":
        return method, "rows", f"{why}; layout rows: a document alone computes its whole row"
    lengths = [len(row.ids) for row in corpus.rows]
    found: dict[Layout, tuple[float, float]] = {}  # cost and how full the rows are
    for layout in ("rows", "packed"):
        batches = arrange(lengths, settings.batch_size, settings.max_length, layout, parts, attention)
        found[layout] = cost(lengths, batches, attention), real_share(lengths, batches)
    (rows, real), (packed, real_packed) = found["rows"], found["packed"]
    chosen: Layout = "packed" if packed < _WORTH_PACKING * rows else "rows"
    said = f"a row for each document would be {real:.0%} full, packed rows {real_packed:.0%}"
    return method, chosen, f"{why}; layout {chosen}: {said}, for about {packed / rows:.2f} of the time"


def _mesh(settings: FisherSettings) -> Mesh | None:
    """The devices, if there are to be several."""
    if settings.mesh is None and not settings.distributed:
        return None
    mesh = make_mesh(settings.mesh or f"data={jax.device_count()}")
    rows, hosts = mesh.shape["data"] * mesh.shape["fsdp"], jax.process_count()
    if settings.batch_size % rows:
        raise InputError(
            f"--batch-size {settings.batch_size}: must be a multiple of data x fsdp = {rows} devices; give e.g. "
            f"{-(-settings.batch_size // rows) * rows}"
        )
    if rows % hosts:
        raise InputError(f"--mesh {settings.mesh}: data x fsdp = {rows} must be a multiple of the {hosts} hosts")
    return mesh


def selected_parameters(config: ModelConfig, params: str, pattern: Pattern[str] | None) -> tuple[set[str], list[str]]:
    """Paths of the parameters to compute F for, and the Hugging Face names of the tensors to write.

    Args:
        params: as --params.
        pattern: `params_pattern` of it.

    Raises:
        InputError: if there are none.
    """
    table = weight_table(config)
    paths = list(table)
    if params == "lora-targets":
        paths = [f"{path}.weight" for path in linear_modules(config)]
    named = {
        path: [name for name in hf_names(table[path], config) if pattern is None or pattern.fullmatch(name)]
        for path in paths
    }
    selected = {path for path, names in named.items() if names}
    if not selected:
        example = hf_names(table["layers.q.weight"] if "layers.q.weight" in table else table[paths[0]], config)[0]
        raise InputError(f"--params {params!r} matches no parameter; the whole name must match, e.g. {example}")
    return selected, [name for names in named.values() for name in names]


def _identity(
    settings: FisherSettings, corpus: Corpus, method: Method, layout: Layout, mesh: Mesh | None
) -> dict[str, Any]:
    """What must be the same for a saved pass to go on to the same numbers; the model's fingerprint comes to it."""
    return {
        "data": [describe(path) for path in settings.data],
        **{f"--{name.replace('_', '-')}": getattr(settings, name) for name in _OF_THE_PASS},
        "method": method,
        "layout": layout,
        "--mesh": None if mesh is None else dict(mesh.shape),
        "hosts": jax.process_count(),
        "tokens": corpus.digest(),
        "devices": jax.devices()[0].device_kind,
        "version": __version__,
        "jax": jax.__version__,
    }


def _check_out(settings: FisherSettings) -> None:
    """A fresh directory, or one with an unfinished pass to --resume."""
    out = settings.out
    saved = resume.find(out)
    if saved is not None:
        if not settings.resume:
            raise InputError(
                f"--out {out}: already holds an unfinished pass ({saved.counts['samples']} examples done); continue it "
                f"with --resume, or remove {out / resume.PARTIAL}"
            )
        return
    if settings.resume and (out / METADATA_FILE).is_file():
        raise InputError(f"--resume: {out} holds a finished Fisher; there is nothing to continue")
    if out.exists() and (not out.is_dir() or any(path.name != resume.PARTIAL for path in out.iterdir())):
        raise InputError(f"--out {out}: already holds something; give a new or empty directory")
