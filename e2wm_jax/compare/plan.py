"""What a comparison will do: all that can be decided, or be wrong, before a weight is read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from e2wm_jax import lora
from e2wm_jax.compare.arms import Arm, check_names, crossed, read_arms, slug, with_general, words
from e2wm_jax.compare.sets import EvaluationOptions, check_sets, embodied_sets, text_sets
from e2wm_jax.compare.settings import CompareSettings, read_config
from e2wm_jax.config import BaseDType
from e2wm_jax.data.source import check_columns, parse_mixture, read_documents
from e2wm_jax.data.tokenizer import open_tokenizer
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.model import open_evaluated
from e2wm_jax.evaluate.sets import EvalSet
from e2wm_jax.fisher.command.settings import FisherSettings
from e2wm_jax.fisher.command.settings import check_settings as check_fisher
from e2wm_jax.models.weights import open_model
from e2wm_jax.options.values import build, check_values, merged
from e2wm_jax.regularizers.catalogue import regularizer
from e2wm_jax.storage.files import sha256
from e2wm_jax.storage.model_files import locate
from e2wm_jax.train.settings import TASK_ROWS, TrainSettings
from e2wm_jax.train.settings import check_settings as check_train
from e2wm_jax.train.watch.validation import check_rows

_OF_A_RUN = ("model", "out", "seed", "resume", "distributed")  # the comparison's to set
_OF_A_FISHER = ("model", "out", "resume", "distributed", "previous", "decay")
_OF_THE_ROWS = (  # settings of training by which its rows differ
    *("data", "validation", "regularizer_data", "regularizer_samples", "columns", "chat", "append_eos", "max_length"),
    *("special_tokens", "skip_truncated"),
)
_TRAIN_FLAGS = ("steps", "epochs", "lr", "batch_size", "max_length")
_BLOCKS, _BLOCK = 64, 1 << 16  # of a model's file, and bytes of each, by which it is known
GENERAL_TEXT, RETENTION_TEXT = "pydoc:fisher", "pydoc:held-out"


@dataclass(frozen=True)
class ComparePlan:
    """A checked comparison; plain data, so that worker processes read it from comparison.json."""

    model: str
    out: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    sets: tuple[EvalSet, ...]  # of skill, and bAbI
    texts: tuple[EvalSet, ...]  # of retention
    evaluation: EvaluationOptions
    base_dtype: BaseDType = "float32"  # of the base, where it is evaluated by itself

    @property
    def runs(self) -> list[tuple[Arm, int]]:
        """All runs: every arm with the first seed, then with the next, so that a part of them compares all arms."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    @property
    def fishers(self) -> dict[str, dict[str, Any]]:
        """The Fishers to make, by the names of their folders: one for all arms of the same settings."""
        return {fisher_name(arm.fisher): arm.fisher for arm in self.arms if arm.fisher is not None}

    @property
    def training_files(self) -> list[Path]:
        """What the arms are trained on, of the files."""
        found = {path for arm in self.arms for _, path in parse_mixture(arm.train["data"])}
        return sorted(path for path in found if isinstance(path, Path))

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """A run directory of `e2wm train`, with what its evaluation found in it."""
        return self.out / "runs" / slug(arm.name) / f"seed-{seed}"

    def fisher_folder(self, fisher: Mapping[str, Any]) -> Path:
        """The directory of a Fisher."""
        return self.out / "fishers" / fisher_name(fisher)

    def train_settings(self, arm: Arm, seed: int) -> TrainSettings:
        """A run as `e2wm train` reads it."""
        own = {"model": self.model, "out": self.run_folder(arm, seed), "seed": seed, "resume": True}
        if arm.fisher is not None:
            own["fisher"] = self.fisher_folder(arm.fisher)
        return build(TrainSettings, {**arm.train, **own}, f"arm {arm.name}")

    def fisher_settings(self, fisher: Mapping[str, Any]) -> FisherSettings:
        """A Fisher as `e2wm fisher` reads it."""
        return build(FisherSettings, {**fisher, "model": self.model, "out": self.fisher_folder(fisher)}, "[fisher]")


def make_plan(settings: CompareSettings) -> ComparePlan:
    """Read config, data and the model's headers, and check that everything fits.

    Raises:
        InputError: naming the flag, file or arm, the rule and the way out.
    """
    settings, tables = read_config(settings)
    _check(settings)
    assert settings.model is not None
    where = str(settings.config)
    arms = [*crossed(settings.regularizers, settings.strengths), *read_arms(tables.get("arm", []), where)]
    if not arms:
        raise InputError("there is nothing to compare; give --regularizers and --strengths, or a --config with [[arm]]")
    check_names(arms)
    general = _general_train(settings, tables.get("train", {}))
    arms = [_complete(with_general(arm, general), settings, tables.get("fisher", {})) for arm in arms]
    plan = ComparePlan(
        model=settings.model,
        out=settings.out,
        arms=tuple(arms),
        seeds=_seeds(settings.seeds),
        sets=embodied_sets(settings.eval),
        texts=text_sets(settings.text or (RETENTION_TEXT,)),
        evaluation=EvaluationOptions(
            samples=settings.samples,
            babi_samples=settings.babi_samples,
            text_samples=settings.text_samples,
            text_max_length=settings.text_max_length,
            batch_size=settings.eval_batch_size,
            beams=settings.beams,
            max_new_tokens=settings.max_new_tokens,
            too_long=settings.too_long,
            chat=settings.chat,
        ),
        base_dtype=general.get("base_dtype", "float32"),
    )
    _check_arms(plan)
    check_sets(open_evaluated(plan.model), plan.sets, plan.texts, plan.evaluation)
    return plan


def as_config(plan: ComparePlan) -> dict[str, Any]:
    """The plan as comparison.json has it, but for `out`."""
    return {
        "model": plan.model,
        "base_dtype": plan.base_dtype,
        "arms": [asdict(arm) for arm in plan.arms],
        "seeds": list(plan.seeds),
        "sets": [_set_record(one) for one in plan.sets],
        "texts": [_set_record(one) for one in plan.texts],
        "evaluation": asdict(plan.evaluation),
    }


def from_config(config: Mapping[str, Any], out: Path) -> ComparePlan:
    """The plan that `as_config` wrote."""
    return ComparePlan(
        model=config["model"],
        out=out,
        arms=tuple(Arm(**arm) for arm in config["arms"]),
        seeds=tuple(config["seeds"]),
        sets=tuple(_as_set(one) for one in config["sets"]),
        texts=tuple(_as_set(one) for one in config["texts"]),
        evaluation=EvaluationOptions(**config["evaluation"]),
        base_dtype=config["base_dtype"],
    )


def content_of(plan: ComparePlan) -> dict[str, str]:
    """Digests of the files that the comparison reads, and one of the model's: names, sizes, and blocks of each."""
    paths = {*plan.training_files, *(one.path for one in (*plan.sets, *plan.texts)), *map(Path, _general_texts(plan))}
    found = {str(path): sha256(path) for path in sorted(paths) if path.is_file()}
    files = locate(plan.model).path
    parts = [path for path in (sorted(files.iterdir()) if files.is_dir() else [files]) if path.is_file()]
    model = [(path.name, path.stat().st_size, _sampled_digest(path)) for path in parts]
    return found | {"model": hashlib.sha256(json.dumps(model).encode()).hexdigest()}


def _sampled_digest(path: Path) -> str:
    """SHA-256 of blocks all over a file: another finetune differs everywhere, and to read 26 GB takes minutes."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for number in range(_BLOCKS):
            file.seek(number * max(size - _BLOCK, 0) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def fisher_name(fisher: Mapping[str, Any]) -> str:
    """A folder's name that says labels and parameters, and differs where any setting does."""
    digest = hashlib.sha256(json.dumps(fisher, sort_keys=True).encode()).hexdigest()[:8]
    return f"{fisher.get('labels', 'data')}-{digest}"


def _set_record(one: EvalSet) -> dict[str, str]:
    return {"name": one.name, "kind": one.kind, "path": str(one.path)}


def _as_set(record: Mapping[str, Any]) -> EvalSet:
    return EvalSet(record["name"], record["kind"], Path(record["path"]))


def _check(settings: CompareSettings) -> None:
    if settings.model is None:
        raise InputError("--model is missing; give a directory, a .gguf file, or smollm2-135m")
    if not settings.eval:
        raise InputError("--eval is missing; give evaluation files, or a folder of them such as `e2wm tasks` writes")
    check_at_least(
        ("--workers", settings.workers, 1),
        ("--samples", settings.samples, 1),
        ("--babi-samples", settings.babi_samples, 1),
        ("--text-samples", settings.text_samples, 1),
        ("--text-max-length", settings.text_max_length, 2),
        ("--eval-batch-size", settings.eval_batch_size, 1),
        ("--beams", settings.beams, 1),
        ("--max-new-tokens", settings.max_new_tokens, 1),
        ("--general-samples", settings.general_samples, 1),
    )
    locate(settings.model)


def _seeds(texts: Sequence[str]) -> tuple[int, ...]:
    found: list[int] = []
    for text in words(texts) or ["0"]:
        if not text.isdecimal():
            raise InputError(f"--seeds {text}: must be whole numbers from 0 on, e.g. 0,1,2")
        if int(text) in found:
            raise InputError(f"--seeds: {text} stands twice; take one away")
        found.append(int(text))
    return tuple(found)


def _general_train(settings: CompareSettings, table: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of training for all arms: the file's [train], and flags; --chat stands below the file's own."""
    flags = _said(**{name: getattr(settings, name) for name in _TRAIN_FLAGS})
    if settings.data:
        flags["data"] = list(settings.data)
    adapted = _said(rank=settings.lora_rank, targets=settings.lora_targets, dropout=settings.lora_dropout)
    flags |= {"lora": adapted} if adapted else {}
    return merged({"chat": True} if settings.chat else {}, merged(table, flags))


def _complete(arm: Arm, settings: CompareSettings, general_fisher: Mapping[str, Any]) -> Arm:
    """The arm with what its regularizer reads: general text, or a Fisher, which is there or is to be made."""
    if "data" not in arm.train:
        raise InputError(f"--data is missing, and arm {arm.name} has none of its own; write 'weight file weight file'")
    reads = regularizer(arm.train.get("regularizer", "none")).reads
    text = list(settings.general_text) or [GENERAL_TEXT]
    if arm.fisher is not None and (reads != "fisher" or "fisher" in arm.train):
        why = "its regularizer reads no Fisher" if reads != "fisher" else "train.fisher names one that is there"
        raise InputError(f"arm {arm.name}: {why}; take its fisher settings away")
    if reads == "text" and "regularizer_data" not in arm.train:
        return replace(
            arm, train=arm.train | _said(regularizer_data=text, regularizer_samples=settings.general_samples)
        )
    if reads != "fisher" or "fisher" in arm.train:
        return arm
    if settings.fisher is not None and arm.fisher is None:
        return replace(arm, train=arm.train | {"fisher": str(settings.fisher)})
    like_training = {name: arm.train[name] for name in ("max_length", "base_dtype") if name in arm.train}
    fisher = _said(data=text, params="lora-targets", samples=settings.general_samples) | like_training
    return replace(arm, fisher={**fisher, **general_fisher, **(arm.fisher or {})})


def _said(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def _check_arms(plan: ComparePlan) -> None:
    """That every run and every Fisher can start: settings, files, targets."""
    files = locate(plan.model)
    config, _ = open_model(files)
    runs: dict[tuple[Any, ...], TrainSettings] = {}  # those that differ in what they read
    for arm in plan.arms:
        where = f"arm {arm.name}"
        check_values(TrainSettings, arm.train, where, reserved=_OF_A_RUN)
        # A Fisher that is still to be made stands here as a directory that is there.
        made = {} if arm.fisher is None else {"fisher": "."}
        settings = build(TrainSettings, {**arm.train, **made, "model": plan.model, "out": "."}, where)
        try:
            check_train(settings)
            lora.adapter_spec(config, settings.lora)
            if settings.columns:
                check_columns(settings)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        runs[tuple(getattr(settings, name) for name in _OF_THE_ROWS)] = settings
        if arm.fisher is not None:
            check_values(FisherSettings, arm.fisher, f"{where}: fisher", reserved=_OF_A_FISHER)
            check_fisher(plan.fisher_settings(arm.fisher))
    for text in sorted(_general_texts(plan)):
        read_documents(text)
    tokenizer = open_tokenizer(files)
    for settings in runs.values():
        check_rows(settings, tokenizer, config)


def _general_texts(plan: ComparePlan) -> set[str]:
    """All general text that regularizers and Fishers read."""
    found = {text for arm in plan.arms for text in arm.train.get("regularizer_data", ()) if text != TASK_ROWS}
    return found | {text for fisher in plan.fishers.values() for text in fisher["data"]}
