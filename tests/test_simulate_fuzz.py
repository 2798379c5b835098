"""Whatever is given as a scene or a script is read, or refused in one line that says where."""

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2wm_jax.cli import main
from e2wm_jax.errors import InputError
from e2wm_jax.experience.collect import shards
from e2wm_jax.experience.replay.references import replay_episode
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.build import Sizes, build
from e2wm_jax.worlds.household.actions import Action, Thing, parse_script
from e2wm_jax.worlds.household.engine import open_world
from e2wm_jax.worlds.household.graph import RELATIONS, STATES, parse_graph
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.oracle import virtualhome
from e2wm_jax.worlds.household.rules import VERBS

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


def changed(changes: list[tuple[int, str, Any]], what: Any = GRAPH) -> Any:
    """The graph with something put into one of its places, dropped from it or repeated, several times."""
    whole = {"graph": copy.deepcopy(what)}
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


RECORD: dict[str, Any] = {
    "episode": 0,
    "id": "mcts-0-000000",
    "scene": "procedural:5",
    "dialect": "vh23",
    "policy": "mcts",
    "seed": 1,
    "task": "light up",
    "goal": ["light || ON", "character || CLOSE || light"],
    "achieved": ["light || ON"],
    "items": ["light"],
    "conditions": ["light || OFF", "light || INSIDE || hall"],
    "return": 1.5,
    "search": {"method": "mcts"},
    "classes": {"1": "hall", "2": "character", "3": "light"},
    "steps": [
        {"a": "[Walk] <light> (3)", "ok": 1, "e+": [[2, "CLOSE", 3]]},
        {"a": "[SwitchOn] <light> (3)", "ok": 1, "by": 1, "s+": [[3, "ON"]], "s-": [[3, "OFF"]], "msg": ["told"]},
    ],
}


@pytest.mark.parametrize("policy", ["mcts", "random"])
@settings(EVERY, max_examples=400)
@given(changes=CHANGES)
def test_a_changed_episode_is_told_or_refused(policy: str, changes: Any) -> None:
    record = changed(changes, {**RECORD, "policy": policy})
    for use in (lambda: [shards.parse(record, "shard:1")], lambda: [replay_episode(WORLD, record, None, "shard:1")]):
        try:
            found = use()
            if isinstance(found[0], Trajectory):
                build(found, seed=0, sizes=Sizes(2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2), eval_share=0.5)
        except InputError as error:
            check_message(error, "")


@pytest.mark.parametrize("key", ["seed", "return", "steps", "classes", "goal", "task"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), [[1]], {"x": None}, "\ud800", ["a || b || c || d"]])
def test_values_of_another_kind_are_refused_with_their_line(key: str, value: Any) -> None:
    if (key, str(value)) in {("return", "inf"), ("return", "nan")}:
        return
    with pytest.raises(InputError, match="shard:1: not a trajectory: "):
        shards.parse({**RECORD, key: value}, "shard:1")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xef\xbb\xbf" + json.dumps(GRAPH).encode(), None),  # a byte order mark
        (json.dumps(GRAPH).replace(": 3", f": {10**40}").encode(), None),
        (gzip.compress(json.dumps(GRAPH).encode()), None),  # whatever its name
        (gzip.compress(json.dumps(GRAPH).encode())[:-9], "damaged gzip archive"),
        (b"[" * 200_000, "nested too deeply"),
        (json.dumps(GRAPH).replace(": 3", f": {'9' * 5000}").encode(), "scene.json"),
        (json.dumps(GRAPH).replace('"cup"', '"\\ud800"').encode(), "surrogate"),
        (json.dumps(GRAPH).replace('"id": 3', '"id": NaN').encode(), "nodes[2]: id nan is not an integer"),
        (json.dumps(GRAPH).replace('"id": 3', '"id": -3').encode(), "edges[1]: from_id 3 is not the id of a node"),
        (
            json.dumps(GRAPH).replace('["GRABBABLE"]', "null").encode(),
            "properties must be a list, found None",
        ),
        (json.dumps(GRAPH).replace('"cup"', '"character"').encode(), "found 2, 3"),
        (b"null", "expected a JSON object"),
        (b"", "not valid JSON"),
    ],
)
def test_files_of_scenes(content: bytes, says: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, script = tmp_path / "scene.json", tmp_path / "script.txt"
    path.write_bytes(content)
    script.write_text("[StandUp]")
    code = main(["replay", "--scene", str(path), "--script", str(script)])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == (2 if says else 0)
    assert not says or (said[-1].startswith(f"error: {path}") and says in said[-1])


WORLD = open_world("array", "vh23")
FOLDER = Path()


@pytest.fixture(autouse=True, scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FOLDER
    FOLDER = tmp_path_factory.mktemp("scenes")
