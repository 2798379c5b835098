"""`e2wm eval generate`: free answers against references, as the official code does it.

Beam search without sampling, cut at the first newline.  ROUGE with stemmer (Lin 2004), mean F of all examples; for path
tracking the longest run of places that both lists have in a row, over the length of the longer list.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2wm_jax.config import BaseDType
from e2wm_jax.data.source import read_task
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.continuations import continuations, ending_tokens
from e2wm_jax.evaluate.model import load_evaluated
from e2wm_jax.files import write_json_lines
from e2wm_jax.model_files import locate
from e2wm_jax.models.generate import Decoding

_PATH_TASKS = ("obj_move_path",)
_ROUGES = ("rouge1", "rouge2", "rougeL")


@dataclass(frozen=True)
class GenerationSettings:
    """Score what a model writes on a generation file."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: Path
    """JSON lines {"input", "ref"}, possibly .gz."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model, one or more; several add up."""
    task: str | None = None
    """Task name, by default the file's name; obj_move_path is scored by its list of places, others by ROUGE."""
    samples: int | None = None
    """Use the first N examples; all by default."""
    beams: int = 4
    max_new_tokens: int = 256
    predictions: Path | None = None
    """Write one JSON line per example: index, prediction, reference."""
    batch_size: int = 4
    """Examples at a time."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens (the official code does not)."""
    base_dtype: BaseDType = "float32"
    """Weights and activations."""


def run(settings: GenerationSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, or an input that is too long for the model's positions.
    """
    check_at_least(("--samples", settings.samples, 1), ("--batch-size", settings.batch_size, 1))
    decoding = Decoding(settings.max_new_tokens, settings.beams)
    decoding.check()
    task = settings.task or settings.data.name.split(".")[0]
    examples = read_task(settings.data)[: settings.samples]
    found = continuations(
        load_evaluated(settings.model, settings.adapter, settings.base_dtype),
        [example.input for example in examples],
        decoding,
        ends=ending_tokens(locate(settings.model)),
        stop="\n",
        batch_size=settings.batch_size,
        special_tokens=settings.special_tokens,
        names=[example.where for example in examples],
    )
    predictions = [text.strip() for text in found]
    references = [example.ref for example in examples]
    if settings.predictions is not None:
        pairs = zip(predictions, references, strict=True)
        write_json_lines(
            settings.predictions,
            [{"index": i, "prediction": ours, "reference": ref} for i, (ours, ref) in enumerate(pairs)],
        )
    score = mean_lcs if task in _PATH_TASKS else mean_rouge
    return {"task": task, **score(predictions, references), "n": len(examples)}


def mean_rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F of rouge1, rouge2 and rougeL with stemming, 0 to 1.

    Raises:
        InputError: if the package rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise InputError("ROUGE needs the package rouge-score; run `pip install rouge-score`") from error
    scorer = RougeScorer(_ROUGES, use_stemmer=True)
    scores = [scorer.score(ref.strip(), ours) for ours, ref in zip(predictions, references, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in _ROUGES}


def mean_lcs(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean of `list_overlap` of lists like "kitchen, bedroom, kitchen"."""
    scores = [list_overlap(ours, ref) for ours, ref in zip(predictions, references, strict=True)]
    return {"lcs": sum(scores) / len(scores)}


def list_overlap(prediction: str, reference: str) -> float:
    """Length of the longest run of items that both ", " lists have in a row / items of the longer list."""
    ours, theirs = (text.strip().split(", ") for text in (prediction, reference))
    best, runs = 0, [0] * (len(theirs) + 1)  # runs[j]: common run that ends at the present item and at theirs[j - 1]
    for item in ours:
        runs = [0, *(runs[j] + 1 if item == theirs[j] else 0 for j in range(len(theirs)))]
        best = max(best, *runs)
    return best / max(len(ours), len(theirs))
