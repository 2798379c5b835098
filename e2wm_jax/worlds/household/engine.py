"""Which implementation of the household to act in."""

from typing import Any, Literal

from e2wm_jax.worlds.household.oracle.virtualhome import VirtualHome
from e2wm_jax.worlds.household.world import World

Engine = Literal["array", "virtualhome"]  # ours, all dialects; the installed executor, vh23


def open_world(engine: Engine, dialect: str) -> World[Any]:
    """A world by name.

    Raises:
        InputError: if the engine does not know the dialect, or its package is missing.
    """
    if engine == "virtualhome":
        return VirtualHome(dialect)
    from e2wm_jax.worlds.household.native.world import ArrayWorld  # numba takes half a second to import

    return ArrayWorld(dialect)
