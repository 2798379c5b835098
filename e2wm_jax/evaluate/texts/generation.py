"""`e2wm eval generate`: free answers against references, as the official code does it.

Beam search without sampling, cut at the first newline.  ROUGE with stemmer (Lin 2004), mean F of all examples; for path
tracking the longest run of places that both lists have in a row, over the length of the longer list.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from e2wm_jax.data.source import TaskExample, read_task
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.model import Evaluated, Opened, load_evaluated, open_evaluated, prompt_ids
from e2wm_jax.evaluate.predictions import Predictions, Record, content_digest, identity
from e2wm_jax.evaluate.settings import GenerationSettings
from e2wm_jax.evaluate.statistics import bootstrap_interval
from e2wm_jax.evaluate.table import show_scores
from e2wm_jax.evaluate.texts.continuations import first_lines
from e2wm_jax.evaluate.texts.prompting import WAYS_OUT, Fitted, Need, Prompting, fit
from e2wm_jax.models.decoding.generate import Decoding
from e2wm_jax.models.positions import fewer_new_tokens
from e2wm_jax.sharding import make_mesh

PATH_TASKS = ("obj_move_path",)
_ROUGES = ("rouge1", "rouge2", "rougeL")


def run(settings: GenerationSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, or an input that is too long for the model's positions, before weights
            are read; NonFiniteError for scores that are not finite.
    """
    check_at_least(("--samples", settings.samples, 1), ("--batch-size", settings.batch_size, 1))
    decoding = Decoding(settings.max_new_tokens, settings.beams)
    decoding.check()
    task = settings.task or settings.data.name.split(".")[0]
    examples = read_task(settings.data)[: settings.samples]
    require_scorer(task)
    mesh = None if settings.mesh is None else make_mesh(settings.mesh)
    prompting = Prompting(settings.special_tokens, settings.too_long, settings.chat)
    prompting.check()
    opened = open_evaluated(settings.model)
    fitted = fitting(opened, dict(enumerate(examples)), decoding, prompting)
    records = predict(
        load_evaluated(opened, settings.adapter, settings.base_dtype, mesh=mesh),
        fitted.examples,
        decoding,
        prompting,
        batch_size=settings.batch_size,
        path=settings.predictions,
        resume=settings.resume,
    )
    scores = example_scores(task, records)
    return {"task": task, **summary(scores), "n": len(records), **fitted.counts, "intervals": intervals(scores)}


def show(result: dict[str, Any]) -> None:
    """A line per score, with its interval."""
    show_scores(result)


def predict(
    evaluated: Evaluated,
    examples: Mapping[int, TaskExample],
    decoding: Decoding,
    prompting: Prompting = Prompting(),
    *,
    batch_size: int = 4,
    path: Path | None = None,
    resume: bool = False,
) -> list[Record]:
    """{"index", "prediction", "reference"} of every example, by its index in the file; also in ``path``, if given.

    Raises:
        InputError: as `Predictions` and `generate`.
    """
    made = identity(
        evaluated,
        content_digest([[index, example.input, example.ref] for index, example in examples.items()]),
        beams=decoding.num_beams,
        max_new_tokens=decoding.max_new_tokens,
        examples=len(examples),
        batch_size=batch_size,
        **asdict(prompting),
    )
    predictions = Predictions(path, made, examples, resume=resume, is_record=_is_record)
    indices = list(examples)
    done = {place for place, index in enumerate(indices) if index in predictions.done}
    prompts = _prompts(evaluated, examples, prompting)
    if prompting.too_long == "truncate":
        prompts = [ids[-_room(evaluated, decoding) :] for ids in prompts]
    names = [example.where for example in examples.values()]
    for batch in first_lines(evaluated, prompts, names, decoding, batch_size, done, chat=prompting.chat):
        written = {indices[place]: text for place, text in batch}
        predictions.add(
            [{"index": index, "prediction": text, "reference": examples[index].ref} for index, text in written.items()]
        )
    return predictions.finish()


def fitting(
    model: Opened | Evaluated,
    examples: Mapping[int, TaskExample],
    decoding: Decoding,
    prompting: Prompting,
    way_out: str = WAYS_OUT,
) -> Fitted:
    """The examples for whose prompts and new tokens the model has room, or is given it, without a forward pass.

    Raises:
        InputError: naming file:line of the first input that is empty, has a token without a row, or is too long.
    """
    new, needs = decoding.max_new_tokens, {}
    _room(model, decoding)
    encoded = _prompts(model, examples, prompting)
    for (index, example), ids in zip(examples.items(), encoded, strict=True):
        if not ids:
            raise InputError(f"{example.where}: 'input' has no tokens; a prompt must have one or more")
        needs[index] = Need(f"{example.where}: {len(ids)} tokens and --max-new-tokens {new}", len(ids) + new)
    positions = model.config.max_positions
    way_out = fewer_new_tokens(max(map(len, encoded), default=0), positions) + way_out
    return fit(examples, needs, positions, prompting.too_long, way_out)


def _room(model: Opened | Evaluated, decoding: Decoding) -> int:
    """Positions for a prompt."""
    new, positions = decoding.max_new_tokens, model.config.max_positions
    if new >= positions:
        raise InputError(f"--max-new-tokens {new}: leaves no room for a prompt in the model's {positions} positions")
    return positions - new


def _prompts(model: Opened | Evaluated, examples: Mapping[int, TaskExample], prompting: Prompting) -> list[list[int]]:
    asked = list(examples.values())
    texts = [example.input for example in asked]
    return prompt_ids(model, texts, prompting, where=lambda i: asked[i].where)


def example_scores(task: str, records: Sequence[Record]) -> dict[str, list[float]]:
    """Metric -> score of every prediction, 0 to 1: "lcs" for path tracking, "rouge1", "rouge2", "rougeL" otherwise."""
    pairs = [(record["prediction"], record["reference"]) for record in records]
    if task in PATH_TASKS:
        return {"lcs": [list_overlap(*pair) for pair in pairs]}
    rouges = [_rouge(*pair) for pair in pairs]
    return {name: [scores[name] for scores in rouges] for name in _ROUGES}


def require_scorer(task: str) -> None:
    """Refuse a task whose scores need a package that is not installed.

    Raises:
        InputError: if ROUGE is needed and rouge-score is missing.
    """
    if task not in PATH_TASKS:
        _scorer()


def summary(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of every metric."""
    return {name: sum(values) / len(values) for name, values in scores.items()}


def intervals(scores: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """The 95 % interval of every metric's mean."""
    return {name: bootstrap_interval(values) for name, values in scores.items()}


def majority(task: str, references: Sequence[str]) -> dict[str, float] | None:
    """What always giving the most common reference scores, if one occurs more than once: it needs no input."""
    answer, number = Counter(references).most_common(1)[0]
    if number == 1:
        return None
    return summary(example_scores(task, [{"prediction": answer, "reference": reference} for reference in references]))


def list_overlap(prediction: str, reference: str) -> float:
    """Length of the longest run of items that both ", " lists have in a row / items of the longer list."""
    ours, theirs = (text.strip().split(", ") for text in (prediction, reference))
    best, runs = 0, [0] * (len(theirs) + 1)  # runs[j]: common run that ends at the present item and at theirs[j - 1]
    for item in ours:
        runs = [0, *(runs[j] + 1 if item == theirs[j] else 0 for j in range(len(theirs)))]
        best = max(best, *runs)
    return best / max(len(ours), len(theirs))


def _rouge(prediction: str, reference: str) -> dict[str, float]:
    """F of each ROUGE of one text."""
    scores = _scorer().score(reference.strip(), prediction)
    return {name: scores[name].fmeasure for name in _ROUGES}


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError("ROUGE needs the package rouge-score; run `pip install rouge-score`") from error
    return RougeScorer(_ROUGES, use_stemmer=True)


def _is_record(record: Record) -> bool:
    return isinstance(record.get("prediction"), str) and isinstance(record.get("reference"), str)
