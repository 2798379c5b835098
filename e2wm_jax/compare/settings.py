"""The settings of `e2wm compare`: flags, a TOML file with the same names, or both."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.command.settings import FisherSettings
from e2wm_jax.options.choices import TooLong
from e2wm_jax.options.files import read_table, under_own_names
from e2wm_jax.options.values import build, check_name
from e2wm_jax.train.settings import TrainSettings

_OWN = ("out", "config", "resume")  # of one call, not of a file
TABLES = ("train", "fisher", "arm")  # of the file, besides the names of flags


@dataclass(frozen=True)
class CompareSettings:
    """Train every regularizer with every strength and seed, evaluate all, and show the trade-off."""

    out: Path
    """Directory to write: comparison.json, report.html, base/, fishers/, runs/."""
    config: Path | None = None
    """TOML or JSON file: these flags under their names, with [train] and [fisher] for all arms and an [[arm]] for each
    free one. A flag given here wins."""
    model: str | None = None
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: tuple[str, ...] = ()
    """What to train on, as of `e2wm train`: files, FILE:WEIGHT or a mixture "1 plan.json 0.7 activity.json"."""
    eval: tuple[Path, ...] = ()
    """Evaluation sets: files, or folders in which all are found by name. QA and generation sets are the skill; bAbI is
    measured and shown beside it."""
    text: tuple[str, ...] = ()
    """General text for retention, a corpus each: .txt or JSON lines with "text". Default: pydoc:held-out."""
    regularizers: tuple[str, ...] = ()
    """none,l2,ewc,kl: any of `e2wm train --regularizer`; kl is kl-forward."""
    strengths: tuple[str, ...] = ()
    """1,10 for all of them, "ewc:1e3,1e4 l2:0.1,1" for each by itself, or both."""
    seeds: tuple[str, ...] = ()
    """0,1,2: every arm is trained with each. Default: 0."""
    general_text: tuple[str, ...] = ()
    """What the Fisher is computed on, and what kl, replay and others read. Default: pydoc:fisher."""
    general_samples: int | None = None
    """At most so many documents of it, drawn by the seed of the run, or of the Fisher."""
    fisher: Path | None = None
    """Directory of `e2wm fisher` that is there; by default one is computed with general text."""
    steps: int | None = None
    """Optimizer steps of each run."""
    epochs: int | None = None
    """Passes over the data, in place of --steps."""
    lr: float | None = None
    """Learning rate; where this and the next five are not given, what `e2wm train` has by default."""
    batch_size: int | None = None
    """Examples per step."""
    max_length: int | None = None
    """Rows, and documents of the Fisher, are cut to this many tokens."""
    lora_rank: int | None = None
    """Rank of the adapters."""
    lora_targets: str | None = None
    """What is adapted, as of `e2wm train --lora.targets`; all-linear for every block matrix."""
    lora_dropout: float | None = None
    """Share of the adapters' inputs that is dropped while training."""
    samples: int | None = None
    """At most N examples of each QA and generation set, drawn once, the same for every arm."""
    babi_samples: int | None = None
    """At most N questions of each bAbI task."""
    text_samples: int | None = None
    """At most N documents of each corpus of --text."""
    text_max_length: int = 800
    """Documents of --text are cut to this many tokens."""
    eval_batch_size: int = 4
    """Examples per forward pass of the evaluation."""
    beams: int = 4
    """Of generation sets."""
    max_new_tokens: int = 256
    """Of generation sets."""
    too_long: TooLong = "refuse"
    """Evaluation examples with more tokens than the model has positions: refuse, skip, or truncate them."""
    chat: bool = False
    """Put questions and prompts into the tokenizer's chat template, as what a user says, in evaluation and training;
    not general text. Where [train] says chat = false, training does not."""
    workers: int = 1
    """Processes that train and evaluate side by side: on GPUs each has its own, on a CPU each its share of cores."""
    resume: bool = False
    """Continue the comparison in --out; arms and seeds may be added."""


def read_config(settings: CompareSettings) -> tuple[CompareSettings, dict[str, Any]]:
    """The settings with what --config says where no flag does, and the file's tables `TABLES`.

    Raises:
        InputError: for a file that is neither TOML nor JSON, or says what there is not.
    """
    if settings.config is None:
        return settings, {}
    where = str(settings.config)
    table = read_table(settings.config)
    tables = _tables({name: table.pop(name) for name in TABLES if name in table}, where)
    record = under_own_names(CompareSettings, table, where)
    names = [field.name for field in fields(CompareSettings) if field.name not in _OWN]
    for name in record:
        check_name(name, [*names, *TABLES], where)
    listed = {name: _listed(name, value) for name, value in record.items()}
    said = build(CompareSettings, listed | {"out": str(settings.out)}, where)
    unsaid = [name for name in record if getattr(settings, name) == _default(name)]
    return replace(settings, **{name: getattr(said, name) for name in unsaid}), tables


def resolved(settings: CompareSettings) -> dict[str, Any]:
    """What a --config file has to say for these settings, but for `out`, which each comparison has of its own.

    Raises:
        InputError: as `read_config`.
    """
    said, tables = read_config(settings)
    return {name: value for name, value in asdict(said).items() if name not in _OWN} | tables


def _default(name: str) -> Any:
    return next(field.default for field in fields(CompareSettings) if field.name == name)


def _listed(name: str, value: Any) -> Any:
    """Numbers of lists as their text: seeds = [0, 1] and strengths = [1.0, 10.0] as --seeds 0 1."""
    several = isinstance(_default(name), tuple)
    if not several:
        return value
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def _tables(tables: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tables with settings under our names."""
    arms = tables.get("arm", [])
    if not isinstance(arms, list) or not all(isinstance(arm, Mapping) for arm in arms):
        raise InputError(f"{where}: arms are tables of their own: [[arm]]")
    found = _own_names(tables, where, "[{name}]")
    if "arm" in tables:
        found["arm"] = [
            _own_names(arm, f"{where}: arm {arm.get('name', number)}", "settings, e.g. {name}.samples = 64")
            for number, arm in enumerate(arms, start=1)
        ]
    return found


def _own_names(tables: Mapping[str, Any], where: str, shape: str) -> dict[str, Any]:
    """Tables of which `train` and `fisher` hold settings of those commands, under any of the options' names."""
    found = dict(tables)
    for name, kind in (("train", TrainSettings), ("fisher", FisherSettings)):
        if name in tables and not isinstance(tables[name], Mapping):
            raise InputError(f"{where}: {name} must be a table: {shape.format(name=name)}")
        if name in tables:
            found[name] = under_own_names(kind, tables[name], f"{where}: {name}")
    return found
