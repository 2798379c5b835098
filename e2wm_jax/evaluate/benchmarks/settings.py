"""The settings of `e2wm eval` for benchmarks of others: bAbI, Embodied Agent Interface, lm-evaluation-harness."""

from dataclasses import dataclass
from pathlib import Path

from e2wm_jax.config import BaseDType
from e2wm_jax.evaluate.benchmarks.embodied_agent_scores import AgentTask
from e2wm_jax.options.choices import TooLong


@dataclass(frozen=True)
class EmbodiedAgentSettings:
    """Write a model's responses to the Embodied Agent Interface and have its package score them."""

    out: Path
    """Directory: responses/TASK/NAME_outputs.json in the package's form, and TASK.json with the scores."""
    model: str | None = None
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model, one or more; several add up."""
    responses: Path | None = None
    """Instead of a model: responses to score, a JSON list of {"identifier", "llm_output"}."""
    task: AgentTask = "action_sequencing"
    """What is asked for."""
    name: str | None = None
    """What to call the model; by default the last part of --model."""
    samples: int | None = None
    """Use N prompts, evenly over all programs; all 342 by default."""
    beams: int = 1
    """Width of the beam search."""
    max_new_tokens: int = 512
    """The longest response."""
    batch_size: int = 4
    """Prompts at a time."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens."""
    chat: bool = False
    """Put each prompt into the tokenizer's chat template, as what a user says; the assistant's turn is the response."""
    resume: bool = False
    """Go on with the responses that an interrupted run has left."""
    base_dtype: BaseDType = "float32"
    """Weights and activations."""


@dataclass(frozen=True)
class BabiOptions:
    """How the questions are asked."""

    shots: int = 2
    """Worked examples before each question, from the train split."""
    samples: int | None = None
    """Ask the first N questions of each task's test split; all by default."""
    seed: int = 0
    """Of the choice of examples."""
    max_new_tokens: int = 16
    """Longest answer."""
    batch_size: int = 8
    """Questions at a time."""
    special_tokens: bool = False
    """Add the tokenizer's default special tokens."""
    too_long: TooLong = "refuse"
    """Questions that do not fit the model without any example: refuse, skip, or truncate them from the left."""
    chat: bool = False
    """Put each question with its examples into the tokenizer's chat template, as what a user says; the assistant's turn
    is the answer."""


@dataclass(frozen=True, kw_only=True)
class BabiSettings(BabiOptions):
    """Exact-match accuracy on bAbI tasks 1-20."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    data: Path
    """Folder or tar archive with bAbI's qa*_train.txt and qa*_test.txt."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model; several are added up."""
    tasks: str = "1-20"
    """Tasks, such as 1-20 or 1,2,15-17."""
    predictions: Path | None = None
    """Write one JSON line per question: index, task, prediction, answer, correct."""
    resume: bool = False
    """Go on with the predictions that are there."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits."""


@dataclass(frozen=True)
class HarnessSettings:
    """Scores on tasks of lm-evaluation-harness."""

    model: str
    """Hugging Face directory, .gguf file, hub id, or smollm2-135m."""
    tasks: tuple[str, ...]
    """Names of tasks or groups, between spaces or commas."""
    adapter: tuple[Path, ...] = ()
    """PEFT directories to put on the model; several are added up."""
    include_path: tuple[Path, ...] = ()
    """Folders with task files of one's own."""
    limit: int | None = None
    """Use the first N examples of each task; all by default."""
    shots: int | None = None
    """Worked examples before each question; by default what the task says."""
    seed: int = 0
    """Of the choice of worked examples, of sampling, and of the bootstrap."""
    bootstrap: int = 1000
    """Resamples for the standard errors that have no formula."""
    out: Path | None = None
    """Write all that the harness returns, every example with its answers, as JSON."""
    batch_size: int = 8
    """Rows per forward pass; the continuations of one context share a row."""
    max_length: int | None = None
    """Tokens that the model may read at a time; its positions by default."""
    special_tokens: bool = True
    """Add the tokenizer's default special tokens, as the harness does."""
    chat: bool = False
    """Put each question into the tokenizer's chat template, and worked examples as turns."""
    base_dtype: BaseDType = "float32"
    """Weights and activations; int8 and nf4 hold the matrices in 8 or 4 bits."""
