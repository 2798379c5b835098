"""Which search plans in which engine of the household."""

from typing import Any, Literal

from e2wm_jax.errors import InputError
from e2wm_jax.experience.search import planner
from e2wm_jax.experience.search.planner import Plan
from e2wm_jax.worlds.household.actions import Action, Thing
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.graph import parse_graph
from e2wm_jax.worlds.household.homes.scenes import Scene
from e2wm_jax.worlds.household.oracle.virtualhome import VirtualHome
from e2wm_jax.worlds.household.world import World

# E2WM's search; ours; E2WM's for many goals side by side on JAX's default device
Method = Literal["mcts", "best-first", "mcts-batched"]


def compile_engine(*methods: Method) -> None:
    """Have the array engine and these of its searches compiled, which takes half a minute once on a machine."""
    from e2wm_jax.worlds.household.native.world import ArrayWorld

    scene = parse_graph(
        {
            "nodes": [
                {"id": 1, "class_name": "hall", "category": "Rooms", "properties": [], "states": []},
                {"id": 2, "class_name": "character", "properties": [], "states": []},
                {"id": 3, "class_name": "den", "category": "Rooms", "properties": [], "states": []},
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
        goal = Goal("hall", "go", ("character || INSIDE || den",), (), ())
        search(world, scene, goal, method=method, simulations=2, shorten=True)


def search(world: World[Any], scene: Scene, goal: Goal, *, method: Method = "mcts", **options: Any) -> Plan:
    """A plan for a goal: `planner.search`, with its options and plans, compiled where the world is the array engine; or
    `native.best_first.search`; or `batched_plans.plans` of this one goal.

    Raises:
        InputError: for another search than E2WM's in another world than the array engine's.
    """
    if isinstance(world, VirtualHome):
        if method != "mcts":
            raise InputError(f"--search {method} needs the array engine; leave out --engine virtualhome")
        return planner.search(world, scene, goal, **options)
    if method == "mcts-batched":
        from e2wm_jax.experience.search.batched import plans as batched_plans  # imports jax

        seed = options.pop("seed", 0)
        return next(batched_plans.plans(world.dialect, [batched_plans.Query(scene, goal, seed)], **options))[1]
    from e2wm_jax.experience.search.native import best_first as native_best_first
    from e2wm_jax.experience.search.native import mcts as native_mcts

    module = native_mcts if method == "mcts" else native_best_first
    return module.search(world, scene, goal, **options)
