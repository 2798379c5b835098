"""Which implementation of the world to act in, and the search that goes with it."""

from typing import Any, Literal

from e2wm_jax.errors import InputError
from e2wm_jax.simulate import planner
from e2wm_jax.simulate.actions import Action, Thing
from e2wm_jax.simulate.goals import Goal
from e2wm_jax.simulate.graph import parse_graph
from e2wm_jax.simulate.planner import Plan
from e2wm_jax.simulate.scenes import Scene
from e2wm_jax.simulate.virtualhome import VirtualHome
from e2wm_jax.simulate.world import World

# E2WM's search; ours; E2WM's for many goals side by side on JAX's default device
Method = Literal["mcts", "best-first", "mcts-batched"]
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


def compile_engine(*methods: Method) -> None:
    """Have the array engine and these of its searches compiled, which takes about a minute once on a machine."""
    from e2wm_jax.simulate.array_world import ArrayWorld

    scene = parse_graph(
        {
            "nodes": [
                {"id": 1, "class_name": "hall", "category": "Rooms", "properties": [], "states": []},
                {"id": 2, "class_name": "character", "properties": [], "states": []},
            ],
            "edges": [{"from_id": 2, "relation_type": "INSIDE", "to_id": 1}],
        },
        "hall",
    )
    world = ArrayWorld()
    state, _ = world.step(world.initial(scene), Action("Walk", (Thing("hall", 1),)))
    world.targets(state, 2, "INSIDE")
    world.sources(state, 1, "INSIDE")
    for method in methods:
        goal = Goal("hall", "sit", ("character || SITTING",), (), ())
        search(world, scene, goal, method=method, simulations=1)


def search(world: World[Any], scene: Scene, goal: Goal, *, method: Method = "mcts", **options: Any) -> Plan:
    """A plan for a goal: `planner.search`, with its options and plans, compiled where the world is the array engine; or
    `native_best_first.search`; or `engine_plans.plans` of this one goal.

    Raises:
        InputError: for another search than E2WM's in another world than the array engine's.
    """
    if isinstance(world, VirtualHome):
        if method != "mcts":
            raise InputError(f"--search {method} needs the array engine; leave out --engine virtualhome")
        return planner.search(world, scene, goal, **options)
    if method == "mcts-batched":
        from e2wm_jax.simulate import engine_plans  # imports jax

        seed = options.pop("seed", 0)
        return next(engine_plans.plans(world.dialect, [engine_plans.Query(scene, goal, seed)], **options))[1]
    from e2wm_jax.simulate import native_best_first, native_search

    module = native_search if method == "mcts" else native_best_first
    return module.search(world, scene, goal, **options)
