"""Bases in 8 and 4 bits: the codes against qwix, what is computed with them, what they cost, the commands."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error

from e2wm_jax import cli, lora
from e2wm_jax.config import BaseDType, LlamaConfig, LoraConfig, ModelConfig
from e2wm_jax.data.batch import Batch, Row
from e2wm_jax.data.loader import sorted_batches
from e2wm_jax.data.source import read_documents
from e2wm_jax.data.tokenize import document_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Computation, document_fisher
from e2wm_jax.fisher.documents import document_batches
from e2wm_jax.lora import Scope
from e2wm_jax.models import decoder
from e2wm_jax.models.head import target_nll
from e2wm_jax.models.layers import Params, lookup, matmul
from e2wm_jax.models.quantized import (
    Int8Matrix,
    Nf4Matrix,
    dense,
    load,
    quantize,
    quantize_params,
)
from e2wm_jax.models.weights import Model, flatten, unflatten
from e2wm_jax.storage.model_files import locate
from e2wm_jax.train.step import Controls, StepConfig, initial_state, train_step

qwix = pytest.importorskip("qwix")

pytestmark = pytest.mark.usefixtures("quick_compilation")

KINDS = ("int8", "nf4")
# Twelve layers, so that a float copy of a stack would be far larger than everything else.
CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=160,
    num_layers=12,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_positions=64,
    tied=True,
)
SPEC = lora.adapter_spec(CONFIG, LoraConfig(rank=2, alpha=4, targets="q_proj,down_proj"))


@lru_cache
def made_once() -> Params:
    params = decoder.initialize(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda w: w if w.ndim == 1 else w / (0.02 * w.shape[-1] ** 0.5) if w.ndim > 2 else w, params)


def random_params() -> Params:
    """At the scale of a trained model: every layer counts. A tree of one's own, which quantizing empties."""
    return jax.tree.map(lambda w: w, made_once())


@lru_cache
def quantized(kind: BaseDType) -> Params:
    """Read it only."""
    return quantize_params(random_params(), CONFIG, kind)


@lru_cache
def written_out(kind: BaseDType) -> Params:
    """Every quantized weight in float32; read it only."""
    return unflatten({path: dense(w) for path, w in flatten(quantized(kind)).items()})


def random_batch(rows: int = 2, length: int = 10, targets: int = 4) -> Batch:
    generator = np.random.default_rng(0)
    ids = generator.integers(0, CONFIG.vocab_size, (rows, length), dtype=np.int32)
    places = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    predicted = np.broadcast_to(np.arange(length - targets, length, dtype=np.int32), (rows, targets))
    return Batch(ids, places, np.zeros_like(ids), predicted, np.ones((rows, targets), np.float32))


@partial(jax.jit, static_argnums=0)
def losses(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    return target_nll(config, params, batch)


# --------------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize("shape", [(24, 64), (3, 24, 96), (3, 5, 40)])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_qwix(kind: Any, shape: tuple[int, ...]) -> None:
    w = jax.random.normal(jax.random.key(0), shape)
    ours = quantize(np.asarray(w), kind)
    assert ours.shape == shape
    rows, last = range(len(shape) - 1), len(shape) - 1
    tiles = {"tiled_axes": {last: 8 if shape[-1] == 40 else 32}, "scale_dtype": jnp.bfloat16} if kind == "nf4" else {}
    theirs = qwix.quantize(w, kind, channelwise_axes=rows, **tiles)
    expected = qwix.dequantize(replace(theirs, scale=theirs.scale.astype(jnp.float32)))
    np.testing.assert_allclose(ours.dense(), expected, rtol=1e-6)


def test_errors_are_at_most_half_a_step() -> None:
    w = np.asarray(jax.random.normal(jax.random.key(0), (16, 64)))
    step = np.abs(w).max(axis=1, keepdims=True) / 127
    assert (np.abs(quantize(w, "int8").dense() - w) <= 0.51 * step).all()
    block = np.abs(w.reshape(16, 2, 32)).max(axis=-1, keepdims=True)
    error = np.abs(np.asarray(quantize(w, "nf4").dense()).reshape(16, 2, 32) - w.reshape(16, 2, 32))
    assert (error <= 0.16 * block).all()  # the widest gap between two levels is 0.304


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_zero(kind: Any) -> None:
    assert not quantize(np.zeros((2, 64), np.float32), kind).dense().any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_written_out_matrix(kind: Any, dtype: str) -> None:
    w = quantize(jax.random.normal(jax.random.key(0), (24, 64)), kind)
    x, g = (jax.random.normal(jax.random.key(k), (5, 20, n), dtype) for k, n in ((1, 64), (2, 24)))
    y, pull = jax.vjp(lambda x: matmul(x, w), x)
    expected = jax.vjp(lambda x: x @ w.dense().T, x.astype(jnp.float32))
    tolerance = 1e-6 if dtype == "float32" else 2**-7
    assert y.dtype == pull(g)[0].dtype == jnp.dtype(dtype)
    assert relative_error(y, expected[0]) < tolerance
    assert relative_error(pull(g)[0], expected[1](g.astype(jnp.float32))[0]) < tolerance


def test_rows_are_looked_up() -> None:
    table = quantize(jax.random.normal(jax.random.key(0), (20, 64)), "int8", "bfloat16")
    ids = jnp.array([[3, 19, 3], [0, 1, 2]])
    rows = lookup(ids, table)
    assert rows.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rows, table.dense()[ids].astype(jnp.bfloat16))


@pytest.mark.parametrize("shape", [(64,), (8, 64), (2, 4, 64)])
def test_few_rows_are_multiplied_in_integers(shape: tuple[int, ...]) -> None:
    w = quantize(jax.random.normal(jax.random.key(0), (24, 64)), "int8")
    x = jax.random.normal(jax.random.key(1), shape) * jnp.logspace(-30, 3, shape[0])[(..., *[None] * (len(shape) - 1))]
    y, expected = np.asarray(jax.jit(matmul)(x, w)), np.asarray(x, np.float64) @ np.asarray(w.dense(), np.float64).T
    rows = np.asarray(x, np.float64)
    bound = np.abs(rows).max(-1, keepdims=True) / 64516 * np.abs(w.dense()).sum(-1) + 1e-6 * np.abs(expected)
    assert (np.abs(y - expected) <= bound).all()
    assert not np.asarray(matmul(jnp.zeros(shape), w)).any()


# --------------------------------------------------------------------------------------------------------------- model


def test_which_weights_are_quantized() -> None:
    config = replace(CONFIG, tied=False)
    flat = flatten(quantize_params(decoder.initialize(config, jax.random.key(0)), config, "nf4"))
    kinds = {path: type(w) for path, w in flat.items()}
    matrices = {f"layers.{name}.weight" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {path for path, kind in kinds.items() if kind is Nf4Matrix} == matrices
    assert {path for path, kind in kinds.items() if kind is Int8Matrix} == {"embed.weight", "head.weight"}
    assert all(w.dtype == jnp.float32 for w in flat.values() if isinstance(w, jax.Array))


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.01), ("nf4", 0.1)])
def test_loss_of_a_small_model(kind: BaseDType, tolerance: float) -> None:
    batch, params = random_batch(rows=4, length=20, targets=18), quantized(kind)
    loss, expected = (float(losses(CONFIG, p, batch).mean()) for p in (params, random_params()))
    assert 0 < abs(loss / expected - 1) < tolerance
    np.testing.assert_allclose(losses(CONFIG, params, batch), losses(CONFIG, written_out(kind), batch), rtol=1e-5)


def test_quantizing_takes_the_float_weights_away() -> None:
    params = random_params()
    quantize_params(params, CONFIG, "int8")
    assert params == {}


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_through_a_quantized_base(kind: BaseDType) -> None:
    params, batch = quantized(kind), random_batch(rows=4, length=20, targets=18)  # more than a few
    adapters = lora.initialize(CONFIG, SPEC, jax.random.key(0))
    adapters = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(1), x.shape), adapters)

    @jax.jit
    def gradient(params: Params) -> Any:
        def loss(adapters: Any) -> jax.Array:
            return target_nll(CONFIG, lora.attach(params, adapters, SPEC), batch).mean()

        return jax.value_and_grad(loss)(adapters)

    ours, expected = gradient(params), gradient(written_out(kind))
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected[1]))
    assert largest > 1e-3
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5 * largest), ours, expected)


def test_merging_into_a_quantized_base_is_in_float32() -> None:
    params = quantized("nf4")
    adapters = jax.tree.map(lambda x: x + 0.1, lora.initialize(CONFIG, SPEC, jax.random.key(0)))
    merged = lora.merge(params, adapters, SPEC)["layers"]["q"]["weight"]
    base = dense(params["layers"]["q"]["weight"])
    assert merged.dtype == jnp.float32
    np.testing.assert_array_equal(merged, base + lora.delta(adapters, SPEC[0]))


# -------------------------------------------------------------------------------------------------------------- memory


def step_memory(params: Params) -> Any:
    step = StepConfig(Scope(CONFIG, SPEC), dropout=0.1)
    state = jax.eval_shape(lambda: initial_state(step, lora.initialize(CONFIG, SPEC, jax.random.key(0))))
    batch = jax.tree.map(lambda x: x[None], random_batch())
    return train_step.lower(step, state, Controls(1e-3), params, (), batch).compile().memory_analysis()


def test_a_training_step_holds_codes_and_no_float_copy_of_a_stack(full_compilation: None) -> None:
    matrices = [w for path, w in flatten(random_params()).items() if w.ndim == 3]
    numbers, embedding = sum(w.size for w in matrices), CONFIG.vocab_size * CONFIG.hidden_size
    smallest_stack, one_layer = min(w.nbytes for w in matrices), sum(w.nbytes for w in matrices) / CONFIG.num_layers
    base = step_memory(random_params())
    for kind, per_weight in (("int8", 1.0), ("nf4", 0.5 + 2 / 32)):
        found = step_memory(quantized(kind))
        saved = base.argument_size_in_bytes - found.argument_size_in_bytes
        expected = numbers * (4 - per_weight) + embedding * 3
        row_scales = sum(w.size // w.shape[-1] for w in matrices) * 4 + CONFIG.vocab_size * 4
        assert expected - row_scales <= saved <= expected
        extra = found.temp_size_in_bytes - base.temp_size_in_bytes
        assert extra < one_layer + 2 * embedding * 4
        assert extra < smallest_stack + 2 * embedding * 4


# -------------------------------------------------------------------------------------------------------------- Fisher


def fisher(params: Params, method: Any) -> Any:
    generator = np.random.default_rng(0)
    rows = [Row(generator.integers(0, CONFIG.vocab_size, n, dtype=np.int32), 1) for n in (12, 5, 9)]
    batches = document_batches(rows, 2, 16, layout="packed")
    return document_fisher(CONFIG, params, batches, computation=Computation(method=method)).values


@lru_cache
def written_out_fisher(kind: BaseDType) -> Any:
    return fisher(written_out(kind), "fused")


@pytest.mark.parametrize("method", ["fused", "scan"])
@pytest.mark.parametrize("kind", KINDS)
def test_fisher_of_a_quantized_base_is_that_of_its_written_out_weights(kind: BaseDType, method: Any) -> None:
    """Every weight's, those that are codes too: the derivative is by the weight that the codes stand for."""
    found, expected = fisher(quantized(kind), method), written_out_fisher(kind)
    assert found.keys() == expected.keys() == decoder.weight_table(CONFIG).keys()
    for path, value in expected.items():
        assert found[path].dtype == jnp.float32
        assert found[path].shape == value.shape
        assert relative_error(found[path], value) < 2e-5, path


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def base_folder(save_llama: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_llama(folder)
    return folder


def succeed(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    code = cli.main([*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def test_fisher_train_and_evaluation_on_quantized_bases(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Fisher of an int8 base fits the model itself and its nf4 form: it is the same model."""
    task, text = tmp_path / "plan.json", tmp_path / "text.txt"
    task.write_text('{"input": "How to make coffee?", "ref": "1. Walk to the kitchen"}\n' * 2)
    text.write_text("Mary walks to the kitchen.\n\nMary grabs the apple.\n")
    model = ("--model", base_folder)
    succeed(
        capsys, "fisher", *model, "--data", text, "--out", tmp_path / "fisher", "--base-dtype", "int8",
        "--params", "lora-targets", "--max-length", 32,
    )  # fmt: skip
    done = succeed(
        capsys, "train", *model, "--data", f"1 {task}", "--out", tmp_path / "run", "--base-dtype", "nf4",
        "--fisher", tmp_path / "fisher", "--regularizer", "ewc", "--steps", 1, "--batch-size", 2,
        "--max-length", 32, "--lora.targets", "q_proj,v_proj", "--lora.rank-pattern", "v_proj=2",
    )  # fmt: skip
    assert done["steps"] == 1
    assert json.loads((tmp_path / "run/config.json").read_text())["base_dtype"] == "nf4"
    assert json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())["rank_pattern"]
    words = ("eval", "perplexity", *model, "--data", text, "--max-length", 32)
    nats = {
        dtype: succeed(capsys, *words, "--base-dtype", dtype, "--adapter", tmp_path / "run/adapter")["nats"]
        for dtype in ("float32", "int8")
    }
    assert 0 < abs(nats["int8"] / nats["float32"] - 1) < 0.02
    twice = succeed(capsys, *words, "--adapter", tmp_path / "run/adapter", "--adapter", tmp_path / "run/adapter")
    alone = succeed(capsys, *words)["nats"]
    assert (twice["nats"] - alone) / (nats["float32"] - alone) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("command", ["train --out o", "fisher --out o", "eval perplexity", "eval qa"])
def test_unknown_kinds_are_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main([*command.split(), "--model", "m", "--data", "d", "--base-dtype", "int4"])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert all(kind in error for kind in ("int4", "float32", "bfloat16", "int8", "nf4"))


def test_sizes_without_blocks_are_refused() -> None:
    with pytest.raises(InputError, match=r"nf4: layers\.q has 12 inputs, no multiple of 8; use int8"):
        quantize(np.ones((2, 12), np.float32), "nf4", name="layers.q")
    assert quantize(np.ones((2, 12), np.float32), "int8").shape == (2, 12)


def test_fingerprint_is_of_the_files_weights(base_folder: Path) -> None:
    assert len({load(str(base_folder), kind).fingerprint for kind in ("float32", "bfloat16", "int8", "nf4")}) == 1


# ----------------------------------------------------------------------------------------------------- the real model


@pytest.mark.usefixtures("full_compilation")
@pytest.mark.slow
def test_loss_and_memory_of_smollm2(smollm2: Model) -> None:
    tokenizer = load_tokenizer(locate("smollm2-135m"))
    rows, _ = document_rows(tokenizer, read_documents("pydoc:held-out")[:16], max_length=96, special_tokens=False)
    batch, _ = next(iter(sorted_batches(rows, 16, 96)))
    counted = batch.weights > 0

    def loss(params: Params) -> tuple[float, int]:
        compiled = losses.lower(smollm2.config, params, batch).compile()
        return float(
            np.asarray(compiled(params, batch))[counted].mean()
        ), compiled.memory_analysis().argument_size_in_bytes

    expected, whole = loss(smollm2.params)
    embedding = smollm2.config.vocab_size * smollm2.config.hidden_size
    matrices = sum(w.size for w in flatten(smollm2.params).values() if w.ndim == 3)
    kinds: list[tuple[BaseDType, float, float]] = [("int8", 0.01, 1.0), ("nf4", 0.1, 0.5 + 2 / 32)]
    for kind, tolerance, bytes_per_weight in kinds:
        copy = jax.tree.map(lambda w: w, smollm2.params)
        ours, small = loss(quantize_params(copy, smollm2.config, kind))
        assert abs(ours / expected - 1) < tolerance, kind
        assert (whole - small) / (matrices * (4 - bytes_per_weight) + embedding * 3) == pytest.approx(1, abs=0.01), kind
