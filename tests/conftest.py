"""What several test files share: eight fake devices, the real model loaded once, and tiny models made on the spot."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from pathlib import Path

# Many tests compile one small model anew, in one process after the other.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import ctypes
import gc
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import array_checks  # noqa: F401  before anything of e2wm_jax is imported
import jax
import pytest
from helpers import randomize, unaltered
from hypothesis import settings

from e2wm_jax.errors import InputError
from e2wm_jax.models.weights import Model, load
from e2wm_jax.storage.model_files import embedded_gguf

# The same cases each time; `pytest --hypothesis-profile default` looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

SENTENCES = (
    "Mary walks to the kitchen. Mary grabs the apple and puts the apple on the table.",
    "Question: How many apples are there on the table? Answer: 1",
    "How to make coffee? 1. Walk to the coffee machine 2. Switch on the coffee machine 3. Wait",
    "Given a plan: 1. Walk to the bedroom 2. Lie on the bed. What is this activity? Answer: go to sleep",
    "The quick brown fox jumps over 13 lazy dogs, 27 cats and the fridge; where is the plate?",
)


# Compiling a small model takes seconds, running it milliseconds; without XLA's optimizations, a tenth of these seconds.
ROOM = 2 << 30  # bytes of a process that needs no module to end
QUICK = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # later ones know no such option
    QUICK["xla_cpu_use_fusion_emitters"] = False


# What JAX keeps of a function it keeps for each of the two.
COMPILES_QUICKLY = jax.make_user_context(False)


@pytest.fixture(scope="session")
def quick_where_asked() -> Iterator[None]:
    """XLA's options where `COMPILES_QUICKLY` says so."""
    from jax._src import compiler  # there is no public switch; `jax_disable_most_optimizations` leaves half of the time

    jax.devices()  # from here on this process does not look at XLA_FLAGS again
    original = compiler.get_compile_options

    @wraps(original)
    def options_of(*args: Any, **options: Any) -> Any:
        if COMPILES_QUICKLY.value:
            options["env_options_overrides"] = {**QUICK, **(options.get("env_options_overrides") or {})}
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", options_of)
        yield


@pytest.fixture(scope="module")
def quick_compilation(quick_where_asked: None) -> Iterator[None]:
    """XLA compiles without its optimizations, here and in processes that a test starts.

    For modules whose tests are about numbers (``pytestmark``); a test about the program itself, such as the memory it
    takes, asks for `full_compilation` as well. bfloat16 is rounded after each operation here, hence more often.
    """
    flags = (f"--{name}={str(value).lower()}" for name, value in QUICK.items())
    with pytest.MonkeyPatch.context() as patch, COMPILES_QUICKLY(True):
        patch.setenv("XLA_FLAGS", " ".join([os.environ["XLA_FLAGS"], *flags]))
        yield


@pytest.fixture
def full_compilation(quick_compilation: None) -> Iterator[None]:
    """In a module of `quick_compilation`: a test for which XLA optimizes as it does for users."""
    with COMPILES_QUICKLY(False):
        yield


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back() -> Iterator[None]:
    """Compiled programs stay for the next modules, but not all of a suite's."""
    yield
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if sys.platform == "linux" else 0
    if pages * resource.getpagesize() > ROOM:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, as their marks say, so that no process is left alone with one at the end."""
    cost: Counter[Path] = Counter()
    for item in items:
        cost[item.path] += 100 if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: (-cost[item.path], item.path))  # stable: files keep the order of their tests


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Released data that is not part of the repository: $E2WM_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("E2WM_DATA", Path(__file__).parents[2] / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no released data in {folder}; set E2WM_DATA")
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The embedded default's file."""
    try:
        return embedded_gguf()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Model:
    """SmolLM2-135M as we load it, in float32; read it only."""
    return load("smollm2-135m")


@pytest.fixture(scope="session")
def torch_oracle() -> Any:
    """torch on one thread: its waiting threads spin, which on a busy machine costs ten times what they bring."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="session")
def smollm2_torch_once(smollm2_gguf: Path, torch_oracle: Any) -> Any:
    """SmolLM2-135M as transformers loads it from the same file (about 20 s); `smollm2_torch` is what tests ask for."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch_oracle.float32
    ).eval()


@pytest.fixture(scope="module")
def smollm2_torch(smollm2_torch_once: Any) -> Iterator[Any]:
    """SmolLM2-135M in transformers, in float32; leave it as it is."""
    with unaltered(smollm2_torch_once) as model:
        yield model


@pytest.fixture
def double_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes a norm's statistics in float32 whatever the dtype; here they are to be float64."""
    modeling = pytest.importorskip("transformers.models.llama.modeling_llama")

    def forward(self: Any, x: Any) -> Any:
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    monkeypatch.setattr(modeling.LlamaRMSNorm, "forward", forward)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer trained on `SENTENCES`: 256 bytes, some merges, <|begin|> = 0 and <|end|> = 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>")


@pytest.fixture(scope="session")
def save_llama(tiny_tokenizer: Any, torch_oracle: Any) -> Callable[..., Any]:
    """save_llama(folder, seed=0, **config) writes a random LLaMA with its tokenizer and returns the torch model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def save(folder: Path, *, seed: int = 0, save_options: dict[str, Any] | None = None, **config: Any) -> Any:
        small = {
            "vocab_size": 320,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        torch_oracle.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**small, **config})).eval()
        randomize(model)
        model.save_pretrained(folder, **(save_options or {}))
        tiny_tokenizer.save_pretrained(folder)
        return model

    return save


@pytest.fixture(scope="session")
def tiny_llama(save_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a two-layer LLaMA of width 32 with a tokenizer; read it only."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_llama(folder)
    return folder
