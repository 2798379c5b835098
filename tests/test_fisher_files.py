"""Fisher directories: what is written is read back, what does not fit is refused."""

import json
import shutil
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Estimator, FisherResult
from e2wm_jax.fisher.files import check_fisher, read_fisher, write_fisher
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import Model, flatten, load

ABOUT = {
    "keep": None,
    "estimator": Estimator(),
    "method": "vmap",
    "base_dtype": "float32",
    "max_length": 64,
    "data": [],
}


@pytest.fixture(scope="module")
def tiny(tiny_llama) -> Model:
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def made_up(tiny) -> FisherResult:
    """Numbers in the shapes of a Fisher of `tiny`: the files do not ask where they come from."""
    rng = np.random.default_rng(0)
    values = {
        path: jnp.asarray(rng.gamma(0.3, size=value.shape), jnp.float32) for path, value in flatten(tiny.params).items()
    }
    return FisherResult(values, samples=8, tokens=83, peak_bytes=0)


@pytest.fixture(scope="module")
def written(tiny, made_up, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fisher")
    write_fisher(folder, tiny, made_up, **ABOUT)
    return folder


@pytest.mark.parametrize("shard_bytes", [None, 4096])
def test_what_is_written_is_read_back(tiny, made_up, tmp_path, shard_bytes):
    result = made_up
    write_fisher(tmp_path / "f", tiny, result, **ABOUT, **({"max_shard_bytes": shard_bytes} if shard_bytes else {}))
    shards = sorted(path.name for path in (tmp_path / "f").glob("*.safetensors"))
    if shard_bytes:
        assert len(shards) > 3
        assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
        index = json.loads((tmp_path / "f/model.safetensors.index.json").read_text())
        where = {name: file.name for file in (tmp_path / "f").glob("*.safetensors") for name in load_file(file)}
        assert index["weight_map"] == where
        assert index["metadata"]["total_size"] == sum(4 * value.size for value in result.values.values())
    else:
        assert shards == ["model.safetensors"]
    back = read_fisher(tmp_path / "f", tiny, list(result.values))
    assert back.keys() == result.values.keys()
    for path, value in back.items():
        np.testing.assert_array_equal(value, result.values[path])


def test_sharded_fisher_loads_with_transformers(tiny, made_up, tmp_path):
    transformers = pytest.importorskip("transformers")
    result = made_up
    write_fisher(tmp_path, tiny, result, **ABOUT, max_shard_bytes=4096)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = dict(loaded.named_parameters())
    for path, value in result.values.items():
        spec = weight_table(tiny.config)[path]
        for layer, one in enumerate(value if spec.stacked else [value]):
            np.testing.assert_array_equal(theirs[spec.hf.format(layer)].detach().numpy(), one)


def test_fisher_of_another_model_is_refused(written, save_llama, tmp_path):
    save_llama(tmp_path / "other", seed=9)
    with pytest.raises(InputError, match=r"--fisher .*another model \(fingerprint"):
        read_fisher(written, load(str(tmp_path / "other")), ["layers.q.weight"])


def test_official_form_is_read_with_a_warning_and_checked_by_names_and_shapes(written, tiny, save_llama, tmp_path):
    folder = tmp_path / "official"
    shutil.copytree(written, folder)
    (folder / "fisher.json").unlink()
    needed = ["layers.q.weight", "norm.weight"]
    with pytest.warns(UserWarning, match=r"no fisher\.json: checked by names and shapes only"):
        found = read_fisher(folder, tiny, needed)
    expected = read_fisher(written, tiny, needed)
    for path in needed:
        np.testing.assert_array_equal(found[path], expected[path])

    save_llama(tmp_path / "wide", hidden_size=48)
    with (
        pytest.warns(UserWarning, match="names and shapes only"),
        pytest.raises(InputError, match=r"q_proj\.weight has shape \[32, 32\], this model's is \[48, 48\]"),
    ):
        read_fisher(folder, load(str(tmp_path / "wide")), needed)

    save_llama(tmp_path / "deep", num_hidden_layers=3)
    for name, message in (("wide", "has shape"), ("deep", "has no model.layers.2")):
        with pytest.raises(InputError, match=message):
            check_fisher(folder, load(str(tmp_path / name)).config, needed)
    check_fisher(folder, tiny.config, needed)
    with pytest.raises(InputError, match="no weights in it"):
        check_fisher(tmp_path, tiny.config, needed)
    with (
        pytest.warns(UserWarning, match="names and shapes only"),
        pytest.raises(InputError, match=r"has no model\.layers\.2\.self_attn\.q_proj\.weight"),
    ):
        read_fisher(folder, load(str(tmp_path / "deep")), needed)


def test_a_fisher_that_pytorch_saved_is_read(written, tiny, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = load_file(written / "model.safetensors")
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, tmp_path / "pytorch_model.bin")
    with pytest.warns(UserWarning, match="names and shapes only"):
        found = read_fisher(tmp_path, tiny, ["layers.q.weight", "norm.weight"])
    np.testing.assert_array_equal(found["norm.weight"], tensors["model.norm.weight"])
    np.testing.assert_array_equal(found["layers.q.weight"][1], tensors["model.layers.1.self_attn.q_proj.weight"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_fisher_in_half_precision_is_read_as_float32(written, tiny, tmp_path, dtype):
    tensors = {name: value.astype(jnp.dtype(dtype)) for name, value in load_file(written / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(written / "fisher.json", tmp_path)
    found = read_fisher(tmp_path, tiny, ["layers.q.weight"])["layers.q.weight"]
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found[1], tensors["model.layers.1.self_attn.q_proj.weight"].astype(np.float32))


def test_incomplete_directories_are_refused(written, tiny, tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        read_fisher(tmp_path / "nowhere", tiny, ["layers.q.weight"])
    with (
        pytest.warns(UserWarning, match="checked by"),
        pytest.raises(InputError, match=r"no weights in it \(model\.safetensors, "),
    ):
        read_fisher(tmp_path, tiny, ["layers.q.weight"])

    tensors = load_file(written / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(written / "fisher.json", tmp_path)
    with pytest.raises(InputError, match=r"has no model\.layers\.1\.self_attn\.q_proj\.weight.*--params"):
        read_fisher(tmp_path, tiny, ["layers.q.weight"])

    whole = (written / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged or incomplete"):
        read_fisher(tmp_path, tiny, ["layers.q.weight"])


def test_reading_warns_of_nothing_when_all_is_well(written, tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_fisher(written, tiny, ["layers.q.weight", "embed.weight"])
