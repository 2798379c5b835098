"""Whatever is given as a scene or a script is read, or refused in one line that says where."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2wm_jax.errors import InputError
from e2wm_jax.simulate import scenes, virtualhome
from e2wm_jax.simulate.actions import VERBS, Action, Thing, parse_script
from e2wm_jax.simulate.engines import open_world
from e2wm_jax.simulate.graph import RELATIONS, STATES, parse_graph

GRAPH: dict[str, Any] = {
    "nodes": [
        {"id": 1, "class_name": "hall", "category": "Rooms", "properties": [], "states": []},
        {"id": 2, "class_name": "character", "category": "Characters", "properties": [], "states": ["SITTING"]},
        {"id": 3, "class_name": "cup", "category": "Props", "properties": ["GRABBABLE"], "states": ["CLEAN"]},
        {"id": 4, "class_name": "door", "category": None, "properties": ["CAN_OPEN"], "states": ["CLOSED"]},
    ],
    "edges": [
        {"from_id": 2, "relation_type": "INSIDE", "to_id": 1},
        {"from_id": 3, "relation_type": "INSIDE", "to_id": 1},
        {"from_id": 4, "relation_type": "BETWEEN", "to_id": 1},
        {"from_id": 2, "relation_type": "CLOSE", "to_id": 3},
        {"from_id": 3, "relation_type": "CLOSE", "to_id": 2},
    ],
}
NAMES = st.sampled_from((*RELATIONS, *STATES, "character", "hall", "cup", "Rooms", "GRABBABLE", "HEAVY", "id", "nodes"))
LEAVES = st.none() | st.booleans() | st.integers(-2, 5) | st.integers() | st.floats() | st.text(max_size=3) | NAMES
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.sampled_from(["put", "drop", "repeat"]), VALUES), max_size=4)
EVERY = settings(max_examples=2000, deadline=None, database=None)


def slots(value: Any) -> list[tuple[Any, Any]]:
    """Every place below a value: (the list or object, index or key)."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [slot for key in keys for slot in ((value, key), *slots(value[key]))]


def changed(changes: list[tuple[int, str, Any]]) -> Any:
    """The graph with something put into one of its places, dropped from it or repeated, several times."""
    whole = {"graph": copy.deepcopy(GRAPH)}
    for place, how, new in changes:
        where = slots(whole)
        holder, key = where[place % len(where)]
        if how == "put" or holder is whole:
            holder[key] = new
        elif how == "drop":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
    return whole["graph"]


def check_message(error: InputError, where: str = "scene: ") -> None:
    assert str(error).startswith(where)
    assert str(error).isprintable()
    assert len(str(error)) < 1000


@EVERY
@given(CHANGES)
def test_a_changed_graph_is_a_scene_or_refused(changes: Any) -> None:
    try:
        parse_graph(changed(changes), "scene")
    except InputError as error:
        check_message(error)


@pytest.mark.parametrize("engine", ["array", "virtualhome"])
@settings(EVERY, max_examples=200)
@given(changes=CHANGES)
def test_every_scene_can_be_acted_in(engine: Any, changes: Any) -> None:
    if engine == "virtualhome" and not virtualhome.is_installed():
        pytest.skip("virtualhome is not installed")
    world = open_world(engine, "vh23")
    try:
        scene = parse_graph(changed(changes), "scene")
        state = world.initial(scene)
    except InputError as error:
        check_message(error)
        return
    for node in scene.nodes.values():
        for verb in ("Walk", "Grab", "Open"):
            state, step = world.step(state, Action(verb, (Thing(node.class_name, node.id),)))
            assert not step.ok or step.exception is None
    assert len(world.edges(state)) >= len(world.targets(state, scene.character.id, "CLOSE"))


@EVERY
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 9), st.binary(max_size=4)), max_size=4))
def test_a_damaged_file_is_a_scene_or_refused(damage: Any) -> None:
    text = json.dumps(GRAPH).encode()
    for place, length, new in damage:
        start = place % len(text)
        text = text[:start] + new + text[start + length :]
    path = FOLDER / "scene.json"
    path.write_bytes(text)
    try:
        scenes.load(str(path))
    except InputError as error:
        check_message(error, str(path))


@EVERY
@given(st.lists(st.text("[]<>() .-#0123456789cup_\n") | st.sampled_from([f"[{verb}] <cup> (1)" for verb in VERBS])))
def test_a_script_is_read_or_refused(pieces: list[str]) -> None:
    try:
        actions = parse_script("".join(pieces).splitlines(), "script")
    except InputError as error:
        check_message(error, "script:")
    else:
        assert parse_script([str(action) for action in actions], "script") == actions


FOLDER = Path()


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FOLDER
    FOLDER = tmp_path_factory.mktemp("scenes")
