"""What several test files share: eight fake devices, the real model loaded once, and tiny models made on the spot."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.model_files import embedded_gguf
from e2wm_jax.models.weights import Model, load

SENTENCES = (
    "Mary walks to the kitchen. Mary grabs the apple and puts the apple on the table.",
    "Question: How many apples are there on the table? Answer: 1",
    "How to make coffee? 1. Walk to the coffee machine 2. Switch on the coffee machine 3. Wait",
    "Given a plan: 1. Walk to the bedroom 2. Lie on the bed. What is this activity? Answer: go to sleep",
    "The quick brown fox jumps over 13 lazy dogs, 27 cats and the fridge; where is the plate?",
)


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
def smollm2_torch(smollm2_gguf: Path, torch_oracle: Any) -> Any:
    """SmolLM2-135M as transformers loads it from the same file (about 20 s); leave it as it is."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch_oracle.float32
    ).eval()


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
    """save_llama(folder, seed=0, **config) writes a random LLaMA with its tokenizer and returns the torch model.

    Every weight is random, norms and biases too, so that one left out or swapped shows in the output.
    """
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
        with torch_oracle.no_grad():
            for name, parameter in model.named_parameters():
                center = 1.0 if "norm" in name else 0.0
                parameter.normal_(center, 0.3 if parameter.ndim == 1 else parameter.shape[1] ** -0.5)
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
