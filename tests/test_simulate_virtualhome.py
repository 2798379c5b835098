"""The VirtualHome engine: against outcomes known by hand, and against reference trajectories where they are."""

import gzip
import json
import os
from pathlib import Path

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.experience.replay.command import ReplaySettings, run
from e2wm_jax.experience.replay.references import replay_record
from e2wm_jax.worlds.household.actions import parse_action
from e2wm_jax.worlds.household.homes.scenes import Scene, parse_graph
from e2wm_jax.worlds.household.oracle import virtualhome
from e2wm_jax.worlds.household.oracle.virtualhome import VirtualHome
from e2wm_jax.worlds.household.world import replay

DATA = Path(os.environ.get("E2WM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
GOLDENS = DATA.parent / "world" / "goldens" / "public.jsonl.gz"
SCENES = DATA.parent / "world" / "scenes"
needs_virtualhome = pytest.mark.skipif(
    not virtualhome.is_installed(), reason="virtualhome is not installed: pip install --no-deps virtualhome==2.3.0"
)
pytestmark = needs_virtualhome

KITCHEN, BEDROOM, BATHROOM, CHARACTER, TABLE, CUP, FRIDGE, MILK, LAMP, CHAIR, DOG = range(1, 12)


def house(**states: list[str]) -> Scene:
    """Three rooms: table, cup and a fridge with milk in the kitchen; lamp and chair in the bedroom; who acts, and a
    dog, in the bathroom. ``states`` replaces those of a class."""
    things = [
        (KITCHEN, "kitchen", "Rooms", [], []),
        (BEDROOM, "bedroom", "Rooms", [], []),
        (BATHROOM, "bathroom", "Rooms", [], []),
        (CHARACTER, "character", "Characters", [], []),
        (TABLE, "table", "Furniture", ["SURFACES"], []),
        (CUP, "cup", "Props", ["GRABBABLE", "RECIPIENT"], ["DIRTY"]),
        (FRIDGE, "fridge", "Appliances", ["CAN_OPEN", "CONTAINERS"], ["CLOSED"]),
        (MILK, "milk", "Food", ["GRABBABLE", "DRINKABLE", "POURABLE"], []),
        (LAMP, "lamp", "Lamps", ["HAS_SWITCH"], ["OFF", "PLUGGED_IN"]),
        (CHAIR, "chair", "Furniture", ["SITTABLE"], []),
        (DOG, "dog", "Animals", [], []),
    ]
    inside = {TABLE: KITCHEN, CUP: KITCHEN, FRIDGE: KITCHEN, LAMP: BEDROOM, CHAIR: BEDROOM, CHARACTER: BATHROOM}
    edges = [(thing, "INSIDE", room) for thing, room in inside.items()]
    edges += [(MILK, "INSIDE", KITCHEN), (MILK, "INSIDE", FRIDGE), (DOG, "INSIDE", BATHROOM)]
    edges += [(CUP, "ON", TABLE), (CUP, "CLOSE", TABLE), (TABLE, "CLOSE", CUP), (CHAIR, "FACING", LAMP)]
    nodes = [
        {"id": i, "class_name": name, "category": kind, "properties": props, "states": states.get(name, default)}
        for i, name, kind, props, default in things
    ]
    return parse_graph(
        {"nodes": nodes, "edges": [{"from_id": a, "relation_type": r, "to_id": b} for a, r, b in edges]}, "house"
    )


def steps_of(*lines: str, scene: Scene | None = None):
    return replay(VirtualHome(), scene or house(), [parse_action(line) for line in lines])


def test_walk_moves_the_character_and_what_it_is_close_to():
    (step,) = steps_of("[Walk] <cup> (6)")
    assert step.ok
    assert step.action == "[Walk] <cup> (6)"
    assert step.edges_removed == ((CHARACTER, "INSIDE", BATHROOM),)
    assert step.edges_added == (
        (CHARACTER, "CLOSE", TABLE),  # the support of the cup
        (CHARACTER, "CLOSE", CUP),
        (CHARACTER, "INSIDE", KITCHEN),
        (TABLE, "CLOSE", CHARACTER),
        (CUP, "CLOSE", CHARACTER),
    )


def test_a_carried_thing_lags_one_room_behind():
    *_, step = steps_of("[Walk] <cup> (6)", "[Grab] <cup> (6)", "[Walk] <bedroom> (2)", "[Walk] <bathroom> (3)")
    assert (CUP, "INSIDE", BEDROOM) in step.edges_added  # VirtualHome puts it into the room just left


def test_messages_and_exceptions_are_the_executors():
    far, closed, absent, crash = steps_of(
        "[Grab] <cup> (6)", "[Open] <cup> (6)", "[Touch] <ghost> (99)", "[Find] <cup> (6)"
    )
    assert far.messages == ("<character> (4) is not close to <cup> (6)",)
    assert closed.messages == ("<cup> (6) can not be opened",)
    assert absent.messages == ("<ghost> (99) cannot be found",)
    assert crash.exception == "TypeError"
    assert not any((far.ok, closed.ok, absent.ok, crash.ok))


def test_states_change_with_switches_doors_and_water():
    *_, switched = steps_of("[Walk] <lamp> (9)", "[SwitchOn] <lamp> (9)")
    assert (switched.states_added, switched.states_removed) == (((LAMP, "ON"),), ((LAMP, "OFF"),))
    *_, washed, again = steps_of("[Walk] <cup> (6)", "[Wash] <cup> (6)", "[Wash] <cup> (6)")
    assert (washed.states_added, washed.states_removed) == (((CUP, "CLEAN"),), ((CUP, "DIRTY"),))
    assert again.ok
    assert not again.states_added
    *_, milk = steps_of("[Walk] <fridge> (7)", "[Grab] <milk> (8)")
    assert milk.messages == ("<milk> (8) is inside other closed thing",)
    assert steps_of("[Walk] <fridge> (7)", "[Open] <fridge> (7)", "[Grab] <milk> (8)")[-1].ok


def test_states_are_values():
    world, scene = VirtualHome(), house()
    start = world.initial(scene)
    edges, states = world.edges(start), world.states(start)
    walked, _ = world.step(start, parse_action("[Walk] <cup> (6)"))
    held, first = world.step(walked, parse_action("[Grab] <cup> (6)"))
    world.step(walked, parse_action("[Wash] <cup> (6)"))
    world.step(held, parse_action("[PutBack] <cup> (6) <table> (5)"))
    again, second = world.step(walked, parse_action("[Grab] <cup> (6)"))
    assert (world.edges(start), world.states(start)) == (edges, states)
    assert first == second
    assert world.edges(held) == world.edges(again)
    assert world.targets(walked, CHARACTER, "HOLDS_RH") == ()
    assert world.targets(held, CHARACTER, "HOLDS_RH") == (CUP,)


def test_a_failed_line_gives_the_same_state():
    world = VirtualHome()
    start = world.initial(house())
    after, step = world.step(start, parse_action("[Grab] <cup> (6)"))
    assert after is start
    assert not step.ok


def test_step_agrees_with_advance_and_its_own_deltas():
    world = VirtualHome()
    state = world.initial(house())
    for line in ("[Walk] <cup> (6)", "[Grab] <cup> (6)", "[Walk] <chair> (10)", "[Sit] <chair> (10)"):
        after, step = world.step(state, parse_action(line))
        assert world.edges(after) == world.edges(state) - {*step.edges_removed} | {*step.edges_added}
        assert world.states(after) == world.states(state) - {*step.states_removed} | {*step.states_added}
        assert world.edges(world.advance(state, parse_action(line))) == world.edges(after)
        state = after


def test_sources_and_targets_are_the_edges():
    world = VirtualHome()
    state, _ = world.step(world.initial(house()), parse_action("[Walk] <cup> (6)"))
    for relation in ("CLOSE", "INSIDE", "ON"):
        edges = {edge for edge in world.edges(state) if edge[1] == relation}
        assert edges == {(a, relation, b) for a in range(1, 12) for b in world.targets(state, a, relation)}
        assert edges == {(a, relation, b) for b in range(1, 12) for a in world.sources(state, b, relation)}


def test_legal_actions_are_those_that_work():
    world = VirtualHome()
    state, _ = world.step(world.initial(house()), parse_action("[Walk] <cup> (6)"))
    legal = world.legal_actions(state, ("Grab", "Open", "PutBack", "Wash"), (CUP, TABLE, FRIDGE))
    assert [str(action) for action in legal] == ["[Grab] <cup> (6)", "[Wash] <cup> (6)", "[Wash] <table> (5)"]


def test_gained_facts():
    world, scene = VirtualHome(), house()
    test = world.gained_test(scene, ("cup || CLEAN", "character || CLOSE || cup", "cup || ON || table"))
    state = world.initial(scene)
    assert test(state) == frozenset()  # the cup is on the table, but that is nothing new
    state, _ = world.step(state, parse_action("[Walk] <cup> (6)"))
    assert test(state) == {"character || CLOSE || cup"}
    state, _ = world.step(state, parse_action("[Rinse] <cup> (6)"))
    assert test(state) == {"character || CLOSE || cup", "cup || CLEAN"}


def test_other_dialects_are_refused():
    with pytest.raises(InputError, match="runs only vh23"):
        VirtualHome("vh19")


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(virtualhome, "_ALIAS", "_not_loaded_yet")
    monkeypatch.setattr(virtualhome.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install --no-deps virtualhome==2\.3\.0"):
        VirtualHome()


def test_replay_file_keeps_the_format(tmp_path):
    record = {"id": "x", "init": "scene:1", "patch": {"states": {"6": ["CLEAN"]}}, "steps": [{"a": "[WALK] <cup> (6)"}]}
    scene = house()
    graph = {
        "nodes": [
            {"id": n.id, "class_name": n.class_name, "category": n.category}
            | {"properties": sorted(n.properties), "states": sorted(n.states)}
            for n in scene.nodes.values()
        ],
        "edges": [{"from_id": a, "relation_type": r, "to_id": b} for a, r, b in scene.edges],
    }
    (tmp_path / "TrimmedTestScene1_graph.json").write_text(json.dumps(graph))
    (tmp_path / "in.jsonl").write_text(json.dumps(record) + "\n")
    files = {"trajectories": tmp_path / "in.jsonl", "out": tmp_path / "out.jsonl"}
    assert run(ReplaySettings(**files, scenes=tmp_path, engine="virtualhome"))["trajectories"] == 1
    out = json.loads((tmp_path / "out.jsonl").read_text())
    assert out["steps"][0]["a"] == "[WALK] <cup> (6)"
    assert out["steps"][0]["ok"] == 1
    assert out["final"]["n_edges"] == len(scene.edges) + 4
    assert out["patch"] == record["patch"]


def test_replay_names_the_malformed_record(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": "x", "init": "scene:1"}\n')
    with pytest.raises(InputError, match=r"in\.jsonl:1: malformed record"):
        run(ReplaySettings(trajectories=tmp_path / "in.jsonl", out=tmp_path / "out.jsonl", engine="virtualhome"))


def _reference_records(stride: int) -> list[dict]:
    with gzip.open(GOLDENS, "rt", encoding="utf-8") as file:
        return [json.loads(line) for number, line in enumerate(file) if number % stride == 0]


@pytest.mark.skipif(not GOLDENS.is_file(), reason=f"no reference trajectories at {GOLDENS}")
def test_reference_trajectories_are_reproduced():
    records = _reference_records(stride=10)
    assert sum(bool(record.get("patch")) for record in records) >= 5
    world = VirtualHome()
    for record in records:
        mine = replay_record(world, record, SCENES, record["id"])
        assert json.loads(json.dumps(mine)) == record, record["id"]
