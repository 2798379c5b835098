"""The decoder against transformers, and its own invariances: padding, packing, shared prefixes, remat, dtype."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error

from e2wm_jax.config import MODELS, ModelConfig
from e2wm_jax.data.batch import Row, collate
from e2wm_jax.models import decoder
from e2wm_jax.models.head import target_labels, target_logits, target_nll, target_states
from e2wm_jax.models.layers import negative_log_likelihood
from e2wm_jax.models.weights import flatten, load

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOLERANCE = 1e-4  # of the largest value, in float32

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one query head per key head": {"num_key_value_heads": 4},
    "one key head, tied": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "head size 12, attention bias": {"head_dim": 12, "attention_bias": True},
    "head size 20, mlp bias": {
        "hidden_size": 24,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 20,
        "mlp_bias": True,
    },
    "head size 10, three layers": {"hidden_size": 40, "num_hidden_layers": 3, "tie_word_embeddings": True},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "norm eps": {"rms_norm_eps": 0.1},
    "everything": {
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    },
}
PROMPTS = ("The capital of France is", "To make coffee, you first need to", "Mary puts the plate on the table. Then")


@partial(jax.jit, static_argnames=("config", "remat"))
def scores(
    config: ModelConfig, params: Any, ids: Any, positions: Any, segments: Any, remat: decoder.Remat = "none"
) -> jax.Array:
    """Output scores [B, T, V] of every token."""
    return decoder.logits(config, params, decoder.hidden_states(config, params, ids, positions, segments, remat=remat))


def row_scores(config: ModelConfig, params: Any, ids: Any) -> jax.Array:
    """`scores` of whole rows without padding."""
    ids = np.asarray(ids, np.int32)
    return scores(config, params, ids, np.broadcast_to(np.arange(ids.shape[1]), ids.shape), np.zeros_like(ids))


def padded_scores(config: ModelConfig, params: Any, ids: np.ndarray) -> jax.Array:
    """Scores [T, V] of one row, computed in a row of 16 as all others, so that one compiled function does."""
    padding = 16 - len(ids)
    segments = np.pad(np.zeros_like(ids), (0, padding), constant_values=-1)
    whole = scores(config, params, np.pad(ids, (0, padding))[None], np.arange(16)[None], segments[None])
    return whole[0, : len(ids)]


def torch_scores(model: Any, ids: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(np.asarray(ids))).logits.numpy()


def random_ids(*shape: int, vocab: int = 320) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, shape, dtype=np.int32)


@pytest.fixture(scope="module")
def tiny() -> tuple[ModelConfig, Any]:
    """A random model of our own preset."""
    return MODELS["tiny"], decoder.initialize(MODELS["tiny"], jax.random.key(0))


# ------------------------------------------------------------------------------------------- the same as transformers


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_small_models_score_and_continue_as_in_transformers(name: str, save_llama: Any, tmp_path: Path) -> None:
    theirs = save_llama(tmp_path, **ARCHITECTURES[name])
    ours = load(str(tmp_path))
    prompts, length, new = random_ids(3, 8), 24, 16
    assert (
        relative_error(
            row_scores(ours.config, ours.params, random_ids(3, length)), torch_scores(theirs, random_ids(3, length))
        )
        < TOLERANCE
    )

    ids = np.pad(prompts, ((0, 0), (0, length - prompts.shape[1])))
    for end in range(prompts.shape[1], prompts.shape[1] + new):
        ids[:, end] = np.argmax(row_scores(ours.config, ours.params, ids)[:, end - 1], axis=-1)
    expected = theirs.generate(
        torch.tensor(prompts),
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        suppress_tokens=[],
        eos_token_id=None,
    )
    np.testing.assert_array_equal(ids, expected.numpy())


def test_long_positions_score_as_in_transformers(save_llama: Any, tmp_path: Path) -> None:
    theirs = save_llama(tmp_path, num_hidden_layers=1, max_position_embeddings=2048)
    ours = load(str(tmp_path))
    ids = random_ids(1, 1500)
    assert relative_error(row_scores(ours.config, ours.params, ids), torch_scores(theirs, ids)) < TOLERANCE


@pytest.mark.parametrize("name", ["head size 12, attention bias", "everything"])
def test_gradient_of_the_loss_is_torchs(name: str, save_llama: Any, tmp_path: Path) -> None:
    theirs = save_llama(tmp_path, **ARCHITECTURES[name])
    ours = load(str(tmp_path))
    rows = [Row(random_ids(12), 1), Row(random_ids(20)[7:], 5)]
    batch = collate(rows, length=16, num_targets=16, batch_size=2)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(batch.weights * target_nll(ours.config, params, batch))

    value, gradient = jax.jit(jax.value_and_grad(loss))(ours.params)
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor(row.ids, dtype=torch.long)
        logits = theirs(ids[None]).logits[0, row.first_target - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[row.first_target :], reduction="sum")
    total.backward()
    assert float(value) == pytest.approx(total.item(), rel=1e-5)

    expected = dict(theirs.named_parameters())
    table = decoder.weight_table(ours.config)
    for path, ours_gradient in flatten(gradient).items():
        layers = ours_gradient if table[path].stacked else ours_gradient[None]
        for layer, one in enumerate(layers):
            name = table[path].hf.format(layer)
            assert relative_error(one, expected[name].grad) < TOLERANCE, name


@pytest.mark.slow
@pytest.mark.usefixtures("full_compilation")
def test_smollm2_scores_as_in_transformers(smollm2: Any, smollm2_torch: Any) -> None:
    ids = random_ids(2, 48, vocab=smollm2.config.vocab_size)
    assert relative_error(row_scores(smollm2.config, smollm2.params, ids), torch_scores(smollm2_torch, ids)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.usefixtures("full_compilation")
def test_smollm2_padded_on_either_side_has_transformers_gradient_and_bfloat16_error(
    smollm2: Any, smollm2_torch: Any, smollm2_gguf: Path, double_norms: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against transformers in float64. In float32 a norm's gradient, a sum over massive activations, is off by more
    than the tolerance, in transformers more than here: ours must not be further from the truth than theirs."""
    from e2wm_jax.data.tokenizer import load_tokenizer
    from e2wm_jax.storage.model_files import locate

    tokenizer = load_tokenizer(locate(str(smollm2_gguf)))
    rows, width = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS[1:]], 16
    ids, real = np.zeros((2, width), np.int32), np.zeros((2, width), bool)
    for index, row in enumerate(rows):
        at = slice(width - len(row), width) if index == 0 else slice(0, len(row))  # padding on the left, on the right
        ids[index, at], real[index, at] = row, True
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32)
    segments, predicted = np.where(real, 0, -1).astype(np.int32), real[:, 1:] & real[:, :-1]

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        found = scores(smollm2.config, params, ids, positions, segments)
        every = negative_log_likelihood(found[:, :-1], ids[:, 1:])
        return jnp.sum(jnp.where(predicted, every, 0)) / predicted.sum(), found

    (value, ours), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(smollm2.params)

    def theirs(model: Any) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
        model.zero_grad(set_to_none=True)
        found = model(
            torch.tensor(ids),
            attention_mask=torch.tensor(real.astype(np.int64)),
            position_ids=torch.tensor(positions, dtype=torch.long),
        ).logits
        chosen, labels = torch.tensor(predicted), torch.tensor(ids[:, 1:][predicted]).long()
        loss = torch.nn.functional.cross_entropy(found[:, :-1][chosen], labels)
        loss.backward()
        gradient = {name: p.grad.to(torch.float64).numpy() for name, p in model.named_parameters()}
        return loss.item(), found.detach().to(torch.float64).numpy(), gradient

    single = copy.deepcopy(smollm2_torch)
    _, _, rounded_gradient = theirs(single)
    double_value, double_scores, expected = theirs(single.double())
    assert float(value) == pytest.approx(double_value, rel=1e-5)
    assert relative_error(np.asarray(ours)[real], double_scores[real]) < TOLERANCE
    table, errors = decoder.weight_table(smollm2.config), {}
    for path, one in flatten(gradient).items():
        for layer, part in enumerate(one if table[path].stacked else one[None]):
            name = table[path].hf.format(layer)
            errors[name] = relative_error(part, expected[name])
    matrices = [error for name, error in errors.items() if expected[name].ndim == 2]
    norms = {name: error for name, error in errors.items() if expected[name].ndim == 1}
    assert max(matrices) < TOLERANCE
    assert max(norms.values()) <= max(relative_error(rounded_gradient[name], expected[name]) for name in norms)

    rounded = jax.tree.map(lambda w: w.astype(jnp.bfloat16), smollm2.params)
    coarse = np.asarray(scores(smollm2.config, rounded, ids, positions, segments).astype(jnp.float32))
    monkeypatch.undo()  # bfloat16 needs the float32 statistics
    _, their_coarse, _ = theirs(copy.deepcopy(smollm2_torch).bfloat16())
    own_error = relative_error(coarse[real], double_scores[real])
    assert own_error < 1.5 * relative_error(their_coarse[real], double_scores[real])


@pytest.mark.slow
@pytest.mark.usefixtures("full_compilation")
def test_smollm2_continues_as_in_transformers(smollm2: Any, smollm2_torch: Any, smollm2_gguf: Path) -> None:
    from e2wm_jax.data.tokenizer import load_tokenizer
    from e2wm_jax.storage.model_files import locate

    tokenizer, new, length = load_tokenizer(locate(str(smollm2_gguf))), 24, 40
    for prompt in PROMPTS:
        start = tokenizer(prompt)["input_ids"]
        expected = smollm2_torch.generate(
            torch.tensor([start]), do_sample=False, max_new_tokens=new, min_new_tokens=new, eos_token_id=None
        ).numpy()
        # Greedy decoding gives these tokens exactly if, after each prefix of them, the best next token is theirs; under
        # a causal mask one pass over all of them says that for every prefix.
        padded = np.pad(expected, ((0, 0), (0, length - expected.shape[1])))
        best = np.argmax(row_scores(smollm2.config, smollm2.params, padded)[0], axis=-1)
        end = expected.shape[1]
        np.testing.assert_array_equal(best[len(start) - 1 : end - 1], expected[0, len(start) :])


# -------------------------------------------------------------------------------------------------------- invariances


def test_padding_changes_nothing(tiny: tuple[ModelConfig, Any]) -> None:
    config, params = tiny
    rows = [Row(random_ids(n, vocab=256), 1) for n in (3, 16)]
    batch = collate(rows, length=24, num_targets=24, batch_size=3)
    nll = np.asarray(jax.jit(partial(target_nll, config))(params, batch))
    assert np.isfinite(nll).all()
    for row, values in zip(rows, nll, strict=False):
        alone = collate([row], length=len(row.ids), num_targets=row.num_targets, batch_size=1)
        expected = jax.jit(partial(target_nll, config))(params, alone)[0]
        np.testing.assert_allclose(values[: row.num_targets], expected, rtol=1e-5, atol=1e-6)


def test_packed_documents_do_not_see_each_other(tiny: tuple[ModelConfig, Any]) -> None:
    config, params = tiny
    lengths = (5, 9, 2)
    ids = random_ids(sum(lengths), vocab=256)
    positions = np.concatenate([np.arange(n) for n in lengths])
    packed = scores(config, params, ids[None], positions[None], np.repeat([1, 2, 3], lengths)[None])[0]
    start = 0
    for length in lengths:
        alone = padded_scores(config, params, ids[start : start + length])
        np.testing.assert_allclose(packed[start : start + length], alone, rtol=1e-5, atol=1e-6)
        start += length


def test_options_behind_a_shared_prefix_score_as_separate_rows(tiny: tuple[ModelConfig, Any]) -> None:
    config, params = tiny
    prefix, *options = (random_ids(n, vocab=256) for n in (8, 1, 4, 3))
    ids = np.concatenate([prefix, *options])[None]
    positions = np.concatenate([np.arange(len(prefix)), *(len(prefix) + np.arange(len(option)) for option in options)])
    segments = np.repeat([0, 1, 2, 3], [8, 1, 4, 3])
    shared = scores(config, params, ids, positions[None], segments[None])[0]
    place = len(prefix)
    for option in options:
        alone = padded_scores(config, params, np.concatenate([prefix, option]))
        np.testing.assert_allclose(shared[: len(prefix)], alone[: len(prefix)], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shared[place : place + len(option)], alone[len(prefix) :], rtol=1e-5, atol=1e-6)
        place += len(option)


def test_later_tokens_change_nothing_before_them(tiny: tuple[ModelConfig, Any]) -> None:
    config, params = tiny
    ids = random_ids(1, 12, vocab=256)
    changed = ids.copy()
    changed[0, 7] = (changed[0, 7] + 1) % 256
    before, after = row_scores(config, params, ids), row_scores(config, params, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert relative_error(after[:, 7:], before[:, 7:]) > 1e-3


def test_scores_are_computed_for_targets_only(tiny: tuple[ModelConfig, Any]) -> None:
    config, params = tiny
    batch = collate([Row(random_ids(10, vocab=256), 7)], length=12, num_targets=5, batch_size=1)
    every = row_scores(config, params, batch.ids)
    np.testing.assert_array_equal(target_labels(batch)[0, :3], batch.ids[0, 7:10])
    picked = jax.jit(partial(target_logits, config))(params, batch)
    assert picked.shape == (1, 5, config.vocab_size)
    np.testing.assert_allclose(picked[0, :3], every[0, 6:9], rtol=1e-5, atol=1e-6)


def test_remat_changes_memory_not_numbers(tiny: tuple[ModelConfig, Any]) -> None:
    config, params = tiny
    batch = collate([Row(random_ids(16, vocab=256), 1)], length=16, num_targets=15, batch_size=1)

    def loss(params: Any, remat: decoder.Remat) -> jax.Array:
        states = target_states(config, params, batch, remat=remat)
        return jnp.sum(negative_log_likelihood(decoder.logits(config, params, states), target_labels(batch)))

    def residuals(remat: decoder.Remat) -> int:
        """Bytes kept between the passes."""
        _, pull = jax.vjp(partial(loss, remat=remat), params)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(pull))

    plain, *others = (
        jax.jit(jax.value_and_grad(partial(loss, remat=remat)))(params) for remat in ("none", "layers", "products")
    )
    for other in others:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), plain, other)
    assert residuals("layers") < residuals("products") < residuals("none")


def test_layers_are_one_scan_however_many_there_are() -> None:
    def program(num_layers: int) -> str:
        config = replace(MODELS["tiny"], num_layers=num_layers)
        params = jax.eval_shape(partial(decoder.initialize, config), jax.random.key(0))
        ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        return str(jax.make_jaxpr(partial(decoder.hidden_states, config))(params, ids, ids, ids))

    two, five = program(2), program(5)
    assert two.count("scan[") == five.count("scan[") == 1
    assert len(two.splitlines()) == len(five.splitlines())


def test_bfloat16_runs_and_is_close(tiny_llama: Path, full_compilation: None) -> None:
    exact, rounded = load(str(tiny_llama)), load(str(tiny_llama), "bfloat16")
    assert {value.dtype for value in flatten(rounded.params).values()} == {jnp.dtype("bfloat16")}
    ids = random_ids(2, 20)
    ours = row_scores(rounded.config, rounded.params, ids)
    assert ours.dtype == jnp.bfloat16
    assert relative_error(ours.astype(jnp.float32), row_scores(exact.config, exact.params, ids)) < 0.03
    assert rounded.fingerprint == exact.fingerprint


def test_losses_are_float32_whatever_the_model_is(tiny: tuple[ModelConfig, Any]) -> None:
    config, params = tiny
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    batch = collate([Row(random_ids(8, vocab=256), 1)], length=8, num_targets=7, batch_size=1)
    assert jax.eval_shape(partial(target_nll, config), params, batch).dtype == jnp.float32


def test_initial_loss_is_that_of_a_guess(tiny: tuple[ModelConfig, Any]) -> None:
    config, params = tiny  # initializer_range 0.02: nearly equal scores
    batch = collate([Row(random_ids(64, vocab=256), 1)], length=64, num_targets=63, batch_size=1)
    assert float(jnp.mean(jax.jit(partial(target_nll, config))(params, batch))) == pytest.approx(np.log(256), rel=0.02)
