"""What others build on: the names that the package exports, the penalty of any pytree, and the pages about both."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import e2wm_jax
from e2wm_jax.errors import InputError
from e2wm_jax.fisher.storage import encode

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)


def random_tree() -> dict[str, dict[str, np.ndarray]]:
    return {"a": {"w": RNG.normal(size=(8, 64)).astype(np.float32), "b": RNG.normal(size=4).astype(np.float32)}}


def test_natural_guesses():
    from e2wm_jax.fisher import document_fisher, fisher_diagonal, read_fisher
    from e2wm_jax.models import load
    from e2wm_jax.regularizers import EWC, REGULARIZERS, ewc_penalty
    from e2wm_jax.train import train_step

    assert e2wm_jax.load_model is load
    assert e2wm_jax.fisher_diagonal is fisher_diagonal
    assert e2wm_jax.document_fisher is document_fisher
    assert e2wm_jax.read_fisher is read_fisher
    assert e2wm_jax.ewc_penalty is ewc_penalty
    assert e2wm_jax.train_step is train_step
    assert REGULARIZERS["ewc"] is EWC


def test_every_public_name_is_on_the_page():
    table = (Path(__file__).parents[1] / "docs/library.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert set(e2wm_jax.__all__) <= set(re.findall(r"`(\w+)`", table))


def test_every_public_name_has_a_docstring():
    assert not [name for name in e2wm_jax.__all__ if not getattr(e2wm_jax, name).__doc__]


def test_penalty_by_hand_and_its_gradient():
    params, anchor, fisher = random_tree(), random_tree(), jax.tree.map(np.square, random_tree())
    value, gradient = jax.value_and_grad(e2wm_jax.ewc_penalty)(params, anchor, fisher, 3.0)
    expected = sum(
        np.sum(fisher["a"][name].astype(np.float64) * (params["a"][name] - anchor["a"][name]) ** 2) for name in "wb"
    )
    np.testing.assert_allclose(value, 3 * expected, rtol=1e-6)
    for name in "wb":
        by_hand = 6 * fisher["a"][name] * (params["a"][name] - anchor["a"][name])
        np.testing.assert_allclose(gradient["a"][name], by_hand, rtol=1e-5)
    assert float(e2wm_jax.ewc_penalty(params, params, fisher)) == 0


def test_penalty_of_stored_and_free_leaves():
    """8 bits as they are decoded; a leaf without F is free, whatever it is."""
    params, anchor, fisher = random_tree(), random_tree(), jax.tree.map(np.square, random_tree())
    for dtype, rtol in (("bfloat16", 2e-3), ("uint8", 2e-2)):
        stored = {"a": {"w": encode(fisher["a"]["w"], dtype), "b": None}}
        found = e2wm_jax.ewc_penalty(
            jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params), anchor, stored, np.float32(2)
        )
        half = params["a"]["w"].astype(np.float16).astype(np.float64)
        np.testing.assert_allclose(found, 2 * np.sum(fisher["a"]["w"] * (half - anchor["a"]["w"]) ** 2), rtol=rtol)
    with pytest.raises(InputError, match=r"F \(4,\), parameter \(8, 64\)"):
        e2wm_jax.ewc_penalty(params, anchor, {"a": {"w": fisher["a"]["b"], "b": None}})


def test_penalty_of_an_nnx_state_with_its_fisher():
    graph, state = nnx.split(nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.1, rngs=nnx.Rngs(1))))
    x = RNG.normal(size=(6, 3)).astype(np.float32)

    def loss(state, x):
        return jnp.sum(jnp.tanh(nnx.merge(graph, state).layers[0](x)))

    fisher = e2wm_jax.fisher_diagonal(loss, state, x, select=lambda path: "kernel" in path)
    moved = jax.tree.map(lambda leaf: leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state)
    (values,) = jax.tree.leaves(fisher)
    np.testing.assert_allclose(e2wm_jax.ewc_penalty(moved, state, fisher), np.sum(values), rtol=1e-6)


def test_penalty_on_a_mesh_moves_no_weights():
    """What travels is the value: no device gathers a matrix."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, P("data", "model"))
    trees = [{"w": RNG.uniform(size=(64, 64)).astype(np.float32)} for _ in range(3)]
    on_mesh = jax.device_put(trees, place)
    compiled = jax.jit(jax.value_and_grad(e2wm_jax.ewc_penalty)).lower(*on_mesh).compile()
    value, gradient = compiled(*on_mesh)
    np.testing.assert_allclose(value, e2wm_jax.ewc_penalty(*trees), rtol=1e-6)
    assert gradient["w"].sharding.is_equivalent_to(place, 2)
    assert "all-gather" not in compiled.as_text()
