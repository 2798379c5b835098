"""The diagonal Fisher: by hand, by enumeration, of a real model in float64 and in bfloat16.

Every family: test_fisher_fused.py; devices: test_fisher_sharded.py; the command: test_fisher_run.py.
"""

import itertools
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from e2wm_jax.config import LlamaConfig
from e2wm_jax.data.batch import Row, collate
from e2wm_jax.data.source import read_documents
from e2wm_jax.data.tokenize import document_rows
from e2wm_jax.data.tokenizer import load_tokenizer
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.diagonal import Computation, Estimator, FisherResult, document_fisher
from e2wm_jax.fisher.documents import collate_documents, document_batches
from e2wm_jax.fisher.finite import NonFiniteError
from e2wm_jax.models import decoder
from e2wm_jax.models.decoder import weight_table
from e2wm_jax.models.weights import Model, flatten, load, unflatten
from e2wm_jax.storage.model_files import locate

pytestmark = pytest.mark.usefixtures("quick_compilation")


def random_rows(vocab_size: int, lengths: Sequence[int], seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [Row(rng.integers(0, vocab_size, length).astype(np.int32), 1) for length in lengths]


def ours(model: Model, rows: Sequence[Row], **options: Any) -> FisherResult:
    return document_fisher(model.config, model.params, document_batches(rows, 8, 64), **options)


@pytest.fixture(scope="module")
def model(save_llama, tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("tied")
    save_llama(folder, vocab_size=64, tie_word_embeddings=True)
    return load(str(folder))


# --------------------------------------------------------------------------------------------------------- exact values


def test_fisher_by_hand_where_the_blocks_do_nothing():
    """With o and down zero, the logits are W h with h the normed embedding: dL/dW = (p - one_hot) h^T."""
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=4,
        intermediate_size=4,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=2,
        max_positions=8,
    )
    params = decoder.initialize(config, jax.random.key(0))
    params["layers"]["o"]["weight"] *= 0
    params["layers"]["down"]["weight"] *= 0
    table, head = (np.asarray(params[name]["weight"], np.float64) * 50 for name in ("embed", "head"))
    params["embed"]["weight"], params["head"]["weight"] = jnp.float32(table), jnp.float32(head)
    pairs = [(0, 3), (4, 1), (2, 2)]
    rows = [Row(np.asarray(pair, np.int32), 1) for pair in pairs]

    expected = np.zeros_like(head)
    for first, second in pairs:
        h = table[first] / np.sqrt(np.mean(table[first] ** 2) + config.norm_eps)
        scores = head @ h
        p = np.exp(scores - scores.max())
        p /= p.sum()
        expected += np.outer(p - np.eye(5)[second], h) ** 2 / len(pairs)

    result = document_fisher(config, params, document_batches(rows, 2, 8))
    np.testing.assert_allclose(result.values["head.weight"], expected, rtol=1e-4, atol=1e-7)


def test_a_tied_table_is_one_parameter_with_its_cross_terms(save_llama, double_norms, tmp_path):
    """The square of the sum of both gradients, not the sum of the squares."""
    torch = pytest.importorskip("torch")
    theirs = save_llama(tmp_path / "tied", vocab_size=64, tie_word_embeddings=True)
    separate = save_llama(tmp_path / "separate", vocab_size=64)
    with torch.no_grad():
        for name, parameter in separate.named_parameters():
            parameter.copy_(theirs.get_parameter(name if name != "lm_head.weight" else "model.embed_tokens.weight"))
    separate = separate.double()
    row = random_rows(64, [12])[0]
    ids = torch.tensor(row.ids.astype(np.int64))[None]
    loss = torch.nn.functional.cross_entropy(separate(ids).logits[0, :-1], ids[0, 1:])
    as_table, as_head = torch.autograd.grad(loss, [separate.model.embed_tokens.weight, separate.lm_head.weight])

    found = ours(load(str(tmp_path / "tied")), [row]).values
    assert "head.weight" not in found
    together, apart = ((as_table + as_head) ** 2).numpy(), (as_table**2 + as_head**2).numpy()
    assert np.abs(found["embed.weight"] - together).max() / together.max() < 1e-4
    assert np.abs(found["embed.weight"] - apart).max() / apart.max() > 1e-2


def test_fisher_is_not_the_squared_gradient_of_a_batch(model):
    rows = random_rows(64, [12] * 4)
    fisher = ours(model, rows).values
    batch = collate(rows, length=12, num_targets=11, batch_size=4)

    def mean_loss(params):
        from e2wm_jax.models.head import target_nll

        return jnp.mean(target_nll(model.config, params, batch))

    squared = {path: g**2 for path, g in flatten(jax.grad(mean_loss)(model.params)).items()}
    assert all(float(squared[path].sum()) < 0.6 * float(fisher[path].sum()) for path in fisher)


@pytest.mark.slow
def test_sampled_labels_average_to_the_true_fisher():
    """One sequence many times is many draws; the exact value is the sum over all pairs of labels."""
    draws, vocabulary = 4000, 4
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=4,
        intermediate_size=4,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=2,
        max_positions=8,
        initializer_range=0.7,
    )
    params = decoder.initialize(config, jax.random.key(3))
    row = Row(np.asarray([1, 3, 0], np.int32), 1)
    batch = collate([row], length=3, num_targets=2, batch_size=1)

    from e2wm_jax.models.head import target_logits

    def loss(params, labels):
        scores = jax.nn.log_softmax(target_logits(config, params, batch)[0])
        return -jnp.mean(scores[jnp.arange(2), labels])

    probabilities = np.asarray(jax.nn.softmax(target_logits(config, params, batch)[0]), np.float64)
    exact, second_moment = ({path: 0.0 for path in flatten(params)} for _ in range(2))
    gradient = jax.jit(jax.grad(loss))
    for labels in itertools.product(range(vocabulary), repeat=2):
        weight = probabilities[0, labels[0]] * probabilities[1, labels[1]]
        for path, g in flatten(gradient(params, jnp.asarray(labels))).items():
            square = np.asarray(g, np.float64) ** 2
            exact[path] += weight * square
            second_moment[path] += weight * square**2

    batches = list(document_batches([row] * draws, 1000, 3))
    found = document_fisher(config, params, batches, estimator=Estimator(labels="sampled", seed=1)).values
    other = document_fisher(config, params, batches, estimator=Estimator(labels="sampled", seed=2)).values
    empirical = document_fisher(config, params, batches).values
    for path, value in exact.items():
        deviation = np.sqrt(np.maximum(second_moment[path] - value**2, 0) / draws)
        assert np.all(np.abs(found[path] - value) <= 5 * deviation + 1e-5 * value.max()), path
    assert np.any(found["head.weight"] != other["head.weight"])
    assert np.abs(empirical["head.weight"] - exact["head.weight"]).max() > 0.2 * exact["head.weight"].max()


def test_padding_to_any_length_and_empty_rows_change_nothing(model):
    rows = random_rows(64, [9, 5, 12])
    reference = ours(model, rows)
    padded = collate_documents(
        [[(2, rows[2])], [], [(0, rows[0]), (1, rows[1])]], length=40, rows=5, documents=7, window=17
    )
    result = document_fisher(model.config, model.params, [padded])
    assert (result.samples, result.tokens) == (reference.samples, reference.tokens) == (3, 23)
    for path, value in reference.values.items():
        assert np.abs(result.values[path] - value).max() < 5e-6 * value.max(), path


def test_a_document_that_is_not_finite_is_named(model):
    """And no other: with the word that is broken in documents 1 and 3 only."""
    rows = random_rows(60, [9, 5, 12, 20])
    for number in (1, 3):
        rows[number].ids[2] = 63
    table = np.array(model.params["embed"]["weight"])
    table[63] = np.inf
    flat = {**flatten(model.params), "embed.weight": jnp.asarray(table), "head.weight": model.params["embed"]["weight"]}
    untied = LlamaConfig(**{**vars(model.config), "tied": False})
    with pytest.raises(NonFiniteError, match=r"\[1, 3\]"):
        document_fisher(untied, unflatten(flat), document_batches(rows, 4, 32))


@pytest.mark.parametrize("method", ["fused", "vmap", "scan"])
def test_squares_beyond_float32_are_refused(model, method):
    """A head of 1e-21 behind a norm of 1e21: losses and all gradients are numbers, the square of the head's is not."""
    scale = jnp.float32(1e21)
    flat = flatten(model.params)
    flat = {**flat, "norm.weight": flat["norm.weight"] * scale, "head.weight": flat["embed.weight"] / scale}
    untied = LlamaConfig(**{**vars(model.config), "tied": False})
    batches = list(document_batches(random_rows(60, [9, 5]), 2, 32))
    named = r"head\.weight: squares" if method == "fused" else r"examples \[0, 1\]"
    options = {"computation": Computation(method=method)}
    with pytest.raises((InputError, NonFiniteError), match=named):
        document_fisher(untied, unflatten(flat), batches, select=lambda path: path == "head.weight", **options)
    found = document_fisher(untied, unflatten(flat), batches, select=lambda path: path == "layers.q.weight", **options)
    assert np.isfinite(found.values["layers.q.weight"]).all()


# ------------------------------------------------------------------------------------------------------ the real model


@pytest.fixture(scope="module")
def real_rows() -> list[Row]:
    """Two texts of 64 tokens."""
    tokenizer = load_tokenizer(locate("smollm2-135m"))
    rows, _ = document_rows(tokenizer, read_documents("pydoc:fisher"), max_length=64, special_tokens=True)
    return [row for row in rows if len(row.ids) == 64][:2]


@pytest.fixture(scope="module")
def real_fisher(smollm2, real_rows) -> dict[str, jax.Array]:
    """Of all tensors of SmolLM2-135M."""
    return ours(smollm2, real_rows).values


@pytest.mark.slow
def test_all_tensors_of_smollm2_equal_a_float64_loop(smollm2, smollm2_torch, real_rows, real_fisher, double_norms):
    torch = pytest.importorskip("torch")
    theirs = deepcopy(smollm2_torch).double()
    names, parameters = zip(*theirs.named_parameters(), strict=True)
    expected = dict.fromkeys(names, 0.0)
    for row in real_rows:
        ids = torch.tensor(row.ids.astype(np.int64))[None]
        loss = torch.nn.functional.cross_entropy(theirs(ids).logits[0, :-1], ids[0, 1:])
        for name, gradient in zip(names, torch.autograd.grad(loss, parameters), strict=True):
            expected[name] = expected[name] + gradient.square_().numpy() / 2
    errors = {}
    for path, spec in weight_table(smollm2.config).items():
        for layer, one in enumerate(np.asarray(real_fisher[path]) if spec.stacked else [np.asarray(real_fisher[path])]):
            f = expected.pop(spec.hf.format(layer))
            errors[spec.hf.format(layer)] = np.abs(one - f).max() / f.max()
    assert not expected
    worst = max(errors, key=errors.get)
    print(f"max error / max F of the worst of {len(errors)} tensors of SmolLM2-135M, {worst}: {errors[worst]:.1e}")
    assert len(errors) == 272
    assert errors[worst] < 1e-4


@pytest.mark.slow
def test_bfloat16_is_unbiased_enough(smollm2, real_rows, real_fisher):
    """bfloat16 weights and activations, float32 sums: 6 to 8 percent of F's mass are elsewhere."""
    chosen = {"layers.q.weight", "layers.v.weight", "layers.mlp_norm.weight", "norm.weight"}
    batches = list(document_batches(real_rows, 2, 64))
    rounded = jax.tree.map(lambda w: w.astype(jnp.bfloat16), smollm2.params)
    found = document_fisher(smollm2.config, rounded, batches, select=chosen.__contains__).values
    for path in chosen:
        f = real_fisher[path]
        assert found[path].dtype == jnp.float32
        error = float(jnp.abs(found[path] - f).sum() / f.sum())
        correlation = float(np.corrcoef(np.ravel(found[path]), np.ravel(f))[0, 1])
        print(f"{path} in bfloat16: F-weighted relative error {error:.3f}, correlation {correlation:.4f}")
        assert error < 0.10, path
        assert correlation > 0.99, path
