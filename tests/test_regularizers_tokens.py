"""Penalties on tokens (kl, replay) against whole distributions in float64."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import relative_error
from jax.sharding import PartitionSpec

from e2wm_jax import lora
from e2wm_jax.config import LlamaConfig, LoraConfig, ModelConfig, OPTConfig
from e2wm_jax.data.batch import Batch, Row, collate
from e2wm_jax.lora import Adapters, Scope
from e2wm_jax.models import decoder
from e2wm_jax.models.head import output_head, target_logits
from e2wm_jax.regularizers.regularizer import Regularizer
from e2wm_jax.regularizers.text import KL_FORWARD, KL_REVERSE, REPLAY
from e2wm_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "max_positions": 64,
    "initializer_range": 0.4,
}
TIED = LlamaConfig(**SIZES, tied=True)
UNTIED = LlamaConfig(**SIZES)
NARROW_TABLE = OPTConfig(**SIZES, tied=True, embedding_size=12, norms="post")


@cache
def setting(config: ModelConfig) -> tuple[Scope, Any, Adapters]:
    """A model and adapters off their start."""
    spec = lora.adapter_spec(config, LoraConfig(rank=2, alpha=4.0, targets="all-linear"))
    adapters = lora.initialize(config, spec, jax.random.key(1))
    moved = {
        path: {"a": one["a"], "b": 0.3 * jax.random.normal(jax.random.key(len(path)), one["b"].shape)}
        for path, one in adapters.items()
    }
    return Scope(config, spec), decoder.initialize(config, jax.random.key(0)), moved


def batch_of(lengths: tuple[int, ...], first_targets: tuple[int, ...]) -> Batch:
    rng = np.random.default_rng(2)
    rows = [
        Row(rng.integers(0, 60, n).astype(np.int32), first) for n, first in zip(lengths, first_targets, strict=True)
    ]
    return collate(rows, length=12, num_targets=11, batch_size=len(rows) + 1)


BATCH = batch_of((12, 7, 9), (1, 4, 1))
KNOWN = BATCH.weights > 0


@partial(jax.jit, static_argnums=(0, 1))
def per_token(regularizer: Regularizer, scope: Scope, params: Any, adapters: Adapters, batch: Batch) -> jax.Array:
    assert regularizer.token_penalty is not None
    return regularizer.token_penalty(scope, params, lora.attach(params, adapters, scope.spec), batch)


@partial(jax.jit, static_argnums=(0, 1))
def total(regularizer: Regularizer, scope: Scope, params: Any, adapters: Adapters) -> tuple[jax.Array, Adapters]:
    """Sum over the predicted tokens of `BATCH`, and its gradient."""

    def value(adapters: Adapters) -> jax.Array:
        return jnp.sum(jnp.where(KNOWN, per_token(regularizer, scope, params, adapters, BATCH), 0))

    return jax.value_and_grad(value)(adapters)


def log_softmax(scores: Any) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    scores = scores - scores.max(-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@pytest.mark.parametrize("config", [TIED, UNTIED, NARROW_TABLE], ids=["tied", "untied", "narrow table"])
def test_values_by_hand(config):
    scope, params, adapters = setting(config)
    scores = jax.jit(partial(target_logits, config))
    base = log_softmax(scores(params, BATCH))
    tuned = log_softmax(scores(lora.merge(params, adapters, scope.spec), BATCH))
    labels = np.take_along_axis(BATCH.ids, BATCH.targets, axis=1)
    expected = {
        KL_FORWARD: np.sum(np.exp(base) * (base - tuned), axis=-1),
        KL_REVERSE: np.sum(np.exp(tuned) * (tuned - base), axis=-1),
        REPLAY: -np.take_along_axis(tuned, labels[..., None], axis=-1)[..., 0],
    }
    assert relative_error(expected[KL_FORWARD], expected[KL_REVERSE]) > 0.1, "the directions are to differ"
    for regularizer, values in expected.items():
        found = per_token(regularizer, scope, params, adapters, BATCH)
        assert found.dtype == jnp.float32
        assert relative_error(np.asarray(found)[KNOWN], values[KNOWN]) < 2e-5


def test_kl_and_its_gradient_are_zero_at_the_start_and_replay_is_not():
    scope, params, _ = setting(TIED)
    start = lora.initialize(TIED, scope.spec, jax.random.key(1))
    for regularizer in (KL_FORWARD, KL_REVERSE):
        value, slope = total(regularizer, scope, params, start)
        assert abs(value) < 1e-5
        assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(slope)) < 1e-5
    value, slope = total(REPLAY, scope, params, start)
    assert value > 10
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(slope)) > 0.1


@pytest.mark.parametrize("regularizer", [KL_FORWARD, KL_REVERSE, REPLAY], ids=["forward", "reverse", "replay"])
def test_gradient_by_finite_differences(regularizer):
    scope, params, adapters = setting(TIED)
    toward = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapters)

    def along(t: float) -> float:
        return float(total(regularizer, scope, params, jax.tree.map(lambda x, d: x + t * d, adapters, toward))[0])

    slopes = [(along(h) - along(-h)) / (2 * h) for h in (1e-3, 2e-3)]
    extrapolated = (4 * slopes[0] - slopes[1]) / 3  # Richardson: the error is of the fourth order
    _, slope = total(regularizer, scope, params, adapters)
    dots = jax.tree.map(lambda g, d: float(jnp.vdot(g, d)), slope, toward)
    np.testing.assert_allclose(sum(jax.tree.leaves(dots)), extrapolated, rtol=2e-3)


def test_the_base_gets_no_gradient():
    scope, params, adapters = setting(TIED)
    adapted = lora.attach(params, adapters, scope.spec)

    def summed(params: Any) -> jax.Array:
        return jnp.sum(KL_FORWARD.token_penalty(scope, params, adapted, BATCH))

    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(summed))(params)))


@pytest.mark.parametrize("regularizer", [KL_FORWARD, REPLAY], ids=["kl", "replay"])
def test_rows_do_not_depend_on_each_other(regularizer):
    """Each device computes its share of a batch, as the trainer has it."""
    scope, params, adapters = setting(TIED)
    batch = jax.tree.map(jnp.asarray, BATCH)  # four rows
    mesh = make_mesh("data=2,fsdp=2", jax.devices()[:4])
    rows = PartitionSpec(("data", "fsdp"))
    share = jax.shard_map(
        lambda params, adapters, batch: per_token(regularizer, scope, params, adapters, batch),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), rows),
        out_specs=rows,
        check_vma=False,
    )
    whole = per_token(regularizer, scope, params, adapters, batch)
    found = jax.jit(share)(params, adapters, batch)
    assert relative_error(np.asarray(found)[KNOWN], np.asarray(whole)[KNOWN]) < 1e-5


def test_a_mesh_splits_the_vocabulary_where_it_divides_it():
    scope, params, _ = setting(UNTIED)
    tensor = {size: make_mesh(f"tensor={size}", jax.devices()[:size]) for size in (4, 8)}
    assert output_head(scope.config, params, scope.mesh).parts == 1
    assert output_head(scope.config, params, tensor[4]).parts == 4
    assert output_head(scope.config, params, tensor[8]).parts == 1, "60 words do not divide by 8"
    assert output_head(scope.config, params, scope.mesh).weights is params["head"]
