"""The mesh from its description, and where weights live on it."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from e2wm_jax.errors import InputError
from e2wm_jax.sharding import batch_sharding, make_mesh, mesh_shape, partition, stacked, weight_sharding


def test_sizes_of_the_axes() -> None:
    assert mesh_shape("data=2,fsdp=2,tensor=2") == {"data": 2, "fsdp": 2, "tensor": 2}
    assert mesh_shape(" tensor = 4 ") == {"data": 1, "fsdp": 1, "tensor": 4}
    mesh = make_mesh("tensor=4,data=2")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    assert mesh.devices.size == len(set(mesh.devices.flat)) == 8
    assert dict(make_mesh("data=1", jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model=2", r"--mesh model=2: unknown axis 'model'; axes: data, fsdp, tensor"),
        ("", r"unknown axis ''"),
        ("data=2,data=4", "data is given twice"),
        ("data=0", "the size of data is '0'; it must be a number from 1"),
        ("data=-1", "the size of data is '-1'"),
        ("data", "the size of data is ''"),
        ("data=2=2", "the size of data is '2=2'"),
        ("data=2,tensor=2", r"2 x 1 x 2 = 4 devices, but there are 8; the product"),
        ("data=16", r"16 x 1 x 1 = 16 devices, but there are 8"),
    ],
)
def test_meshes_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_mesh(text)


def test_where_weights_live() -> None:
    mesh = make_mesh("data=1,fsdp=2,tensor=4")
    assert partition(mesh, (320, 32), ("vocab", "embed")) == P("tensor", "fsdp")
    assert partition(mesh, (32, 16), ("heads", "embed")) == P("tensor", "fsdp")
    assert partition(mesh, (32, 48), ("embed", "mlp")) == P("fsdp", "tensor")
    assert partition(mesh, (64, 32), ("positions", "embed")) == P(None, "fsdp")
    assert partition(mesh, (48,), ("mlp",)) == P("tensor")
    assert partition(mesh, (32,), ("embed",)) == P(None), "a norm is copied"
    assert partition(mesh, (50257, 32), ("vocab", "embed")) == P(None, "fsdp"), "does not divide by 4: copied"
    assert partition(mesh, (32, 31), ("heads", "embed")) == P("tensor", None)
    assert partition(mesh, (16, 32), ("embed", "embed")) == P("fsdp", None), "a mesh axis splits one dimension"


def test_each_device_holds_its_part() -> None:
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    weight = np.arange(8 * 6).reshape(8, 6)
    sharding = weight_sharding(mesh, weight.shape, ("heads", "embed"))
    for shard in jax.device_put(weight, sharding).addressable_shards:
        ((row,), (column,)) = np.nonzero(mesh.devices == shard.device)[2], np.nonzero(mesh.devices == shard.device)[1]
        np.testing.assert_array_equal(shard.data, weight[4 * row : 4 * row + 4, 3 * column : 3 * column + 3])
    layers = jax.device_put(np.zeros((5, 8, 6)), stacked(sharding))
    assert {shard.data.shape for shard in layers.addressable_shards} == {(5, 4, 3)}
    rows = jax.device_put(np.zeros((8, 7)), batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 7)}
