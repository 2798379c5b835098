"""The mesh of devices, and where a weight lives on it.

    data     rows of a batch; weights are copied
    fsdp     rows of a batch, and a share of every matrix along the model's width, gathered when a layer needs it
    tensor   heads, the feed-forward's width and the vocabulary

A weight names its own dimensions (`models.families.weight_table.WeightSpec.axes`); `_MESH_AXIS` says where each name
goes, and everything else is copied.  A dimension that its mesh axis does not divide is copied too: GPT-Neo's 50257 rows
of vocabulary divide by no even number, and its other weights are worth splitting all the same.
"""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from e2wm_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
_MESH_AXIS = {"vocab": "tensor", "heads": "tensor", "mlp": "tensor", "embed": "fsdp"}


def mesh_shape(text: str) -> dict[str, int]:
    """The size of every axis from "data=2,fsdp=2,tensor=2"; an axis that is not named has size 1.

    Raises:
        InputError: for an unknown axis, one named twice, or a size that is no number of devices.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in AXES:
            raise InputError(f"--mesh {text}: unknown axis {name!r}; axes: {', '.join(AXES)}, e.g. data=2,fsdp=4")
        if name in sizes:
            raise InputError(f"--mesh {text}: {name} is given twice")
        if not (size.isascii() and size.isdigit() and int(size) > 0):
            raise InputError(
                f"--mesh {text}: the size of {name} is {size!r}; it must be a number from 1, e.g. {name}=2"
            )
        sizes[name] = int(size)
    return {name: sizes.get(name, 1) for name in AXES}


def make_mesh(text: str, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh that ``text`` describes (`mesh_shape`), over all devices of the run.

    Args:
        text: such as "data=2,fsdp=2,tensor=2".
        devices: those to use instead.

    Raises:
        InputError: if the text is wrong or the product of its sizes is not the number of devices.
    """
    shape = mesh_shape(text)
    devices = jax.devices() if devices is None else devices
    needed = math.prod(shape.values())
    if needed != len(devices):
        product = " x ".join(map(str, shape.values()))
        raise InputError(
            f"--mesh {text}: {product} = {needed} devices, but there are {len(devices)}; "
            "the product of the sizes must be the number of devices"
        )
    return jax.make_mesh(tuple(shape.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def partition(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str, ...]) -> PartitionSpec:
    """Which mesh axis splits each dimension of a weight of this shape, whose dimensions are named ``axes``.

    A mesh axis splits one dimension, the first that asks for it.  Vectors along the model's width (norms, biases) are
    copied: gathering one takes longer than it is worth.
    """
    taken: list[str | None] = []
    for size, name in zip(shape, axes, strict=True):
        axis = _MESH_AXIS.get(name)
        copied = axis is None or axis in taken or size % mesh.shape[axis] or (axis == "fsdp" and len(shape) == 1)
        taken.append(None if copied else axis)
    return PartitionSpec(*taken)


def weight_sharding(mesh: Mesh, shape: tuple[int, ...], axes: tuple[str, ...]) -> NamedSharding:
    """Where a weight lives (`partition`)."""
    return NamedSharding(mesh, partition(mesh, shape, axes))


def stacked(sharding: NamedSharding) -> NamedSharding:
    """Of a stack of such weights over layers: every device holds its part of all layers."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """A copy of a pytree of arrays on every device of the mesh; where there is none, on the default device.

    On several hosts the values must be the same everywhere.
    """
    if mesh is None:
        return jax.tree.map(jnp.array, tree)
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x), NamedSharding(mesh, PartitionSpec())), tree)


def row_parts(mesh: Mesh, process: int | None = None) -> tuple[int, ...]:
    """Which of the data x fsdp parts of a batch's rows lie on the devices of a process (default: of this one).

    Processes whose devices differ in their place along tensor only have the same parts.
    """
    own = jax.process_index() if process is None else process
    parts = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    return tuple(part for part, row in enumerate(parts) if any(device.process_index == own for device in row))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Where a batch lives, [B, ...]: its rows are split over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def join_hosts() -> None:
    """Make this process one of several, before anything runs on a device (`jax.distributed`).

    Address, number and index of the processes come from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID;
    what is not set, from the cluster's scheduler where there is one.

    Raises:
        InputError: if they are not to be had, or the others do not answer.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ.get(name) for name in names}
    if wrong := [name for name, value in given.items() if value is not None and not value.isdecimal()]:
        raise InputError(f"--distributed: {wrong[0]} is {given[wrong[0]]!r}, not a number")
    number, index = (None if value is None else int(value) for value in given.values())
    try:
        jax.distributed.initialize(os.environ.get("JAX_COORDINATOR_ADDRESS"), number, index)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--distributed: {reason}; where no scheduler says it, set JAX_COORDINATOR_ADDRESS=host:port, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) on every host"
        ) from error
