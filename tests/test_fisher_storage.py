"""F in 32, 16 and 8 bits: what a format costs in accuracy, and its files, ours and those published in the official
form."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Estimator, FisherResult
from e2wm_jax.fisher.files import read_fisher, write_fisher
from e2wm_jax.fisher.storage import BLOCK, Bfloat16Bits, SquareRootCodes, decode, encode, stored_bytes
from e2wm_jax.models.weights import Model, flatten, load

Q = "layers.q.weight"
FILE_Q = "model.layers.1.self_attn.q_proj.weight"


def heavy_tailed(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """As a language model's: a few entries carry most of the sum, many are a millionth of the mean."""
    return np.random.default_rng(seed).gamma(0.2, 1e-5, shape).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("inputs", [1, 63, 64, 65, 200])
def test_codes_are_off_by_half_a_step_of_the_root_at_most(inputs):
    fisher = heavy_tailed((3, 5, inputs))
    stored = encode(jnp.asarray(fisher), "uint8")
    assert isinstance(stored, SquareRootCodes)
    assert stored.codes.dtype == jnp.uint8
    assert stored.shape == fisher.shape
    assert stored.scales.shape == (3, 5, -(-inputs // BLOCK))
    steps = np.asarray(stored.scales, np.float64).repeat(BLOCK, axis=-1)[..., :inputs]
    off = np.abs(np.sqrt(np.asarray(decode(stored), np.float64)) - np.sqrt(np.float64(fisher)))
    assert np.all(off <= 0.5001 * steps)
    for start in range(0, inputs, BLOCK):  # the largest entry of a block is exact
        block = slice(start, start + BLOCK)
        np.testing.assert_allclose(
            np.asarray(decode(stored))[..., block].max(-1), fisher[..., block].max(-1), rtol=1e-6
        )


def test_codes_by_hand():
    fisher = np.zeros((1, 70), np.float32)
    fisher[0, :3] = (4.0, 1.45, 4.0 / 255**2)  # roots 2, 1.2042, 2/255: codes 255, 153.53, 1
    stored = encode(jnp.asarray(fisher), "uint8")
    np.testing.assert_array_equal(stored.codes[0, :4], [255, 154, 1, 0])
    np.testing.assert_allclose(stored.scales, [[2 / 255, 0]], rtol=1e-7)
    np.testing.assert_allclose(decode(stored)[0, :4], [4, (2 * 154 / 255) ** 2, 4 / 255**2, 0], rtol=1e-6)
    assert not np.any(decode(stored)[0, 3:])


def test_bfloat16_bits_are_bfloat16():
    fisher = jnp.asarray(heavy_tailed((2, 3, 9)))
    stored = encode(fisher, "bfloat16")
    assert isinstance(stored, Bfloat16Bits)
    np.testing.assert_array_equal(decode(stored), fisher.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(decode(fisher.astype(jnp.bfloat16)), decode(stored))


def test_float32_stays_as_it_is():
    fisher = jnp.asarray(heavy_tailed((2, 3)))
    np.testing.assert_array_equal(decode(encode(fisher, "float32")), fisher)


@pytest.mark.parametrize(("dtype", "bytes_each"), [("float32", 4), ("bfloat16", 2), ("uint8", 1 + 4 / BLOCK)])
def test_bytes_of_an_entry(dtype, bytes_each):
    stored = encode(jnp.ones((2, 4, 2 * BLOCK)), dtype)
    assert stored_bytes(stored) == bytes_each * 2 * 4 * 2 * BLOCK


def test_tiny_and_zero_blocks_survive():
    """The smallest entries of a real F are 1e-22; their block must not become 0, nor a block of zeros NaN."""
    fisher = jnp.concatenate([jnp.full((1, BLOCK), 1e-30), jnp.zeros((1, BLOCK))], axis=1)
    np.testing.assert_allclose(decode(encode(fisher, "uint8")), fisher, rtol=1e-6)


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def tiny(tiny_llama) -> Model:
    return load(str(tiny_llama))


@pytest.fixture(scope="module")
def values(tiny) -> dict[str, np.ndarray]:
    return {path: heavy_tailed(value.shape, seed) for seed, (path, value) in enumerate(flatten(tiny.params).items())}


def write(folder: Path, model: Model, values: dict[str, np.ndarray], dtype: str, **options: Any) -> Path:
    write_fisher(
        folder,
        model,
        FisherResult(values, samples=8, tokens=83, peak_bytes=0),
        keep=None,
        estimator=Estimator(),
        method="scan",
        base_dtype="float32",
        max_length=64,
        data=[],
        dtype=dtype,
        **options,
    )
    return folder


@pytest.fixture(scope="module")
def written(tiny, values, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stored")
    return {dtype: write(folder / dtype, tiny, values, dtype) for dtype in ("float32", "bfloat16", "uint8")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_what_is_read_is_what_the_format_makes_of_f(written, tiny, values, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_fisher(written[dtype], tiny, list(values))
    assert found.keys() == values.keys()
    for path, value in values.items():
        expected = encode(value, dtype)
        assert jax.tree.structure(found[path]) == jax.tree.structure(expected)
        for ours, theirs in zip(jax.tree.leaves(found[path]), jax.tree.leaves(expected), strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    assert json.loads((written[dtype] / "fisher.json").read_text())["dtype"] == dtype


def test_codes_on_disk_have_the_parameters_names_and_their_scales_beside_them(written, tiny, values):
    tensors = load_file(written["uint8"] / "model.safetensors")
    plain = load_file(written["float32"] / "model.safetensors")
    assert tensors.keys() == {name + end for name in plain for end in ("", ".scale")}
    codes, scales = tensors[FILE_Q], tensors[FILE_Q + ".scale"]
    assert (codes.dtype, scales.dtype) == (np.uint8, np.float32)
    assert codes.shape == plain[FILE_Q].shape
    # Written out with numpy only, as another program would read it.
    by_hand = (codes * scales.repeat(64, axis=-1)[:, : codes.shape[1]]) ** 2
    np.testing.assert_allclose(by_hand, decode(encode(values[Q], "uint8"))[1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "uint8"])
def test_sharded_files_in_fewer_bits(tiny, values, tmp_path, dtype):
    write(tmp_path, tiny, values, dtype, max_shard_bytes=4096)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    found = read_fisher(tmp_path, tiny, [Q])[Q]
    np.testing.assert_array_equal(decode(found), decode(encode(values[Q], dtype)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_reads_float_formats_as_a_model(written, values, dtype, torch_oracle):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(written[dtype], dtype=torch_oracle.float32)
    expected = decode(encode(values[Q], dtype))[1]
    np.testing.assert_array_equal(dict(model.named_parameters())[FILE_Q].detach().numpy(), expected)


def test_readers_that_want_floats_refuse_codes(written, tiny, tmp_path):
    """transformers and our own loader find no model there; without fisher.json the codes are not taken for F."""
    transformers = pytest.importorskip("transformers")
    with pytest.raises((OSError, ValueError)):
        transformers.AutoModelForCausalLM.from_pretrained(written["uint8"])
    with pytest.raises(InputError, match=r"has no config\.json"):
        load(str(written["uint8"]))
    shutil.copy(written["uint8"] / "model.safetensors", tmp_path)
    with (
        pytest.warns(UserWarning, match="names and shapes only"),
        pytest.raises(InputError, match=r"q_proj\.weight is of type U8, not float.*codes without their scales"),
    ):
        read_fisher(tmp_path, tiny, [Q])


def test_damaged_codes_are_refused(written, tiny, tmp_path):
    tensors = load_file(written["uint8"] / "model.safetensors")
    shutil.copy(written["uint8"] / "fisher.json", tmp_path)

    def refused(changed: dict[str, np.ndarray], message: str) -> None:
        save_file({**tensors, **changed}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=message):
            read_fisher(tmp_path, tiny, [Q])

    scale = f"{FILE_Q}.scale"
    refused({scale: np.full_like(tensors[scale], np.nan)}, r"q_proj\.weight\.scale of model\.safetensors holds nan")
    refused({scale: np.full_like(tensors[scale], 2**60)}, r"q_proj\.weight\.scale of model\.safetensors holds 1\.15")
    refused({scale: tensors[scale][:, :0]}, r"q_proj\.weight\.scale has shape \[32, 0\], this model's is \[32, 1\]")
    refused({FILE_Q: tensors[FILE_Q].astype(np.float32)}, r"q_proj\.weight is of type float32, not U8")
    del tensors[scale]
    refused({}, r"has no model\.layers\.1\.self_attn\.q_proj\.weight\.scale")


@pytest.mark.parametrize("bad", [-0.5, np.nan, np.inf])
def test_what_cannot_be_a_mean_of_squares_is_refused_by_name(written, tiny, tmp_path, bad):
    tensors = load_file(written["float32"] / "model.safetensors")
    tensors[FILE_Q][3, 4] = bad
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(written["float32"] / "fisher.json", tmp_path)
    with pytest.raises(
        InputError,
        match=rf"{FILE_Q} of model.safetensors holds {bad}.*one of 1 entries that are negative, infinite or NaN",
    ):
        read_fisher(tmp_path, tiny, [Q])
    assert read_fisher(tmp_path, tiny, ["layers.k.weight"])  # what is not needed is not looked at


def test_unknown_type_is_refused(written, tiny, tmp_path):
    shutil.copytree(written["float32"], tmp_path / "f")
    about = json.loads((tmp_path / "f/fisher.json").read_text())
    (tmp_path / "f/fisher.json").write_text(json.dumps(about | {"dtype": "int4"}))
    with pytest.raises(InputError, match=r"says dtype 'int4', known are float32, bfloat16, uint8"):
        read_fisher(tmp_path / "f", tiny, [Q])


def test_a_fisher_that_transformers_saved_in_float16_is_read_and_what_it_lost_is_said(
    tiny_llama, tiny, values, tmp_path, torch_oracle
):
    """The official form: F in a model's place, saved in half precision and in several files."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch_oracle.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch_oracle.from_numpy(heavy_tailed(tuple(parameter.shape), seed=len(name))))
    expected = dict(model.named_parameters())[FILE_Q].detach().numpy().astype(np.float16)
    model.half().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    with pytest.warns(UserWarning, match="names and shapes|float16") as caught:
        found = read_fisher(tmp_path, tiny, [Q])[Q]
    np.testing.assert_array_equal(found[1], expected.astype(np.float32))
    zeros = float(np.mean(np.asarray(found) == 0))
    assert 0.1 < zeros < 0.9
    said = [str(warning.message) for warning in caught]
    assert "names and shapes only" in said[0]
    assert f"float16 has made entries below 3e-8 zero; {zeros:.0%} of F are" in said[1]


def test_a_fisher_in_pytorch_shards_of_half_precision_is_read(written, tiny, tmp_path, torch_oracle):
    tensors = load_file(written["float32"] / "model.safetensors")
    names, places = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        halves = {name: torch_oracle.from_numpy(tensors[name]).half() for name in part}
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch_oracle.save(halves, tmp_path / file)
        places |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.warns(UserWarning, match=r"names and shapes|float16"):
        found = read_fisher(tmp_path, tiny, [Q])[Q]
    np.testing.assert_array_equal(found[1], tensors[FILE_Q].astype(np.float16).astype(np.float32))
