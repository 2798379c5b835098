"""Whatever a model's or an adapter's files hold: they are read, or refused in one line; never another exception."""

import contextlib
import copy
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2wm_jax.config import LlamaConfig
from e2wm_jax.errors import InputError
from e2wm_jax.lora import linear_modules
from e2wm_jax.models.gguf import open_gguf_model
from e2wm_jax.models.weights import config_from_hf
from e2wm_jax.storage.adapter_config import read_config
from e2wm_jax.storage.adapter_files import read_adapter
from e2wm_jax.storage.gguf_tokenizer import gguf_tokenizer
from e2wm_jax.storage.tensor_files import open_safetensors

FUZZ = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
TINY = LlamaConfig(
    vocab_size=8, hidden_size=4, intermediate_size=4, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=2,
    max_positions=8,
)  # fmt: skip
MODULES = [module for names in linear_modules(TINY).values() for module in names]

numbers = st.one_of(
    st.integers(-3, 9),
    st.sampled_from([True, False, 2**31, 2**64, 10**400, 1e300, math.inf, -math.inf, math.nan, -0.0]),
    st.floats(),
)
texts = st.one_of(
    st.text(max_size=6), st.sampled_from(["q_proj", "(", "[", "(?i)a", "a{99999999999}", "layers", "\ud800"])
)
leaves = st.one_of(st.none(), numbers, texts)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=4,
)


def read_or_refused(read: Callable[[], Any]) -> None:
    with contextlib.suppress(InputError):
        read()


@st.composite
def changed(draw: st.DrawFn, bases: list[dict[str, Any]]) -> dict[str, Any]:
    """A good record with some keys left out, or with other values."""
    record = copy.deepcopy(draw(st.sampled_from(bases)))
    for key in draw(st.lists(st.sampled_from(sorted(record)), max_size=3)):
        if draw(st.booleans()):
            record[key] = draw(values)
        else:
            record.pop(key, None)
    return record | draw(st.dictionaries(texts, values, max_size=1))


LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": 60, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 64},
    "tie_word_embeddings": True, "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1,
    "layer_types": ["full_attention", "sliding_attention"], "attention_bias": False, "hidden_act": "silu",
}  # fmt: skip
CONFIGS: list[dict[str, Any]] = [
    *({"model_type": kind, **LLAMA} for kind in ("llama", "qwen2", "qwen3")),
    {"model_type": "mistral", **LLAMA, "layer_types": None},
    {"model_type": "llama", **LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "sliding_window": None},
    {"model_type": "gpt_neox", **LLAMA, "rotary_pct": 0.5, "rotary_emb_base": 1e4, "hidden_act": "gelu",
     "use_parallel_residual": True, "layer_norm_eps": 1e-5},
    {"model_type": "gpt_neo", "hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 60, "window_size": 4,
     "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64, "intermediate_size": None},
    {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 64, "n_inner": None,
     "vocab_size": 60, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
     "vocab_size": 60, "max_position_embeddings": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
]  # fmt: skip


@FUZZ
@given(changed(CONFIGS))
def test_configurations(raw: dict[str, Any]) -> None:
    read_or_refused(lambda: config_from_hf(raw, Path("config.json")))


ADAPTERS: list[dict[str, Any]] = [
    {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"],
     "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3.0}, "use_rslora": False,
     "exclude_modules": None, "layers_to_transform": [0], "layers_pattern": "layers", "bias": "none",
     "init_lora_weights": True, "modules_to_save": None},
    {"peft_type": "LORA", "r": 1, "target_modules": ".*_proj", "lora_dropout": 0.1, "init_lora_weights": "gaussian"},
]  # fmt: skip


@FUZZ
@given(changed(ADAPTERS))
def test_adapter_configurations(tmp_path_factory: pytest.TempPathFactory, raw: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "adapter_config.json"
    path.write_text(json.dumps(raw))

    def read() -> None:
        said = read_config(path)
        for module in MODULES:
            assert isinstance(said.targets(module), bool)
            assert said.rank(module) >= 1
            assert math.isfinite(said.alpha(module))

    read_or_refused(read)


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some others in their place, some left out, or the end cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        new = draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"\0" * 8, b"\xff" * 8, b"[" * 2000])))
        data[at : at + draw(st.integers(0, len(new)))] = new
    return bytes(data[: draw(st.one_of(st.none(), st.integers(0, len(data))))])


def safetensors(header: Any, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


NAMES = [f"base_model.model.{MODULES[0]}.lora_{side}.weight" for side in "AB"]
HEADER = {
    "__metadata__": {"format": "pt"},
    NAMES[0]: {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    NAMES[1]: {"dtype": "F32", "shape": [4, 2], "data_offsets": [32, 64]},
}
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "F8_E4M3", "F4", "BOOL"]), leaves),
        "shape": st.one_of(st.lists(st.one_of(st.integers(0, 4), numbers), max_size=3), leaves),
        "data_offsets": st.one_of(st.lists(st.one_of(st.sampled_from([0, 16, 32, 64]), numbers), max_size=3), leaves),
    },
)
headers = st.one_of(
    st.dictionaries(st.one_of(st.sampled_from(NAMES), texts), st.one_of(entries, values), max_size=2),
    st.builds(lambda name, entry: {**HEADER, name: {**HEADER[NAMES[0]], **entry}}, st.sampled_from(NAMES), entries),
)


@FUZZ
@given(st.one_of(mutated(safetensors(HEADER)), headers.map(safetensors), values.map(safetensors)))
def test_safetensors(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}')
    (folder / "adapter_model.safetensors").write_bytes(data)

    def read() -> None:
        source = open_safetensors([folder / "adapter_model.safetensors"])
        for name, (shape, _, _) in source.headers.items():
            assert isinstance(name, str)
            assert all(isinstance(size, int) for size in shape)
        read_adapter(folder, TINY)

    read_or_refused(read)


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def field(key: str, value: Any) -> bytes:
    return text(key) + typed(value)


def typed(value: Any) -> bytes:
    """Type and value, as in a GGUF file; what it cannot hold is left out."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Iq", 11, max(-(2**63), min(value, 2**63 - 1)))
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    inner = [typed(each) for each in value] if isinstance(value, list) else []
    kind = inner[0][:4] if inner else struct.pack("<I", 8)
    alike = [each[4:] for each in inner if each[:4] == kind]
    return struct.pack("<I", 9) + kind + struct.pack("<Q", len(alike)) + b"".join(alike)


def gguf_bytes(fields: dict[str, Any]) -> bytes:
    """A GGUF file without tensors, but one of the type F32."""
    body = b"".join(field(key, value) for key, value in fields.items())
    info = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 4, 8, 0, 0)
    whole = b"GGUF" + struct.pack("<IQQ", 3, 1, len(fields)) + body + info
    return whole + bytes(-len(whole) % 32 + 4 * 32)


TOKENS = ["a", "b", "c", "ab", "<s>", "</s>", "<think>", "<0x41>"]
GGUF: dict[str, Any] = {
    "general.architecture": "llama", "general.alignment": 32, "llama.block_count": 1, "llama.context_length": 8,
    "llama.embedding_length": 4, "llama.feed_forward_length": 4, "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1, "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.rope.dimension_count": 2, "llama.rope.freq_base": 1e4, "llama.rope.scaling.factor": 2.0,
    "split.count": 1, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.scores": [0.0, -1.0, -2.0, -3.0, 0.0, 0.0, 0.0, 0.0],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 3, 3, 4, 6], "tokenizer.ggml.bos_token_id": 4,
    "tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": "{{ messages }}",
}  # fmt: skip
GGUFS = [
    GGUF,
    {key.replace("llama.", "gptneox.").replace("_rms_", "_"): value for key, value in GGUF.items()}
    | {"general.architecture": "gptneox", "gptneox.attention.head_count_kv": 2},
    {**GGUF, "tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": True},
]


@FUZZ
@given(st.one_of(mutated(gguf_bytes(GGUF)), changed(GGUFS).map(gguf_bytes)))
def test_gguf(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "model.gguf"
    path.write_bytes(data)
    read_or_refused(lambda: open_gguf_model(path))
    read_or_refused(lambda: gguf_tokenizer(path))


def test_names_that_hold_ends_of_lines_make_no_second_line(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "a\nb": 1}))
    with pytest.raises(InputError, match=r"adapter_config\.json: a b = 1 is not supported"):
        read_config(tmp_path / "adapter_config.json")


def test_what_is_mutated_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for fields in GGUFS:
        path.write_bytes(gguf_bytes(fields))
        open_gguf_model(path)
        assert gguf_tokenizer(path)("ab")["input_ids"]
    for raw in CONFIGS:
        config_from_hf(raw, path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}')
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors(HEADER))
    adapters, _ = read_adapter(tmp_path, TINY)
    np.testing.assert_array_equal(adapters["layers.q"]["a"], np.zeros((1, 2, 4)))
