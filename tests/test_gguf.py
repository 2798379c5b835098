"""Weights in from GGUF files, written here as llama.cpp's converter writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2wm_jax.config import MODELS
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.model_files import locate
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import Model, flatten, load


def interleave(value: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's own permutation of q and k (convert_hf_to_gguf.py, LlamaModel.permute)."""
    shape = value.shape
    return value.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def write_gguf(path: Path, model: Model, *, architecture: str = "llama", **changes: Any) -> None:
    """`model` as llama.cpp's converter would write it."""
    import gguf

    c = model.config
    writer = gguf.GGUFWriter(path, architecture)
    metadata = {
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "block_count": c.num_layers,
        "attention.head_count": c.num_heads,
        "attention.head_count_kv": c.num_kv_heads,
        "rope.dimension_count": c.head_dim,
        "context_length": c.max_positions,
        **changes,
    }
    for key, value in metadata.items():
        if value is not None:
            writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.rope.freq_base", c.rope_theta)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", c.norm_eps)
    writer.add_array("tokenizer.ggml.tokens", [f"t{index}" for index in range(c.vocab_size)])
    for name, spec in weight_table(c).items():
        value = np.asarray(flatten(model.params)[name])
        for layer, one in enumerate(value if spec.stacked else value[None]):
            heads = {"layers.q.weight": c.num_heads, "layers.k.weight": c.num_kv_heads}.get(name)
            writer.add_tensor(spec.gguf.format(layer), interleave(one, heads) if heads else np.array(one))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    "shape", [{}, {"tie_word_embeddings": True, "num_key_value_heads": 1}, {"head_dim": 12, "num_key_value_heads": 4}]
)
def test_gguf(shape: dict[str, Any], save_llama: Callable[..., Any], tmp_path: Path) -> None:
    save_llama(tmp_path, **shape)
    expected = load(str(tmp_path))
    write_gguf(tmp_path / "model.gguf", expected)
    ours = load(str(tmp_path / "model.gguf"))
    assert ours.config.norm_eps == pytest.approx(expected.config.norm_eps)
    np.testing.assert_equal(vars(ours.config) | {"norm_eps": 0}, vars(expected.config) | {"norm_eps": 0})
    for path, value in flatten(ours.params).items():
        np.testing.assert_array_equal(value, flatten(expected.params)[path], path)


def test_the_embedded_model_has_the_shape_of_its_preset(smollm2: Model) -> None:
    for name, value in vars(MODELS["smollm2-135m"]).items():
        if name != "initializer_range":  # not in the file
            assert getattr(smollm2.config, name) == pytest.approx(value), name


def test_gguf_of_another_kind_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    model, path = load(str(tiny_llama)), tmp_path / "model.gguf"
    write_gguf(path, model, architecture="qwen2")
    with pytest.raises(InputError, match=r"model\.gguf: architecture is 'qwen2'; supported: 'llama'"):
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
    with pytest.raises(InputError, match=r"model\.gguf: .*has shape \[48, 32\]"):
        load(str(path))


@pytest.mark.parametrize("size", [0, 3, 20, 200, 5000, -100])
def test_damaged_gguf_is_refused(size: int, tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, load(str(tiny_llama)))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"model\.gguf: not a readable GGUF file"):
        load(str(path))
    with pytest.raises(InputError, match=r"model\.gguf: not a readable GGUF file"):
        load_tokenizer(locate(str(path)))
