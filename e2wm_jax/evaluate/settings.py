"""The settings of `e2wm eval ...` and of `e2wm generate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2wm_jax.config import BaseDType
from e2wm_jax.options.choices import TooLong
from e2wm_jax.worlds.household.engine import Engine


@dataclass(frozen=True)
class QaSettings:
    """Accuracy on a multiple-choice file."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: Path
    """JSON lines {"input", "answer", "answer_list"}, possibly .gz."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model; several are added up."""
    task: str | None = None
    """Task name, which decides the scoring rule; by default the file's name."""
    samples: int | None = None
    """Use the first N questions; all by default."""
    predictions: Path | None = None
    """Write one JSON line per question: index, scores, choice, gold."""
    resume: bool = False
    """Go on with the predictions that an interrupted run has left."""
    batch_size: int = 4
    """Questions per forward pass."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens (the official code does not)."""
    too_long: TooLong = "refuse"
    """Questions with more tokens than the model has positions: refuse them, skip them, or truncate from the left."""
    chat: bool = False
    """Put each question into the tokenizer's chat template, as what a user says; its answers are the assistant's."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits."""
    mesh: str | None = None
    """Devices by axis, e.g. data=4,tensor=2: questions are split over data and fsdp, weights over fsdp and tensor."""


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
    resume: bool = False
    """Go on with the predictions that an interrupted run has left."""
    batch_size: int = 4
    """Examples at a time."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens (the official code does not)."""
    too_long: TooLong = "refuse"
    """Prompts that leave too few of the model's positions: refuse them, skip them, or truncate from the left."""
    chat: bool = False
    """Put each prompt into the tokenizer's chat template, as what a user says; the assistant's turn is the answer."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits."""
    mesh: str | None = None
    """Devices by axis, e.g. data=4,tensor=2: rows are split over data and fsdp, weights over fsdp and tensor."""


@dataclass(frozen=True)
class PerplexitySettings:
    """Perplexity of a model on text documents."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: str
    """Text: .txt with blank lines between documents, rows with "text" or of another form (docs/data.md), or
    pydoc:held-out."""
    columns: str = ""
    """Which column is which, where their names do not say it: text=body."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model; several are added up."""
    max_length: int = 800
    """Documents are cut to this many tokens."""
    samples: int | None = None
    """Use the first N documents; all by default."""
    batch_size: int = 8
    """Documents per forward pass."""
    predictions: Path | None = None
    """Write one JSON line per document: index, nats (their sum), tokens, bytes."""
    resume: bool = False
    """Go on with the predictions that an interrupted run has left."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens (the official code does not)."""
    too_long: TooLong = "refuse"
    """Documents with more tokens (of --max-length) than the model has positions: refuse, skip, or truncate them."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits."""
    mesh: str | None = None
    """Devices by axis, e.g. data=4,tensor=2: documents are split over data and fsdp, weights over fsdp and tensor."""


@dataclass(frozen=True)
class PlansSettings:
    """Carry out the plans of a plan_gen file in the world: a model's, the references, and empty ones."""

    data: Path
    """Task file of plans {"input", "ref"}: plan_gen*.json of `e2wm tasks` or E2WM's own, possibly .gz."""
    predictions: Path | None = None
    """What `e2wm eval generate` or `eval all` wrote for this file, or a part of it; with --model, where to write it."""
    model: str | None = None
    """Write the plans with this model, as `e2wm eval generate` does; without it and --predictions, only references."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model, one or more; several add up."""
    experiences: tuple[Path, ...] = ()
    """Directories of `e2wm collect` that a file without *.json.sources beside it was made of."""
    scenes: Path | None = None
    """Folder of scene graphs, for scenes that are no longer where they were when they were lived in."""
    dialect: str | None = None
    """Rules of the world: vh23, vh19 or e2wm; by default those of the episode, and vh19 for RobotHow's programs."""
    engine: Engine = "array"
    """Ours, for all dialects; or the installed virtualhome executor, which is vh23."""
    records: Path | None = None
    """Write one JSON line per example: its world, its goal, and what became of each sentence."""
    samples: int | None = None
    """Use the first N examples; all by default."""
    beams: int = 4
    """Width of the model's beam search."""
    max_new_tokens: int = 256
    """The longest plan of the model."""
    too_long: Literal["refuse", "truncate"] = "refuse"
    """Prompts that leave too few of the model's positions: refuse them, or truncate from the left."""
    chat: bool = False
    """Put each prompt into the tokenizer's chat template, as what a user says; the assistant's turn is the plan."""
    resume: bool = False
    """Go on with the predictions that an interrupted run has left."""
    batch_size: int = 4
    """Prompts at a time."""
    base_dtype: BaseDType = "float32"
    """Weights and activations."""


@dataclass(frozen=True)
class SuiteOptions:
    """How the sets are evaluated."""

    samples: int | None = None
    """At most N examples of each set, drawn by the seed, the same for every model; of bAbI the first N of each task."""
    seed: int = 0
    """Of that draw."""
    batch_size: int = 4
    """Examples per forward pass."""
    beams: int = 4
    """Width of the beam search of generation sets."""
    max_new_tokens: int = 256
    """Of generation sets."""
    max_length: int = 800
    """Documents of general text are cut to this many tokens."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens (the official code does not)."""
    too_long: TooLong = "refuse"
    """Examples with more tokens than the model has positions: refuse, skip, or truncate them, prompts from the left."""
    chat: bool = False
    """Put questions and prompts into the tokenizer's chat template, as what a user says; not general text."""
    train: tuple[Path, ...] = ()
    """Training files {"input", "ref"}: what of the sets occurs in them is reported, and scored apart."""
    resume: bool = False
    """Go on with the predictions that an interrupted run has left."""


@dataclass(frozen=True, kw_only=True)
class SuiteSettings(SuiteOptions):
    """Evaluate a model on every set of a folder."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: tuple[str, ...]
    """Folders and files: the official sets by name, *.txt and *.jsonl as general text, bAbI, or pydoc:held-out."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model; several are added up."""
    sets: tuple[str, ...] = ()
    """Only sets of these names or kinds (qa, generate, babi, perplexity)."""
    out: Path | None = None
    """Directory for results.json and predictions."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits."""
    mesh: str | None = None
    """Devices by axis, e.g. data=4,tensor=2: rows are split over data and fsdp, weights over fsdp and tensor."""


@dataclass(frozen=True)
class GenerateSettings:
    """Continue prompts; greedy unless beams or sampling are asked for."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    prompt: tuple[str, ...] = ()
    """Text to continue; may be given several times."""
    prompts: Path | None = None
    """File of more prompts: JSON lines with "input" or "prompt", or .txt with one prompt per line (either .gz)."""
    chat: bool = False
    """Put each prompt into the tokenizer's chat template, as what a user says; the assistant's turn is the text."""
    system: str | None = None
    """What the system says in front of each prompt, with --chat."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model, one or more; several add up."""
    max_new_tokens: int = 64
    beams: int = 1
    """Width of the beam search, as transformers' num_beams."""
    length_penalty: float = 1.0
    """Of beams: log-likelihood / length ** penalty."""
    sample: bool = False
    """Draw tokens, as do_sample of transformers; any of the next three does so too. What is not given is as the
    checkpoint's generation_config.json has it, or else temperature 1, the 50 likeliest tokens, any probability."""
    temperature: float | None = None
    """Draw tokens from the scores divided by this."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only; 0: from all."""
    top_p: float | None = None
    """Draw from the likeliest tokens whose probability reaches p only."""
    stop: str | None = None
    """Cut the text before this string, e.g. $'\\n'."""
    seed: int = 0
    batch_size: int = 8
    """Prompts at a time."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens."""
    base_dtype: BaseDType = "float32"
    """Weights and activations."""
