"""Which implementation of the world to act in."""

from typing import Any, Literal

from e2wm_jax.simulate.virtualhome import VirtualHome
from e2wm_jax.simulate.world import World

Engine = Literal["virtualhome"]


def open_world(engine: Engine, dialect: str) -> World[Any]:
    """A world by name.

    Raises:
        InputError: if the engine does not know the dialect, or its package is missing.
    """
    del engine
    return VirtualHome(dialect)
