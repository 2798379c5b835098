"""The settings of `e2wm bench ...`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from e2wm_jax.config import BaseDType, DType
from e2wm_jax.experience.search.choose import Method
from e2wm_jax.experience.search.planner import Reward
from e2wm_jax.options.choices import REGULARIZER_NAMES, FisherDType, Implementation, Remat

# of `bench models`
FAMILIES = ("gpt_neo", "gptj", "gpt_neox", "opt", "llama", "mistral", "qwen3")
MethodName = Literal["textbook", "plain", "vmap", "scan", "fused", "fused-qv"]


PeerName = Literal["official", "torch-func", "backpack", "opacus", "jax-privacy"]


@dataclass(frozen=True)
class FisherBenchSettings:
    """Time and memory of Fisher passes against ordinary gradients; with the extra `peers`, against theirs."""

    model: str = "smollm2-135m"
    """As --model of the other commands."""
    shape: str | None = None
    """Random weights instead: neo6 (GPT-Neo, 6 layers of 384, 8192 words, tied), or a name such as gpt-neo-1.3b."""
    base_dtype: DType = "float32"
    """Of our weights; peers have float32, as the official code. F is float32 always."""
    length: int = 256
    """Tokens of a document; with --packed, of the longest and of a padded row."""
    batch_size: int = 4
    """Documents of one ordinary batch, and of one pass."""
    step_size: int | None = None
    """Documents of a step of `fused`, which makes a pass of several; default: one step. Fewer need less memory."""
    params: str = "all"
    """all, lora-targets (every linear map of the blocks), or a regular expression on Hugging Face parameter names."""
    methods: tuple[MethodName, ...] = ("textbook", "plain", "scan", "fused", "fused-qv")
    """Ours: gradients of a batch (textbook; plain, the fastest way found), Fisher passes (vmap holds a copy of the
    parameters per document; fused-qv: of the query and value maps only)."""
    method_from: tuple[str, ...] = ()
    """Methods of your own: my.py:my_fisher, a function (config, params, ids, loss) that returns F; see
    docs/performance.md."""
    against: tuple[PeerName, ...] = ("official", "torch-func", "backpack", "opacus", "jax-privacy")
    """Peers; those that are not installed are named with the command that installs them."""
    rounds: int = 5
    """Measurements of each, in turn, after one that compiles; the median counts."""
    packed: bool = False
    """Instead: documents of unequal lengths, in padded rows and packed, time per real token."""
    shortest: int = 50
    """With --packed: tokens of the shortest document."""
    documents: int = 64
    """With --packed: how many."""
    row: int | None = None
    """With --packed: tokens of a packed row at most; default: --length."""
    keep: float = 0.1
    """Of `fused`: memory for products that would be made again, as a share of the weights'."""
    kernel: Literal["xla", "pallas_tpu", "mosaic_gpu"] = "xla"
    """Of `fused`: what squares the documents' products, see kernels/README.md."""
    group: int = 1
    """Of `fused`: documents whose products are squared at once; 1 suits a CPU."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: processor time of the process that measures, for a CPU that others use too."""
    cores: int = 1
    """CPU cores for everyone; 0: all."""
    out: Path | None = None
    """New directory for report.html and the numbers as JSON."""
    seed: int = 0


@dataclass(frozen=True)
class PenaltyBenchSettings:
    """The EWC penalty and its gradients: ours, autodiff of the plain expression, and torch where it is installed."""

    modules: int = 8
    """Adapted matrices."""
    size: int = 2048
    """Their outputs and inputs."""
    rank: int = 8
    dtypes: tuple[FisherDType, ...] = ("float32", "bfloat16", "uint8")
    """Storage types of F."""
    implementations: tuple[Implementation, ...] = ("xla",)
    """pallas_tpu and mosaic_gpu run on their devices only."""
    steps: tuple[str, ...] = ("small-all",)
    """Training steps to measure with the penalty and without: small-qv, small-all (d = 512, 6 layers, 4 x 128 tokens),
    gpt-neo-1.3b-qv, gpt-neo-1.3b-all (20 x 512 tokens, for a GPU); none leaves them out."""
    repeats: int = 10
    """Measurements of each, in turn; the best counts."""
    out: Path | None = None
    """HTML file to write, with a plot."""
    seed: int = 0


@dataclass(frozen=True)
class TrainBenchSettings:
    """The EWC-LoRA step: tokens/s, MFU, memory, waiting, every regularizer's overhead, and what meshes need."""

    model: str = "smollm2-135m"
    """As --model of the other commands."""
    shape: str | None = None
    """Random weights instead: neo4 or llama4 (4 layers of 256), or a name such as gpt-neo-1.3b, gpt-j-6b, llama-13b."""
    base_dtype: BaseDType = "float32"
    """Of our frozen weights; the peer has float32 and runs beside float32 only."""
    data: str = "online:obj_move"
    """Mixture whose rows are read, as --data of `e2wm train`."""
    length: int | None = None
    """Made-up rows of so many tokens instead, as --shape needs; the last eighth of each is predicted."""
    batch_size: int = 4
    steps: int = 2
    """Steps of one measurement, each on rows of its own."""
    max_length: int = 800
    targets: tuple[str, ...] = ("all-linear", "q_proj,v_proj")
    """--lora.targets to measure; regularizers and waiting are measured with the first."""
    rank: int = 8
    dropout: float = 0.1
    remat: Remat = "none"
    regularizers: tuple[str, ...] = REGULARIZER_NAMES
    """Those whose overhead over none is measured; none alone: no other."""
    against: tuple[Literal["peft"], ...] = ("peft",)
    """PEFT + transformers, where torch is installed; --against without a name: nobody."""
    rounds: int = 3
    """Measurements of each, in turn, after one that compiles; the median counts."""
    waiting_steps: int = 8
    """Steps over which waiting for data is measured; 0: not."""
    meshes: tuple[str, ...] = ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2")
    """Meshes of fake CPU devices for which the step is compiled; --meshes without a name: none."""
    mesh_model: str = "llama4"
    """--shape of that step; its batch has a row per device of 128 tokens."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: processor time, for a CPU that others use too; with --cores 1, since threads that wait spin and count."""
    cores: int = 0
    """CPU cores for everyone; 0: all."""
    out: Path | None = None
    """New directory for report.html and the numbers as JSON."""
    seed: int = 0


@dataclass(frozen=True)
class LoaderBenchSettings:
    """Measure the data loader: files and online tasks, against plain loops and against a training step."""

    model: str = "smollm2-135m"
    """Whose tokenizer is used, and whose training step is fed."""
    tasks: tuple[str, ...] = ("obj_move", "count", "plan_gen", "act_recog")
    """Online tasks, with their options, e.g. "plan_gen?simulations=50"."""
    workers: tuple[int, ...] = tuple(sorted({1, os.cpu_count() or 1}))
    """Numbers of worker processes to try."""
    seconds: float = 5.0
    """About how long each plain loop runs; the loader then makes the same examples."""
    batch_size: int = 2
    """Examples of a training step, and of a batch of files."""
    max_length: int = 800
    steps: int = 3
    """Training steps to time, after one that compiles."""
    seed: int = 0


@dataclass(frozen=True)
class GenerateBenchSettings:
    """Greedy generation and answer scoring; where torch is installed transformers generates in the same run."""

    model: str = "smollm2-135m"
    dtypes: tuple[BaseDType, ...] = ("float32", "bfloat16", "int8")
    """Of our weights; transformers has the first two."""
    prompts: int = 8
    prompt_tokens: int = 64
    """Of the longest prompt; the shortest has half."""
    new_tokens: int = 64
    beams: int = 1
    questions: int = 8
    """To score; 0 leaves that out."""
    data: Path | None = None
    """Multiple-choice file to take them from, the shortest first; by default they are made up."""
    batch_size: int = 4
    """Rows at a time when answers are scored, shared prompt or not."""
    rounds: int = 3
    """Measurements of each, in turn; the best counts."""
    seed: int = 0


@dataclass(frozen=True)
class ModelsBenchSettings:
    """Passes of small random models of every family, and of real ones; transformers too, where torch is installed."""

    families: tuple[str, ...] = FAMILIES
    """Small random models to measure."""
    models: tuple[str, ...] = ("smollm2-135m",)
    """Real ones, as --model takes them."""
    dtype: DType = "float32"
    batch_size: int = 4
    tokens: int = 128
    """Of a row of the passes; prompts of the generation have a quarter."""
    new_tokens: int = 32
    rounds: int = 3
    """Measurements of each, in turn; the best counts."""
    seed: int = 0


@dataclass(frozen=True)
class WorldBenchSettings:
    """Measure the engines of the world, all on the same random lines; the baseline is VirtualHome's own executor."""

    scene: str = "procedural:0"
    """A VirtualHome graph, robothow:ID or procedural:SEED."""
    dialect: str = "vh23"
    """Rules of ours; the baseline has those of vh23 whatever they are."""
    environments: tuple[int, ...] = (64, 1024)
    """Sizes of batches on the default device of JAX."""
    slots: int = 32
    """Edges that a state of the JAX engine has room for; random play of 40 lines has 16 at most."""
    episodes: int = 16
    """Different episodes; larger batches repeat them."""
    length: int = 40
    """Lines of an episode."""
    rounds: int = 3
    """Every engine is measured so often, in turn; its fastest round counts."""
    seed: int = 0


@dataclass(frozen=True)
class SearchBenchSettings:
    """Search for plans for goals of RobotHow programs, with every search, one after the other on one core."""

    goals: int = 12
    """How many of the 518, activities in turn."""
    methods: tuple[Method, ...] = ("mcts", "best-first")
    """Compiled searches; mcts-batched searches for the goals side by side on JAX's default device."""
    search_batch: int = 64
    """mcts-batched: goals side by side."""
    simulations: int = 20_000
    reference_simulations: int = 100
    """Of E2WM's search over the installed executor, which is what the others are compared with; 0 leaves it out."""
    dialect: str = "vh23"
    """Rules of the world; the reference is left out where they are not vh23."""
    max_depth: int = 25
    reward: Reward = "official"
    shorten: bool = True
    """Leave out moves that were not needed."""
    seed: int = 0
