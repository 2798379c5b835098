"""Which implementation of the world to act in, and the search that goes with it."""

from typing import Any, Literal

from e2wm_jax.simulate import planner
from e2wm_jax.simulate.goals import Goal
from e2wm_jax.simulate.planner import Plan
from e2wm_jax.simulate.scenes import Scene
from e2wm_jax.simulate.virtualhome import VirtualHome
from e2wm_jax.simulate.world import World

Engine = Literal["array", "virtualhome"]  # ours, all dialects; the installed executor, vh23


def open_world(engine: Engine, dialect: str) -> World[Any]:
    """A world by name.

    Raises:
        InputError: if the engine does not know the dialect, or its package is missing.
    """
    if engine == "virtualhome":
        return VirtualHome(dialect)
    from e2wm_jax.simulate.array_world import ArrayWorld  # numba takes half a second to import

    return ArrayWorld(dialect)


def search(world: World[Any], scene: Scene, goal: Goal, **options: Any) -> Plan:
    """`planner.search`, with the same options and plans; compiled where the world is the array engine."""
    if isinstance(world, VirtualHome):
        return planner.search(world, scene, goal, **options)
    from e2wm_jax.simulate import native_search

    return native_search.search(world, scene, goal, **options)  # type: ignore[arg-type]
