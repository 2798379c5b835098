"""Weights in from GGUF files, written here as llama.cpp's converter writes them."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import random_torch_model

from e2wm_jax.config import MODELS, GPTNeoXConfig, LlamaConfig
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.export.run import ExportSettings, run
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.gguf import open_gguf_model
from e2wm_jax.models.weights import Model, flatten, load
from e2wm_jax.sharding import make_mesh
from e2wm_jax.storage.gguf_file import read_gguf
from e2wm_jax.storage.model_files import locate

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
NEOX_NAMES = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleave(value: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's own permutation of q and k (convert_hf_to_gguf.py, LlamaModel.permute)."""
    shape = value.shape
    return value.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def converted(name: str, value: np.ndarray, config: Any) -> tuple[str, np.ndarray]:
    """A Hugging Face tensor under its name and in its order in a GGUF file (convert_hf_to_gguf.py)."""
    module, kind = name.rsplit(".", 1)
    layer = next((word for word in name.split(".") if word.isdigit()), None)
    if isinstance(config, GPTNeoXConfig):
        end = module if layer is None else module.split(f".{layer}.")[1]
        if end.endswith("query_key_value"):
            split = value.reshape(config.num_heads, 3, config.head_dim, *value.shape[1:])
            value = np.concatenate([split[:, part].reshape(-1, *value.shape[1:]) for part in range(3)])
        return ("" if layer is None else f"blk.{layer}.") + f"{NEOX_NAMES[end]}.{kind}", value
    spec = next(spec for spec in weight_table(config).values() if spec.hf.format(layer) == name)
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(module.rpartition(".")[2])
    permuted = config.model_type in ("llama", "mistral") and heads
    return spec.gguf.format(layer), interleave(value, heads) if permuted else value


def write_gguf(
    path: Path,
    model: Model,
    *,
    architecture: str | None = None,
    fields: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    only: Callable[[str], bool] = lambda name: True,
    **changes: Any,
) -> None:
    """`model` as llama.cpp's converter would write it, with other metadata and further tensors, or `only` some."""
    import gguf

    c: Any = model.config
    own = {"mistral": "llama"}.get(c.model_type, c.model_type) if isinstance(c, LlamaConfig) else "gptneox"
    architecture = architecture or own
    writer = gguf.GGUFWriter(path, architecture)
    metadata = {
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "block_count": c.num_layers,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.num_kv_heads,
        "rope.dimension_count": c.rotary_dim if own == "gptneox" else c.head_dim,
        "context_length": c.max_positions,
        **changes,
    }
    for key, value in metadata.items():
        if value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    for key, value in (fields or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, list: writer.add_array}.get(type(value))
        (add or writer.add_uint32)(key, value)
    norm = "layer_norm_epsilon" if own == "gptneox" else "layer_norm_rms_epsilon"
    writer.add_float32(f"{architecture}.rope.freq_base", c.rope_theta)
    writer.add_float32(f"{architecture}.attention.{norm}", c.norm_eps)
    if "tokenizer.ggml.tokens" not in (fields or {}):
        writer.add_array("tokenizer.ggml.tokens", [f"t{index}" for index in range(c.vocab_size)])
    for name, spec in weight_table(c).items():
        value = np.asarray(flatten(model.params)[name])
        for layer, one in enumerate(value if spec.stacked else value[None]):
            their_name, theirs = converted(spec.hf.format(layer), one, c)
            if only(their_name):
                writer.add_tensor(their_name, np.array(theirs))
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def assert_same_model(ours: Model, expected: Model) -> None:
    # Constants are float32 in a GGUF file; the rest of the configuration is the same.
    constants = {"norm_eps": pytest.approx(expected.config.norm_eps), "initializer_range": 0.02}  # type: ignore[attr-defined]
    assert vars(ours.config) == {**vars(expected.config), **constants}
    assert flatten(ours.params).keys() == flatten(expected.params).keys()
    for path, value in flatten(ours.params).items():
        np.testing.assert_array_equal(value, flatten(expected.params)[path], path)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 1},
        {"head_dim": 12, "num_key_value_heads": 4},
        {"attention_bias": True, "mlp_bias": True},
    ],
)
def test_gguf(shape: dict[str, Any], save_llama: Callable[..., Any], tmp_path: Path) -> None:
    save_llama(tmp_path, **shape)
    expected = load(str(tmp_path))
    write_gguf(tmp_path / "model.gguf", expected)
    assert_same_model(load(str(tmp_path / "model.gguf")), expected)


@pytest.fixture
def random_model(torch_oracle: Any, tmp_path: Path) -> Callable[..., Model]:
    """random_model("qwen2", **config): a model that transformers made, as we load it."""

    def make(model_type: str, **options: Any) -> Model:
        model = random_torch_model(model_type, **{"vocab_size": 60, **WIDTH, **options})
        model.save_pretrained(tmp_path / "theirs")
        return load(str(tmp_path / "theirs"))

    return make


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
        ("qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
        ("gpt_neox", {"rotary_pct": 0.5}),
        ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    ],
)
def test_other_architectures(
    model_type: str, options: dict[str, Any], random_model: Callable[..., Model], tmp_path: Path
) -> None:
    expected = random_model(model_type, **options)
    fields = {}
    if isinstance(expected.config, GPTNeoXConfig):
        fields["gptneox.use_parallel_residual"] = int(expected.config.parallel)
    lengths = {"attention.key_length": 16, "attention.value_length": 16} if "head_dim" in options else {}
    write_gguf(tmp_path / "model.gguf", expected, fields=fields, **lengths)
    assert_same_model(load(str(tmp_path / "model.gguf")), expected)


def test_each_device_reads_its_part(random_model: Callable[..., Model], tmp_path: Path) -> None:
    """The rows of a part are found through the order in which the file has them."""
    mesh = make_mesh("fsdp=2,tensor=4")
    for model_type in ("llama", "gpt_neox"):
        expected = random_model(model_type)
        write_gguf(tmp_path / "model.gguf", expected)
        assert_same_model(load(str(tmp_path / "model.gguf"), mesh=mesh), expected)


def test_linear_rotary_scaling(save_llama: Callable[..., Any], tmp_path: Path) -> None:
    save_llama(tmp_path, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    expected = load(str(tmp_path))
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    write_gguf(tmp_path / "model.gguf", expected, fields=fields)
    assert_same_model(load(str(tmp_path / "model.gguf")), expected)
    for fields in ({"llama.rope.scale_linear": 2.0}, {"llama.rope.scaling.factor": 2.0}):  # linear, as in llama.cpp
        write_gguf(tmp_path / "old.gguf", expected, fields=fields)
        assert_same_model(load(str(tmp_path / "old.gguf")), expected)
    write_gguf(tmp_path / "none.gguf", expected, fields={**fields, "llama.rope.scaling.type": "none"})
    assert load(str(tmp_path / "none.gguf")).config.rope_scaling is None  # type: ignore[attr-defined]


def llama3_divisors(theta: float, head_dim: int, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """rope_freqs.weight as the converter makes it (convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors)."""
    divisors = []
    for index in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (index / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rotary_scaling(factor: float, save_llama: Callable[..., Any], tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    save_llama(tmp_path, head_dim=64, rope_parameters=rope)
    expected = load(str(tmp_path))
    divisors = llama3_divisors(500000.0, 64, factor, 1.0, 4.0, 8192)
    assert 1 < np.sort(np.unique(divisors))[1] < factor, "some frequencies are between"
    write_gguf(tmp_path / "model.gguf", expected, tensors={"rope_freqs.weight": divisors})
    assert_same_model(load(str(tmp_path / "model.gguf")), expected)
    other = llama3_divisors(500000.0, 64, factor, 1.0, 8.0, 8192)
    write_gguf(tmp_path / "model.gguf", expected, tensors={"rope_freqs.weight": other})
    with pytest.raises(InputError, match=r"rope_freqs\.weight is not LLaMA 3's scaling"):
        load(str(tmp_path / "model.gguf"))


# --------------------------------------------------------------------------------------------------------- tensor types
# Decoded here value by value, as ggml's block structures say (ggml-common.h, ggml-quants.c).


def half(block: bytes, at: int) -> float:
    return float(np.frombuffer(block[at : at + 2], "<f2")[0])


def decode_q8_0(b: bytes) -> list[float]:
    return [half(b, 0) * q for q in struct.unpack("32b", b[2:])]


def decode_q4_0(b: bytes) -> list[float]:
    return [half(b, 0) * ((b[2 + i % 16] >> 4 * (i // 16) & 15) - 8) for i in range(32)]


def decode_q4_1(b: bytes) -> list[float]:
    return [half(b, 0) * (b[4 + i % 16] >> 4 * (i // 16) & 15) + half(b, 2) for i in range(32)]


def decode_q5_0(b: bytes) -> list[float]:
    (high,) = struct.unpack("<I", b[2:6])
    return [half(b, 0) * ((b[6 + i % 16] >> 4 * (i // 16) & 15 | (high >> i & 1) << 4) - 16) for i in range(32)]


def decode_q5_1(b: bytes) -> list[float]:
    (high,) = struct.unpack("<I", b[4:8])
    codes = [b[8 + i % 16] >> 4 * (i // 16) & 15 | (high >> i & 1) << 4 for i in range(32)]
    return [half(b, 0) * code + half(b, 2) for code in codes]


def k_scale(s: bytes, j: int) -> tuple[int, int]:
    """Scale and minimum of part j: 6 bits each, those of parts 4 to 7 with their upper two bits elsewhere."""
    if j < 4:
        return s[j] & 63, s[j + 4] & 63
    return s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4


def decode_q4_k(b: bytes, high: bytes = bytes(32), codes: int = 16) -> list[float]:
    values = []
    for i in range(256):
        part, place = i // 32, i % 32
        scale, minimum = k_scale(b[4:16], part)
        code = b[codes + part // 2 * 32 + place] >> 4 * (part % 2) & 15 | (high[place] >> part & 1) << 4
        values.append(half(b, 0) * scale * code - half(b, 2) * minimum)
    return values


def decode_q5_k(b: bytes) -> list[float]:
    return decode_q4_k(b, high=b[16:48], codes=48)


def decode_q6_k(b: bytes) -> list[float]:
    scales, values = struct.unpack("16b", b[192:208]), []
    for i in range(256):
        side, quarter, place = i // 128, i % 128 // 32, i % 32
        low = b[64 * side + 32 * (quarter % 2) + place] >> 4 * (quarter // 2) & 15
        code = low | (b[128 + 32 * side + place] >> 2 * quarter & 3) << 4
        values.append(half(b, 208) * scales[i // 16] * (code - 32))
    return values


DECODERS: dict[str, tuple[Callable[[bytes], list[float]], tuple[int, ...]]] = {  # and where half-precision numbers are
    "Q8_0": (decode_q8_0, (0,)),
    "Q4_0": (decode_q4_0, (0,)),
    "Q4_1": (decode_q4_1, (0, 2)),
    "Q5_0": (decode_q5_0, (0,)),
    "Q5_1": (decode_q5_1, (0, 2)),
    "Q4_K": (decode_q4_k, (0, 2)),
    "Q5_K": (decode_q5_k, (0, 2)),
    "Q6_K": (decode_q6_k, (208,)),
}
QUANTIZED = LlamaConfig(
    vocab_size=16, hidden_size=256, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=64,
    max_positions=8, tied=True,
)  # fmt: skip


def random_blocks(kind: str, count: int) -> np.ndarray:
    """Any bytes, but for the numbers in half precision."""
    import gguf

    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]), np.uint8)
    for at in DECODERS[kind][1]:
        blocks[:, at : at + 2] = random.normal(size=(count, 1)).astype("<f2").view(np.uint8)
    return blocks


def write_kinds(path: Path, kinds: dict[str, str]) -> dict[str, np.ndarray]:
    """A file of `QUANTIZED`'s shapes with tensors of these types, the others F32; returns what they hold."""
    import gguf

    writer, expected = gguf.GGUFWriter(path, "llama"), {}
    for key, value in {
        "embedding_length": 256,
        "feed_forward_length": 256,
        "block_count": 2,
        "context_length": 8,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", [f"t{index}" for index in range(16)])
    for spec in weight_table(QUANTIZED).values():
        for layer in range(2 if spec.stacked else 1):
            name = spec.gguf.format(layer)
            kind = gguf.GGMLQuantizationType[kinds.get(name, "F32")]
            if kind.name in DECODERS:
                block, size = gguf.GGML_QUANT_SIZES[kind]
                stored = random_blocks(kind.name, spec.shape[0] * 256 // block)
                values = [DECODERS[kind.name][0](one.tobytes()) for one in stored]
                expected[spec.hf.format(layer)] = np.array(values, np.float32).reshape(spec.shape)
                writer.add_tensor(name, stored.reshape(spec.shape[0], -1), raw_dtype=kind)
            else:
                value = np.random.default_rng(layer).normal(size=spec.shape).astype(np.float32)
                if kind == gguf.GGMLQuantizationType.BF16:
                    value.view(np.uint32)[...] &= 0xFFFF0000
                    stored = (value.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
                    writer.add_tensor(name, stored, raw_dtype=kind)
                elif kind == gguf.GGMLQuantizationType.F16:
                    value = value.astype(np.float16).astype(np.float32)
                    writer.add_tensor(name, value.astype(np.float16))
                else:
                    size = gguf.quant_shape_to_byte_shape(spec.shape, kind)
                    stored = value if kind.name == "F32" else np.zeros(size, np.uint8)
                    writer.add_tensor(name, stored, raw_dtype=None if kind.name == "F32" else kind)
                expected[spec.hf.format(layer)] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_tensor_types(tmp_path: Path) -> None:
    names = [f"blk.0.{name}.weight" for name in ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")]
    kinds = dict(zip([*names, "blk.1.attn_q.weight", "token_embd.weight"], DECODERS, strict=True))
    kinds |= {"blk.1.ffn_up.weight": "F16", "blk.1.ffn_down.weight": "BF16"}
    expected = write_kinds(tmp_path / "model.gguf", kinds)
    _, source = open_gguf_model(tmp_path / "model.gguf")
    assert source.names == expected.keys()
    for name, value in expected.items():
        found = source.read(name)
        assert (found.dtype, found.shape) == (np.float32, source.shape(name))
        as_stored = interleave(found, 4) if "q_proj" in name or "k_proj" in name else found
        np.testing.assert_allclose(as_stored, value, rtol=1e-5, atol=1e-6, err_msg=name)  # sums in another order
        part = (slice(3, 11), slice(40, 90))[: value.ndim]
        np.testing.assert_array_equal(source.read(name, part), found[part], name)
    stored = {name: header.dtype for name, header in source.headers.items()}
    assert stored.pop("model.layers.1.mlp.up_proj.weight") == "float16"
    assert stored.pop("model.layers.1.mlp.down_proj.weight") == "bfloat16"
    assert set(stored.values()) == {"float32"}


def test_other_tensor_types_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_kinds(path, {"blk.1.attn_v.weight": "Q2_K"})
    with pytest.raises(InputError, match=r"blk\.1\.attn_v\.weight is of type Q2_K; supported: F32, F16, BF16, Q8_0"):
        load(str(path))
    stored = path.read_bytes()
    name = b"blk.1.attn_v.weight"
    at = stored.index(name) + len(name) + 4 + 2 * 8  # behind the name: how many dimensions, the dimensions
    path.write_bytes(stored[:at] + struct.pack("<I", 99) + stored[at + 4 :])
    with pytest.raises(InputError, match=r"blk\.1\.attn_v\.weight is of type number 99"):
        load(str(path))


# ---------------------------------------------------------------------------------------------------- the whole of it


def test_the_header_is_what_ggufs_own_reader_reads(tiny_llama: Path, tmp_path: Path) -> None:
    import gguf

    fields = {"a.text": "na\u00efve \u4f60", "a.number": -1.5, "a.list": [1, -2, 3], "a.texts": ["", "x", "\u4f60"]}
    write_gguf(tmp_path / "model.gguf", load(str(tiny_llama)), fields=fields)
    ours, theirs = read_gguf(tmp_path / "model.gguf"), gguf.GGUFReader(tmp_path / "model.gguf")
    assert ours.fields.keys() == {name for name in theirs.fields if not name.startswith("GGUF.")}
    for name, field in ours.fields.items():
        assert field.contents() == theirs.fields[name].contents(), name
    assert {name: ours.fields[name].contents() for name in fields} == fields
    assert [*ours.tensors] == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(ours.data(tensor.name).reshape(-1), tensor.data.view(np.uint8).reshape(-1))
        assert ours.tensors[tensor.name].shape == tuple(reversed(tensor.shape.tolist()))


def test_export_as_a_hugging_face_directory(tiny_llama: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pytest.importorskip("torch")
    vocabulary = sorted(tiny_tokenizer.get_vocab(), key=tiny_tokenizer.get_vocab().__getitem__)
    merges = json.loads(tiny_tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in vocabulary],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }
    expected = load(str(tiny_llama))
    write_gguf(tmp_path / "model.gguf", expected, fields=fields)
    run(ExportSettings(str(tmp_path / "model.gguf"), tmp_path / "out", dtype="bfloat16"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert str(theirs.dtype) == "torch.bfloat16"
    assert (theirs.config.bos_token_id, theirs.config.eos_token_id) == (0, 1)
    assert load(str(tmp_path / "out")).fingerprint == expected.fingerprint
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "Mary walks to the kitchen.<|end|>"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"


def test_the_embedded_model_has_the_shape_of_its_preset(smollm2: Model) -> None:
    for name, value in vars(MODELS["smollm2-135m"]).items():
        if name != "initializer_range":  # not in the file
            assert getattr(smollm2.config, name) == pytest.approx(value), name


def test_gguf_of_another_kind_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model, path = load(str(tiny_llama)), tmp_path / "model.gguf"
    write_gguf(path, model, architecture="gemma")
    with pytest.raises(
        InputError, match=r"model\.gguf: architecture is 'gemma'; supported: llama, qwen2, qwen3, gptneox"
    ):
        load(str(path))
    write_gguf(path, model, block_count=None)
    with pytest.raises(InputError, match=r"model\.gguf: the metadata key 'llama\.block_count' is missing"):
        load(str(path))
    write_gguf(path, model, block_count=1)
    with pytest.raises(InputError, match=r"model\.gguf: unexpected tensor blk\.1\.attn_k\.weight"):
        load(str(path))
    write_gguf(path, model, block_count=3)
    with pytest.raises(InputError, match=r"model\.gguf: 9 weights are missing, the first is model\.layers\.2\."):
        load(str(path))
    write_gguf(path, model, feed_forward_length=47)
    with pytest.raises(InputError, match=r"model\.gguf: .*has shape \[48, 32\], its metadata say \[47, 32\]"):
        load(str(path))
    write_gguf(path, model, fields={"tokenizer.ggml.tokens": ["a", "b"]})
    with pytest.raises(InputError, match=r"token_embd\.weight has \d+ rows, tokenizer\.ggml\.tokens 2 tokens; these"):
        load(str(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, r"rotary scaling 'yarn' is not supported in GGUF"),
        ({"llama.rope.scaling.type": "linear"}, r"the metadata key 'llama\.rope\.scaling\.factor' is missing"),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.5},
            r"rotary scaling by the factor 0\.5; it must be",
        ),
        ({"llama.attention.sliding_window": 64}, r"a sliding window is not supported in GGUF"),
        ({"llama.rope.scaling.attn_factor": 1.5}, r"rope\.scaling\.attn_factor is 1\.5, which is not supported"),
        ({"llama.attention.causal": 0}, r"attention\.causal is 0, which is not supported"),
        ({"llama.logit_scale": 0.5}, r"logit_scale is 0\.5, which is not supported"),
        ({"llama.rope.scaling.factor": "2"}, r"rope\.scaling\.factor is '2'; it must be a finite number"),
        ({"llama.rope.scaling.factor": float("inf")}, r"rope\.scaling\.factor is inf; it must be a finite number"),
        ({"llama.attention.value_length": 4}, r"heads of 8 dimensions for keys, 4 for values and 8 rotated"),
        ({"llama.attention.key_length": 16}, r"heads of 16 dimensions for keys, 16 for values and 8 rotated"),
    ],
)
def test_variants_are_refused(fields: dict[str, Any], message: str, tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", load(str(tiny_llama)), fields=fields)
    with pytest.raises(InputError, match=rf"model\.gguf: {message}"):
        load(str(tmp_path / "model.gguf"))


def test_variants_of_other_architectures_are_refused(random_model: Callable[..., Model], tmp_path: Path) -> None:
    path, neox = tmp_path / "model.gguf", random_model("gpt_neox", rotary_pct=0.5)
    write_gguf(path, neox, **{"rope.dimension_count": 5})
    with pytest.raises(InputError, match=r"model\.gguf: 5 of 8 dimensions of a head are rotated; it must be an even"):
        load(str(path))
    write_gguf(path, neox, tensors={"rope_freqs.weight": np.ones(2, np.float32)})
    with pytest.raises(InputError, match=r"model\.gguf: unexpected tensor rope_freqs\.weight"):
        load(str(path))


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"GGML", "it does not begin with GGUF"),
        (4, struct.pack("<I", 1), "version 1; supported: 2, 3"),
        (8, struct.pack("<Q", 2**60), "it ends at byte|dimensions"),
        (16, struct.pack("<Q", 2**60), "it ends at byte|unknown type"),
        (24, struct.pack("<Q", 2**62), "it ends at byte"),
        (32, b"\xff\xff", "can't decode byte"),
    ],
)
def test_damaged_headers(at: int, value: bytes, message: str, tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, load(str(tiny_llama)))
    stored = path.read_bytes()
    path.write_bytes(stored[:at] + value + stored[at + len(value) :])
    with pytest.raises(InputError, match=rf"not a readable GGUF file \(.*({message})"):
        load(str(path))


def test_other_byte_order_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(InputError, match=r"model\.gguf: a big-endian GGUF file; give a little-endian one"):
        load(str(tmp_path / "model.gguf"))


# ----------------------------------------------------------------------------------------------------- several parts


def write_parts(folder: Path, model: Model, parts: list[Callable[[str], bool]]) -> Path:
    """As gguf-split cuts a model: all metadata in the first part, of the tensors each has its own."""
    counts = {"split.count": len(parts), "split.tensors.count": len(flatten(model.params))}
    counts["split.tensors.count"] = sum(
        model.config.num_layers if spec.stacked else 1 for spec in weight_table(model.config).values()
    )
    for number, only in enumerate(parts):
        path = folder / f"model-{number + 1:05d}-of-{len(parts):05d}.gguf"
        write_gguf(path, model, fields={"split.no": number, **counts}, only=only)
    return folder / f"model-00001-of-{len(parts):05d}.gguf"


def test_a_model_in_parts(tiny_llama: Path, tmp_path: Path) -> None:
    """The output head is in the last part: the model is not tied."""
    expected = load(str(tiny_llama))
    first = write_parts(
        tmp_path,
        expected,
        [
            lambda name: name.startswith("blk.0.") or name == "token_embd.weight",
            lambda name: name.startswith("blk.1."),
            lambda name: name.startswith("output"),
        ],
    )
    assert_same_model(load(str(first)), expected)
    third = tmp_path / "model-00003-of-00003.gguf"
    with pytest.raises(InputError, match=r"of-00003\.gguf: part 3 of 3; give the first, model-00001-of-00003\.gguf"):
        load(str(third))
    stored = third.read_bytes()
    third.write_bytes(stored[:-50])
    with pytest.raises(
        InputError, match=r"not a readable GGUF file \(its part model-00003-of-00003\.gguf: output.* ends"
    ):
        load(str(first))
    third.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=r"model-00003-of-00003\.gguf: a git-LFS pointer"):
        load(str(first))
    third.unlink()
    with pytest.raises(InputError, match=r"the first of 3 parts, and model-00003-of-00003\.gguf is not beside it"):
        load(str(first))
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(InputError, match=r"renamed\.gguf: one of 3 parts; they must be named NAME-00001-of-00003"):
        load(str(tmp_path / "renamed.gguf"))


def test_parts_that_do_not_fit(tiny_llama: Path, tmp_path: Path) -> None:
    expected = load(str(tiny_llama))
    first = write_parts(tmp_path, expected, [lambda name: True, lambda name: name.startswith("blk.1.")])
    with pytest.raises(InputError, match=r"blk\.1\..* is in model-00002-of-00002\.gguf too"):
        load(str(first))
    first = write_parts(tmp_path, expected, [lambda name: "blk.0." in name, lambda name: name.startswith("blk.1.")])
    with pytest.raises(InputError, match=r"its parts hold 18 tensors, not 21; fetch them again"):
        load(str(first))


@pytest.mark.parametrize("size", [0, 3, 20, 200, 5000, -100])
def test_damaged_gguf_is_refused(size: int, tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, load(str(tiny_llama)))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"model\.gguf: not a readable GGUF file"):
        load(str(path))
    with pytest.raises(InputError, match=r"model\.gguf: not a readable GGUF file"):
        load_tokenizer(locate(str(path)))
