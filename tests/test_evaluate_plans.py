"""Plans carried out: sentences read back, the meaning of names, scores known by hand, and the world as a judge."""

import importlib.util
import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from e2wm_jax.data.source import TaskExample, read_task
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.plans import run as plans
from e2wm_jax.evaluate.plans import worlds as plan_worlds
from e2wm_jax.evaluate.plans.run import SCORES, PlansSettings, run, score
from e2wm_jax.evaluate.plans.steps import NO_ACTION, NO_OBJECT, NOT_EXECUTABLE, PlanResult, SentenceResult, carry_out
from e2wm_jax.evaluate.plans.text import Meaning, meanings, sentences
from e2wm_jax.experience.collect.command import collect
from e2wm_jax.experience.collect.jobs import CollectSettings
from e2wm_jax.storage.files import read_json_lines
from e2wm_jax.tasks.household.sentences import action_sentence
from e2wm_jax.tasks.run import TasksSettings
from e2wm_jax.tasks.run import run as make_tasks
from e2wm_jax.tasks.source import Source
from e2wm_jax.worlds.household.actions import Action, Thing, parse_action
from e2wm_jax.worlds.household.engine import open_world
from e2wm_jax.worlds.household.homes import scenes
from e2wm_jax.worlds.household.homes.scenes import Scene, parse_graph
from e2wm_jax.worlds.household.rules import VERBS

pytestmark = pytest.mark.usefixtures("quick_compilation")
needs_robothow = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("virtualhome", "virtualhome_eval")),
    reason="virtualhome or virtualhome-eval is not installed",
)
OFFICIAL = Path(os.environ.get("E2WM_DATA", Path(__file__).parents[2] / "shared/data")) / "e2wm/eval/gen"


# Sentences


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_a_sentence_read_back_says_the_same(verb: Any) -> None:
    things = tuple(Thing(name, 7) for name in ("home_office", "hands_both")[: verb.arity])
    told = action_sentence(str(Action(verb.name, things)))
    first = meanings(told.removesuffix("."))[0]
    assert first.names == tuple(thing.name for thing in things)
    assert first.verb == verb.name.partition("_")[0]  # LookAt_Short is told as LookAt
    assert action_sentence(str(Action(first.verb, things))) == told


def test_sentences_in_other_forms() -> None:
    assert sentences("Walk to sink.  Stand  up.. Find soap") == ["Walk to sink", "Stand up", "Find soap"]
    assert sentences(" . ") == []
    assert meanings("walk to The Home Office") == (Meaning("Walk", ("home_office",)),)
    assert meanings("Put on coat on bed") == (
        Meaning("PutBack", ("on_coat", "bed")),
        Meaning("PutOn", ("coat_on_bed",)),
    )
    for nonsense in ("Put toothbrush away", "Walk", "Walk to", "Stand up quickly", "Go to bed", "1", "Put on"):
        assert meanings(nonsense) == (), nonsense


# A house by hand


def house() -> Scene:
    """A bedroom with a lit and an unlit lamp, and a kitchen with a cup in a closed cupboard and one on a table."""

    def node(number: int, name: str, properties: str = "", states: str = "", category: str = "Props") -> dict[str, Any]:
        return {
            "id": number,
            "class_name": name,
            "category": category,
            "properties": properties.split(),
            "states": states.split(),
        }

    nodes = [
        node(1, "bedroom", category="Rooms"),
        node(2, "kitchen", category="Rooms"),
        node(3, "character", category="Characters"),
        node(10, "light", "HAS_SWITCH", "ON"),
        node(11, "light", "HAS_SWITCH", "OFF"),
        node(20, "cupboard", "CAN_OPEN CONTAINERS", "CLOSED"),
        node(21, "table", "SURFACES"),
        node(30, "cup", "GRABBABLE MOVABLE"),
        node(31, "cup", "GRABBABLE MOVABLE"),
    ]
    rooms = {3: 1, 10: 1, 11: 1, 20: 2, 21: 2, 30: 2, 31: 2}
    edges = [(thing, "INSIDE", room) for thing, room in rooms.items()] + [(30, "INSIDE", 20), (31, "ON", 21)]
    keys = ("from_id", "relation_type", "to_id")
    return parse_graph({"nodes": nodes, "edges": [dict(zip(keys, edge, strict=True)) for edge in edges]}, "house")


def carried(plan: str, *goal: str, **options: Any) -> PlanResult:
    return carry_out(open_world("array", "vh23"), house(), sentences(plan), goal=goal, **options)


def lines(result: PlanResult) -> list[str | None]:
    return [step.action for step in result.steps]


def test_the_unlit_lamp_is_meant_though_the_lit_one_comes_first() -> None:
    result = carried("Walk to light. Switch on light.", "light || ON")
    assert lines(result) == ["[Walk] <light> (11)", "[SwitchOn] <light> (11)"]
    assert result.reached == result.goal == {"light || ON"}
    off = carried("Walk to light. Switch off light.", "light || OFF")
    assert lines(off) == ["[Walk] <light> (10)", "[SwitchOff] <light> (10)"]


def test_a_name_means_what_was_dealt_with_what_the_example_is_about_or_what_is_here() -> None:
    assert lines(carried("Walk to light."))[0] == "[Walk] <light> (10)"
    assert lines(carried("Walk to light.", things=(11,)))[0] == "[Walk] <light> (11)"
    plan = "Walk to cup. Grab cup. Walk to bedroom. Walk to cup."
    assert lines(carried(plan))[:2] == ["[Walk] <cup> (31)", "[Grab] <cup> (31)"]  # 30 is shut in
    opened = "Walk to cupboard. Open cupboard. Walk to cup. Grab cup."
    assert lines(carried(opened))[3] == "[Grab] <cup> (30)"
    assert lines(carried(opened, things=(31,)))[3] == "[Grab] <cup> (31)"


def test_what_fails_changes_nothing_and_the_plan_goes_on() -> None:
    result = carried("Fly to moon. Walk to moon. Grab cup. Walk to light. Switch on light.", "light || ON")
    assert [step.trouble for step in result.steps] == [NO_ACTION, NO_OBJECT, NOT_EXECUTABLE, None, None]
    assert [step.parsed for step in result.steps] == [False, True, True, True, True]
    assert result.steps[1].message == "moon"
    assert "not close to" in result.steps[2].message
    assert result.executed == 2
    assert result.reached == {"light || ON"}


def test_what_holds_from_the_beginning_is_not_reached_and_closeness_counts_alone_only() -> None:
    assert not carried("", "light || ON").reached
    goal = ("character || CLOSE || light", "light || ON")
    assert carried("Walk to light.", *goal)[1:] == ({"light || ON"}, frozenset())
    assert carried("Walk to light.", goal[0]).reached == {goal[0]}


def test_a_scene_that_has_moved_is_found_by_its_name(tmp_path: Path) -> None:
    graph = {"nodes": [{"id": 1, "class_name": "character", "properties": [], "states": []}], "edges": []}
    (tmp_path / "flat.json").write_text(json.dumps(graph))
    assert plans._scene("/gone/flat.json", tmp_path).name == str(tmp_path / "flat.json")
    with pytest.raises(InputError, match="no such file"):
        plans._scene("/gone/flat.json", None)


def test_scores_by_hand() -> None:
    def result(*troubles: str | None, goal: int = 0, reached: int = 0) -> PlanResult:
        facts = [f"light || {i}" for i in range(goal)]
        steps = tuple(SentenceResult("", None, trouble) for trouble in troubles)
        return PlanResult(steps, frozenset(facts), frozenset(facts[:reached]))

    scores = score(
        [
            result(None, None, goal=2, reached=2),
            result(None, NO_ACTION, NO_OBJECT, NOT_EXECUTABLE, goal=4, reached=1),
            result(goal=1),
            result(None),
        ]
    )
    assert {name: scores[name] for name in SCORES} == {
        "parsed_steps": 6 / 7,
        "executable_steps": 4 / 7,
        "executable_plans": 2 / 4,  # a plan without sentences is none
        "goals_reached": pytest.approx((1 + 1 / 4 + 0) / 3),  # the last one's goal is not known
        "goals_complete": 1 / 3,
    }
    assert scores["sentences"] == 7
    assert scores["trouble"] == {NO_OBJECT: 1, NO_ACTION: 1, NOT_EXECUTABLE: 1}
    assert all(low <= scores[name] <= high for name, (low, high) in scores["intervals"].items())
    assert set(scores["intervals"]) == set(SCORES)
    assert score([result()])["executable_steps"] is None


# Our own sets


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with experiences of a planner in x, and the tasks made of them in tasks."""
    folder = tmp_path_factory.mktemp("plans")
    found = {"policy": "mcts", "search": "best-first", "episodes": 26, "simulations": 400, "workers": 1}
    collect(CollectSettings(out=folder / "x", **found))  # type: ignore[arg-type]
    make_tasks(TasksSettings(experiences=(folder / "x",), out=folder / "tasks", eval_share=0.5))
    return folder


def written(path: Path, plans_of: list[str], examples: list[TaskExample]) -> Path:
    """A file as `e2wm eval generate` writes it."""
    records = [
        {"index": index, "prediction": text, "reference": example.ref}
        for index, (text, example) in enumerate(zip(plans_of, examples, strict=True))
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@needs_robothow
@pytest.mark.parametrize("name", ["plan_gen", "plan_gen_confusing"])
def test_references_of_our_own_sets_work_and_reach_their_goals(own: Path, name: str) -> None:
    result = run(PlansSettings(data=own / f"tasks/eval/gen/{name}.json"))
    assert result["n"] == result["goals_known"] == len(read_task(own / f"tasks/eval/gen/{name}.json")) >= 5
    assert {key: result["references"][key] for key in SCORES} == dict.fromkeys(SCORES, 1.0)
    assert result["references"]["trouble"] == result["skipped"] == {}
    assert (result["empty"]["executable_plans"], result["empty"]["goals_reached"]) == (0, 0)
    assert "executable_steps" not in result  # there is no model


@needs_robothow
def test_corrupted_plans_do_not(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = own / "tasks/eval/gen/plan_gen.json"
    examples = read_task(data)
    walked = [[s for s in sentences(one.ref) if not s.startswith("Walk")] for one in examples]
    texts = [". ".join([*kept, "Dance"]) + "." for kept in walked]
    made = written(tmp_path / "made.jsonl", texts, examples)
    records = tmp_path / "records.jsonl"
    result = run(PlansSettings(data=data, predictions=made, records=records))
    assert result["executable_plans"] == result["goals_complete"] == 0
    assert result["executable_steps"] < 0.5
    assert result["parsed_steps"] == pytest.approx(1 - len(examples) / result["sentences"])
    assert result["trouble"][NO_ACTION] == len(examples)
    told = [record for _, record in read_json_lines(records)]
    steps = [step for record in told for step in record["prediction"]["steps"]]
    assert sum(step["trouble"] is None for step in steps) == round(result["executable_steps"] * len(steps))
    assert all(record["reference"]["reached"] == record["goal"] for record in told)
    plans.show(result)
    assert "sentences not an action" in capsys.readouterr().out


@needs_robothow
def test_the_installed_executor_agrees_line_by_line(own: Path, tmp_path: Path) -> None:
    """Shuffled plans, of which some steps work and some do not, as the array engine and the executor judge them."""
    data = own / "tasks/eval/gen/plan_gen.json"
    examples = read_task(data)
    rng = random.Random(0)
    texts = [". ".join(rng.sample(sentences(one.ref), len(sentences(one.ref)))) for one in examples]
    made, records = written(tmp_path / "made.jsonl", texts, examples), tmp_path / "records.jsonl"
    result = run(PlansSettings(data=data, predictions=made, records=records))
    assert 0 < result["executable_steps"] < 1
    executor = open_world("virtualhome", "vh23")
    for _, record in read_json_lines(records):
        scene = scenes.load(record["scene"])
        state = executor.initial(scene)
        for step in record["prediction"]["steps"]:
            state, done = executor.step(state, parse_action(step["action"]))
            changed = done.edges_added or done.edges_removed or done.states_added or done.states_removed
            assert (step["trouble"] is None) == bool(done.ok and (changed or not done.messages)), step
        gained = executor.gained_test(scene, tuple(record["goal"]))
        assert sorted(gained(state)) == record["prediction"]["reached"]


@needs_robothow
def test_sources_lie_beside_the_official_form_and_come_out_the_same(own: Path, tmp_path: Path) -> None:
    data = own / "tasks/eval/gen/plan_gen.json"
    assert all(set(record) == {"input", "ref"} for _, record in read_json_lines(data))
    again = tmp_path / "again"
    make_tasks(TasksSettings(experiences=(own / "x",), out=again, eval_share=0.5))
    for path in (own / "tasks").rglob("*.sources"):
        assert path.read_bytes() == (again / path.relative_to(own / "tasks")).read_bytes()
    examples = read_task(data)
    beside = plan_worlds.read_sources(plan_worlds.beside(data), examples)
    assert [s.goal for s in beside] == [s.goal for s in plan_worlds.from_experiences([own / "x"], examples)]  # type: ignore[union-attr]
    strange = [replace(examples[0], ref="Sleep.")]
    assert plan_worlds.from_experiences([own / "x"], strange) == [plan_worlds.NO_EPISODE]


def test_a_model_writes_the_plans(save_llama: Callable[..., Any], tmp_path: Path) -> None:
    """And an interrupted run goes on; a random model says nothing that is an action."""
    save_llama(tmp_path / "model")
    data = tmp_path / "plan_gen.json"
    data.write_text("".join(json.dumps({"input": f"Q: How to {what}?\nA:", "ref": "Sleep."}) + "\n" for what in "xy"))
    source = Source("t", "procedural:7", "vh23", ("character || LYING",))
    plan_worlds.beside(data).write_text(f"{json.dumps(source.to_json())}\n" * 2)
    made = tmp_path / "made.jsonl"
    settings = PlansSettings(data, model=str(tmp_path / "model"), predictions=made, beams=1, max_new_tokens=4)
    result = run(settings)
    assert result["n"] == len(made.read_text().splitlines()) == 2
    assert result["executable_plans"] == result["goals_reached"] == 0
    assert result["references"]["parsed_steps"] == 1
    assert run(replace(settings, resume=True)) == result
    assert run(replace(settings, model=None)) == result


# E2WM's own files


@needs_robothow
@pytest.mark.skipif(not OFFICIAL.is_dir(), reason=f"no released E2WM files in {OFFICIAL}; set E2WM_DATA")
def test_official_references_take_place_in_the_published_programs() -> None:
    """Where the reference is such a program, it can be carried out, in the rules it was written for."""
    data = OFFICIAL / "plan_gen.json.gz"
    result = run(PlansSettings(data=data))
    assert result["n"] + sum(result["skipped"].values()) == 175
    assert result["goals_known"] >= 9
    assert result["references"]["parsed_steps"] == result["references"]["goals_complete"] == 1
    assert result["references"]["executable_steps"] > 0.9
    found = plan_worlds.from_robothow(read_task(data), "vh19")
    exact = [one for one in found if isinstance(one, Source) and one.goal]
    assert len(exact) == result["goals_known"]
    titles = {scenes.program_title(one.trajectory).lower() for one in exact}
    assert "write an email" in titles or len(titles) > 3


# What is refused


def example(task: str, items: str = "bed") -> TaskExample:
    return TaskExample(f"Q: How to {task}? Given items include {items}. The bed is in the room.\nA:", "", 1, "f:1")


def test_a_prompt_is_taken_apart() -> None:
    prompt = (
        "Q: How to rest? Given items include bed. The bed is on.\nA: Lie on bed.\n"
        "Q: How to Eat? Given items include home office, cup. The cup is in the home office. The cup is dirty.\nA:"
    )
    asked = plan_worlds.asked(prompt, "f:1")
    assert asked.task == "eat"
    assert asked.items == ("home office", "cup")
    assert asked.conditions == ("The cup is in the home office", "The cup is dirty")
    assert plan_worlds.asked("Q: How to wave?\nA:", "f:1") == ("wave", (), ())
    with pytest.raises(InputError, match=r"f:1: not a prompt of plan generation"):
        plan_worlds.asked("What now?", "f:1")


@needs_robothow
def test_examples_without_a_world_are_named() -> None:
    found = plan_worlds.from_robothow([example("fly"), example("go to sleep", "moon"), example("go to sleep")], "vh19")
    assert found[:2] == [plan_worlds.OTHER_ACTIVITY, plan_worlds.OTHER_OBJECTS]
    assert isinstance(found[2], Source)
    assert found[2].goal == ()


@needs_robothow
def test_a_part_of_the_predictions_is_scored_and_the_rest_counted(own: Path, tmp_path: Path) -> None:
    """As `eval all --samples` leaves them."""
    data = own / "tasks/eval/gen/plan_gen.json"
    examples = read_task(data)
    made = written(tmp_path / "made.jsonl", [one.ref for one in examples], examples)
    lines = made.read_text().splitlines()
    made.write_text("\n".join(lines[1:3]))
    found = run(PlansSettings(data=data, predictions=made))
    assert found["n"] == 2
    assert found["executable_plans"] == found["goals_complete"] == 1
    assert found["skipped"] == {"no prediction for it": len(examples) - 2}


@needs_robothow
def test_bad_files_and_settings_are_refused(own: Path, tmp_path: Path) -> None:
    data = own / "tasks/eval/gen/plan_gen.json"
    examples = read_task(data)
    made = written(tmp_path / "made.jsonl", ["Sleep."] * len(examples), examples)
    first, *_ = made.read_text().splitlines()
    short = tmp_path / "short.json"
    short.write_text("".join(data.read_text().splitlines(keepends=True)[:1]))
    sources = plan_worlds.beside(data).read_text()
    (tmp_path / "short.json.sources").write_text(sources)
    strange = tmp_path / "strange.json"
    strange.write_text(json.dumps({"input": "Q: How to fly? \nA:", "ref": "Fly."}))
    cases: list[tuple[PlansSettings, str]] = [
        (PlansSettings(data=data, adapter=(tmp_path,)), "--adapter needs --model"),
        (PlansSettings(data=data, samples=0), "--samples 0"),
        (PlansSettings(data=data, dialect="vh99"), "vh99"),
        (PlansSettings(data=short), f"{len(examples)} sources for 1 examples"),
        (PlansSettings(data=strange), "no example can be carried out .1: its activity"),
    ]
    for text, message in (
        ("", r"no example can be carried out \(\d+: no prediction for it\); write more predictions"),
        (first.replace('"index": 0', '"index": 999'), r"predictions\.jsonl:1: not a prediction"),
        (first.replace('"index": 0', '"index": "a"'), r"predictions\.jsonl:1: not a prediction"),
        (json.dumps({"index": 0, "prediction": "", "reference": "another"}), "reference is not that of"),
    ):
        path = tmp_path / "predictions.jsonl"
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            run(PlansSettings(data=data, predictions=path))
    for settings, message in cases:
        with pytest.raises(InputError, match=message):
            run(settings)
