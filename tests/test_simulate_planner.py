"""The search on worlds small enough to know the best plan."""

from collections.abc import Callable, Iterable

import pytest

from e2wm_jax.experience.search import planner
from e2wm_jax.experience.search.moves import Moves
from e2wm_jax.worlds.household.actions import Action
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.facts import split_fact
from e2wm_jax.worlds.household.goals import Goal
from e2wm_jax.worlds.household.homes.scenes import Scene, parse_graph

HALL, STUDY, CHARACTER, LAMP, CUPBOARD, CUP = range(1, 7)


def scene(character_states: Iterable[str] = ()) -> Scene:
    """Two rooms; in the study a lamp, and a cup in a closed cupboard. The character is in the hall."""
    nodes = [
        (HALL, "hall", "Rooms", [], []),
        (STUDY, "study", "Rooms", [], []),
        (CHARACTER, "character", None, [], list(character_states)),
        (LAMP, "lamp", None, ["HAS_SWITCH"], ["OFF"]),
        (CUPBOARD, "cupboard", None, ["CAN_OPEN"], ["CLOSED"]),
        (CUP, "cup", None, ["GRABBABLE"], []),
    ]
    edges = [(CHARACTER, HALL), (LAMP, STUDY), (CUPBOARD, STUDY), (CUP, STUDY), (CUP, CUPBOARD)]
    return parse_graph(
        {
            "nodes": [
                dict(zip(("id", "class_name", "category", "properties", "states"), node, strict=True)) for node in nodes
            ],
            "edges": [{"from_id": a, "relation_type": "INSIDE", "to_id": b} for a, b in edges],
        },
        "study",
    )


class TinyWorld:
    """Rules small enough to check by hand, so that the planner is tested without any engine: one must be in the
    room of a thing to walk to it, next to it to handle it, and what is in a closed thing cannot be grabbed.
    A state is a frozen set of edges and (node, state) pairs."""

    dialect = "tiny"

    def initial(self, scene: Scene) -> frozenset:
        self.scene = scene
        return frozenset(scene.edges) | {(node.id, state) for node in scene.nodes.values() for state in node.states}

    def advance(self, state: frozenset, action: Action) -> frozenset | None:
        node = action.things[0].id if action.things else None
        if action.verb == "StandUp":
            return state - {(CHARACTER, "SITTING")} if (CHARACTER, "SITTING") in state else None
        if action.verb == "Walk":
            if (CHARACTER, "SITTING") in state:
                return None
            room = node if self.scene.nodes[node].is_room else STUDY
            kept = {fact for fact in state if fact[:2] not in ((CHARACTER, "INSIDE"), (CHARACTER, "CLOSE"))}
            return frozenset(kept) | {
                (CHARACTER, "INSIDE", room),
                *([(CHARACTER, "CLOSE", node)] if node != room else []),
            }
        if (CHARACTER, "CLOSE", node) not in state:
            return None
        swaps = {"Open": ("CLOSED", "OPEN"), "SwitchOn": ("OFF", "ON"), "SwitchOff": ("ON", "OFF")}
        if action.verb in swaps:
            old, new = swaps[action.verb]
            state = state - {(node, old)} | {(node, new)} if (node, old) in state else None
            if state and action.verb == "Open":
                state |= {(CHARACTER, "CLOSE", CUP)}
            return state
        if action.verb == "Grab" and (CUPBOARD, "CLOSED") not in state:
            return state | {(CHARACTER, "HOLDS_RH", node)}
        return None

    def step(self, state: frozenset, action: Action) -> tuple[frozenset, Step]:
        after = self.advance(state, action)
        return (state if after is None else after), Step(str(action), after is not None)

    def node_states(self, state: frozenset, node: int) -> frozenset[str]:
        return frozenset(fact[1] for fact in state if len(fact) == 2 and fact[0] == node)

    def targets(self, state: frozenset, node: int, relation: str) -> tuple[int, ...]:
        return tuple(sorted(fact[2] for fact in state if len(fact) == 3 and fact[:2] == (node, relation)))

    def gained_test(self, scene: Scene, facts: tuple[str, ...]) -> Callable[[frozenset], frozenset[str]]:
        names = {name: nodes[0].id for name, nodes in scene.by_class.items()}
        wanted = {fact: tuple(names.get(word, word) for word in split_fact(fact)) for fact in facts}
        start = self.initial(scene)
        return lambda state: frozenset(fact for fact, key in wanted.items() if key in state and key not in start)


def goal(*facts: str) -> Goal:
    return Goal("study", "test", facts, ("lamp", "cupboard", "cup"), ())


def lines(plan: planner.Plan) -> list[str]:
    return [str(action) for action in plan.actions]


def search(*facts: str, start: Scene | None = None, **settings) -> planner.Plan:
    return planner.search(TinyWorld(), start or scene(), goal(*facts), **{"simulations": 3000, **settings})


def test_the_shortest_plan_is_found_and_proved():
    plan = search("lamp || ON")
    assert lines(plan) == ["[Walk] <study> (2)", "[Walk] <lamp> (4)", "[SwitchOn] <lamp> (4)"]
    assert plan.total_reward == pytest.approx(2 + 5 - 0.3)
    assert len(plan.moves) == 3
    assert plan.proved
    assert plan.simulations < 3000


def test_what_is_in_a_closed_container_is_fetched_from_it():
    plan = search("character || HOLDS_RH || cup", "lamp || ON")
    assert sorted(lines(plan)[1:]) == sorted(
        [
            "[Walk] <cupboard> (5)",
            "[Open] <cupboard> (5)",
            "[Grab] <cup> (6)",
            "[Walk] <lamp> (4)",
            "[SwitchOn] <lamp> (4)",
        ]
    )
    assert plan.total_reward == pytest.approx(2 * 2 + 5 - 0.1 * len(plan.moves))


def test_a_seated_character_stands_up_first():
    plan = search("lamp || ON", start=scene(["SITTING"]))
    assert lines(plan)[:2] == ["[StandUp]", "[Walk] <study> (2)"]
    assert len(plan.moves) == 3


def test_the_paper_reward_has_no_bonus():
    assert search("lamp || ON", reward="paper").total_reward == pytest.approx(2 - 0.3)


@pytest.mark.parametrize(
    ("achieved", "revoked", "complete", "official", "paper"),
    [(0, 0, False, -0.1, -0.1), (1, 0, False, 1.9, 1.9), (2, 1, False, 2.4, 3.9), (1, 0, True, 6.9, 1.9)],
)
def test_rewards(achieved, revoked, complete, official, paper):
    assert planner.official_reward(achieved, revoked, complete) == pytest.approx(official)
    assert planner.paper_reward(achieved, revoked, complete) == pytest.approx(paper)


def test_a_goal_out_of_reach_gives_the_best_there_is():
    plan = search("character || INSIDE || study", "cup || DIRTY", simulations=300)
    assert lines(plan) == ["[Walk] <study> (2)"]
    assert plan.total_reward == pytest.approx(1.9)
    assert not plan.proved
    assert plan.simulations == 300
    assert search("cup || DIRTY", simulations=50).actions == ()


def test_no_plan_is_longer_than_the_depth_limit():
    assert search("lamp || ON", max_depth=2).actions == ()
    assert search("lamp || ON", max_depth=3).total_reward == pytest.approx(6.7)


def test_a_complete_tree_ends_the_search():
    plan = search("cup || DIRTY", max_depth=2)
    assert plan.proved
    assert plan.simulations < 3000


@pytest.mark.parametrize("simulations", [40, 400])
def test_the_search_is_a_function_of_its_seed(simulations):
    facts = ("character || HOLDS_RH || cup", "lamp || ON", "character || CLOSE || cupboard")
    plans = [search(*facts, simulations=simulations, seed=seed) for seed in (5, 5, 6, 7)]
    assert plans[0] == plans[1]
    assert len({plan.actions for plan in plans}) > 1 or simulations == 400


def test_stopping_early_does_not_change_the_plan(monkeypatch):
    early = search("lamp || ON", simulations=2000)
    monkeypatch.setattr(planner._Search, "proved", lambda _: False)
    late = search("lamp || ON", simulations=2000)
    assert early.actions == late.actions
    assert early.simulations < late.simulations == 2000


def test_shortening_leaves_out_detours():
    for seed in range(20):
        long = search("lamp || ON", simulations=3, seed=seed)
        short = search("lamp || ON", simulations=3, seed=seed, shorten=True)
        assert short.total_reward >= long.total_reward
        if long.total_reward > 2:  # it got there somehow
            assert lines(short) == ["[Walk] <study> (2)", "[Walk] <lamp> (4)", "[SwitchOn] <lamp> (4)"]


def test_moves_bind_classes_to_what_is_here():
    world, start = TinyWorld(), scene()
    moves = Moves.of(world, start, ["cup", "lamp", "hall", "unicorn"])
    state = world.initial(start)
    assert moves.classes == ("cup", "lamp")
    assert [str(macro[-1]) for macro in moves.legal(state)] == ["[Walk] <hall> (1)", "[Walk] <study> (2)"]
    state = world.advance(state, moves.first(state)[1][0])
    walks = [str(macro[-1]) for macro in moves.legal(state)]
    assert walks[2:] == ["[Walk] <cupboard> (5)", "[Walk] <lamp> (4)"]  # the cup is in the closed cupboard
