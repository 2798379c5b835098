"""The whole of `build`: what comes out, that nothing leaks, that a seed decides everything, and clear refusals."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.build import Sizes, TaskSets, build
from e2wm_jax.tasks.example import Choice, Generation
from e2wm_jax.tasks.household.plan import TaskPlan
from e2wm_jax.tasks.leakage import LeakageError, check_leakage, facts
from e2wm_jax.tasks.statistics import statistics
from e2wm_jax.tasks.write import write
from e2wm_jax.worlds.household.changes import Step

TASKS = 12
PLANNED = TASKS * 8
SMALL = Sizes(
    train_count=20,
    train_obj_move=8,
    eval_obj_move_path=6,
    eval_obj_move=6,
    eval_count=12,
)
CLASSES = {0: "character", 1: "bedroom", **{10 + i: name for i, name in enumerate(("desk", "bed", "couch", "table"))}}
THINGS = ("cup", "book", "hat", "pen", "key", "rug", "mop", "bag", "fan", "jar", "pan", "toy")
CLASSES |= {20 + i: name for i, name in enumerate(THINGS)}
CLASSES |= {40 + i: name for i, name in enumerate(("kitchen", "hallway", "bathroom", "soap", "phone", "pot", "plate"))}


def planned(number: int) -> Trajectory:
    """One of twelve tasks in one of eight variants, of which two each share the goal."""
    task, variant = number % TASKS, number // TASKS
    thing = 20 + task
    steps = [Step("[Walk] <bedroom> (1)", ok=True)] * (1 + variant)
    steps += [
        Step(f"[Walk] <{CLASSES[thing]}> ({thing})", ok=True),
        Step(f"[Grab] <{CLASSES[thing]}> ({thing})", ok=True, edges_added=((0, "HOLDS_RH", thing),)),
        Step("[TurnTo] <bed> (11)", ok=True, states_added=((60 + variant, "ON"),)),
    ]
    goal = (f"character || HOLDS_RH || {CLASSES[thing]}", f"variant || ON || {variant // 2}")
    return Trajectory(
        id=f"m{number}",
        scene="s",
        dialect="vh23",
        policy="mcts",
        seed=number,
        steps=tuple(steps),
        classes=CLASSES | {60 + i: f"lamp_{i}" for i in range(8)},
        task=f"take {CLASSES[thing]}",
        goal=goal,
        achieved=goal,
        items=(CLASSES[thing], *(CLASSES[thing] + kind for kind in ("case", "box", "lid", "wax")), "bedroom"),
        conditions=(f"{CLASSES[thing]} || INSIDE || bedroom", f"lamp_{variant} || OFF"),
    )


def explored(number: int) -> Trajectory:
    rng = random.Random(number)
    steps: list[Step] = []
    for _ in range(4):
        thing, place = rng.randrange(20, 28), rng.randrange(10, 14)
        if any(f"({thing})" in step.action for step in steps):
            continue
        steps += [
            Step(f"[Walk] <{CLASSES[thing]}> ({thing})", ok=True),
            Step(f"[Grab] <{CLASSES[thing]}> ({thing})", ok=True, edges_added=((0, "HOLDS_RH", thing),)),
            Step(f"[Walk] <{CLASSES[place]}> ({place})", ok=True),
            Step(
                f"[PutBack] <{CLASSES[thing]}> ({thing}) <{CLASSES[place]}> ({place})",
                ok=True,
                edges_added=((thing, "ON", place),),
                edges_removed=((0, "HOLDS_RH", thing),),
            ),
        ]
    return Trajectory(f"r{number}", "s", "vh23", "random", number, tuple(steps), CLASSES)


def carried(number: int) -> Trajectory:
    """Three people: each walks to a room, takes something there, carries it to another, and may leave it."""
    rng = random.Random(f"carried/{number}")
    rooms, things = (40, 41, 42, 1), rng.sample((43, 44, 45, 46), 3)
    doings = []
    for actor, thing in enumerate(things):
        path = rng.sample(rooms, 3)
        steps = [f"[Walk] <{CLASSES[path[0]]}> ({path[0]})", f"[Walk] <{CLASSES[thing]}> ({thing})"]
        steps += [f"[Grab] <{CLASSES[thing]}> ({thing})"]
        steps += [f"[Walk] <{CLASSES[room]}> ({room})" for room in path[1:]]
        steps += [f"[Drop] <{CLASSES[thing]}> ({thing})"] if rng.random() < 0.5 else []
        doings.append([Step(step, ok=True, actor=actor) for step in steps])
    told = []
    while left := [steps for steps in doings if steps]:
        told.append(rng.choice(left).pop(0))
    return Trajectory(f"t{number}", "s", "vh23", "random", number, tuple(told), CLASSES, search={"style": "track"})


EPISODES = [
    *(planned(number) for number in range(PLANNED)),
    *(explored(number) for number in range(40)),
    *(carried(number) for number in range(30)),
]


@pytest.fixture(scope="module")
def sets() -> TaskSets:
    return build(EPISODES, seed=1, sizes=SMALL)


def test_every_file_is_made(sets: TaskSets) -> None:
    assert list(sets.files) == [
        "train/train_plan_gen.json",
        "train/train_act_recog.json",
        "train/train_count.json",
        "train/train_obj_move.json",
        "eval/gen/plan_gen.json",
        "eval/gen/plan_gen_unseen.json",
        "eval/gen/plan_gen_confusing.json",
        "eval/gen/plan_gen_unseen_confusing.json",
        "eval/gen/obj_move_path.json",
        "eval/qa/act_recog.json",
        "eval/qa/act_infer.json",
        "eval/qa/housework_qa.json",
        "eval/qa/neg_housework_qa.json",
        "eval/qa/obj_move.json",
        "eval/qa/count.json",
    ]
    assert sets.episodes == {"used for plans": 96, "used for stories": 40, "used for tracking": 30}
    kinds = {name: {type(example) for example in examples} for name, examples in sets.files.items()}
    assert all(kind == {Choice if "/qa/" in name else Generation} for name, kind in kinds.items())


def test_same_seed_same_sets_whatever_the_order_of_other_sizes(sets: TaskSets) -> None:
    assert build(EPISODES, seed=1, sizes=SMALL) == sets
    assert build(EPISODES, seed=2, sizes=SMALL).files != sets.files
    other = build(EPISODES, seed=1, sizes=replace(SMALL, train_count=5))
    assert other.files["eval/qa/count.json"] == sets.files["eval/qa/count.json"]
    assert other.files["train/train_plan_gen.json"] == sets.files["train/train_plan_gen.json"]


def test_no_goal_is_on_both_sides(sets: TaskSets) -> None:
    """By the question, which in this material names task and variant, and so the goal."""
    goals = {}
    for episode in EPISODES[:PLANNED]:
        goals[episode.task, episode.conditions[1].split(" ")[0].replace("_", " ")] = episode.goal
    sides: dict[str, set] = {"train": set(), "eval": set()}
    for side, name in (("train", "train/train_plan_gen.json"), ("eval", "eval/gen/plan_gen.json")):
        for example in sets.files[name]:
            for line in example.input.splitlines():
                if line.startswith("Q: "):
                    task = line.split("How to ")[1].split("?")[0]
                    sides[side].add(goals[task, next(w for t, w in goals if t == task and f"The {w} is" in line)])
    assert sides["train"]
    assert sides["eval"]
    assert not sides["train"] & sides["eval"]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("train/train_plan_gen.json", "eval/gen/plan_gen.json"),
        ("train/train_plan_gen.json", "eval/gen/plan_gen_unseen.json"),
        ("train/train_plan_gen.json", "eval/gen/plan_gen_confusing.json"),
        ("train/train_plan_gen.json", "eval/gen/plan_gen_unseen_confusing.json"),
        ("train/train_count.json", "eval/qa/count.json"),
        ("train/train_obj_move.json", "eval/gen/obj_move_path.json"),
        ("train/train_obj_move.json", "eval/qa/obj_move.json"),
    ],
)
def test_a_planted_leak_is_found_even_in_an_example_of_an_example(sets: TaskSets, name: str, source: str) -> None:
    check_leakage(sets.files)
    victim, culprit = sets.files[source][0], sets.files[name][0]
    separator = "\n" if "plan_gen" in name else "\n\n"
    first = victim.input.split("\nQ: " if "plan_gen" in name else "\n\n")[0]  # its first solved example
    leaked = Generation(first + separator + culprit.input, culprit.gold)
    with pytest.raises(LeakageError, match="train and eval share a"):
        check_leakage(sets.files | {name: [*sets.files[name], leaked]})


def test_a_leak_across_kinds_of_files_and_of_goals_is_found() -> None:
    recognize = "Given a household activity plan as follows:\nWalk to x.\nQ: What is the name of the activity?\nA:"
    asked = "Given a task plan: {}\nQuestion: what is the name of this task?\nAnswer:"
    train = {"train/train_act_recog.json": [Generation(recognize, "rest")]}
    with pytest.raises(LeakageError, match=r"share a plan: Walk to x\."):
        check_leakage(train | {"eval/qa/act_recog.json": [Choice(asked.format("Walk to x."), "rest", ("rest",))]})
    other = train | {"eval/qa/act_recog.json": [Choice(asked.format("Walk to y."), "rest", ("rest",))]}
    check_leakage(other)
    goal = frozenset({"character || SITTING"})
    with pytest.raises(LeakageError, match=r"share a goal: character \|\| SITTING"):
        check_leakage(other, [TaskPlan("rest", "How to rest?", f"Walk to {room}.", goal) for room in "xy"])


def test_an_example_in_an_unknown_form_is_not_waved_through() -> None:
    with pytest.raises(LeakageError, match="cannot tell"):
        facts("train/train_count.json", [Generation("What?", "Nothing.")])


@pytest.mark.parametrize("name", ["plan_gen_unseen", "plan_gen_unseen_confusing"])
def test_a_task_that_should_be_unseen_is_found_in_train(sets: TaskSets, name: str) -> None:
    assert sets.unseen
    source = f"eval/gen/{name}.json"
    recognize = "Given a household activity plan as follows:\nWalk to x.\nQ: What is the name of the activity?\nA:"
    leaked = Generation(recognize, sets.unseen[0])
    asked = [example for example in sets.files[source] if f"How to {sets.unseen[0]}?" in example.input.split("\n")[-2]]
    with pytest.raises(LeakageError, match=f"share a task: {sets.unseen[0]}"):
        check_leakage({source: asked, "train/train_act_recog.json": [leaked]})
    check_leakage({source: asked, "train/train_act_recog.json": [Generation(recognize, "fly")]})


def test_a_state_told_of_a_goal_to_train_on_is_found() -> None:
    train = {"train/train_plan_gen.json": [Generation("Q: How to rest?\nA:", "Sit on bed.")]}
    state = "The lamp is on. {} is sitting.\nQuestion: Given the above state, a possible activity could be\nAnswer:"
    change = frozenset({"lamp || ON", "character || SITTING"})
    plans = [TaskPlan("rest", "", "Sit on bed.", change), TaskPlan("sit", "", "Sit on couch.", change, change=change)]
    with pytest.raises(LeakageError, match=r"share a goal: character \|\| SITTING, lamp \|\| ON"):
        check_leakage(train | {"eval/qa/act_infer.json": [Choice(state.format("Tom"), "sit", ("sit",))]}, plans)
    other = {"eval/qa/act_infer.json": [Choice(state.replace("lamp", "tv").format("Tom"), "sit", ("sit",))]}
    check_leakage(train | other, plans)


def test_the_same_story_in_other_words_is_found() -> None:
    question = "\nQuestion: {} where the cup appeared?\nAnswer:"
    stories = ["Anna entered the kitchen. Anna got the cup.", "Anna went to the kitchen. Anna took the cup."]
    train, held_out = (Generation(story + question, "kitchen") for story in stories)
    with pytest.raises(LeakageError, match="share a story"):
        check_leakage({"train/train_obj_move.json": [train], "eval/gen/obj_move_path.json": [held_out]})


def deeds_in(text: str) -> tuple[tuple[int, str], ...]:
    """Who (by order of appearance) went where or took or left what."""
    found = re.findall(r"(\w+) (?:(?!the )[a-z]+ )+the ([a-z ]+)\.", text)
    people = list(dict.fromkeys(person for person, _ in found))
    return tuple((people.index(person), what) for person, what in found)


def test_experienced_stories_are_told_first_and_each_on_one_side(sets: TaskSets) -> None:
    own = set()
    for episode in EPISODES[PLANNED + 40 :]:
        steps = [
            s for s in episode.steps if "[Walk]" not in s.action or int(s.action.split("(")[1][:-1]) in (1, 40, 41, 42)
        ]
        actors = list(dict.fromkeys(step.actor for step in steps))
        own.add(tuple((actors.index(s.actor), s.action.split("<")[1].split(">")[0]) for s in steps))
    assert len(own) == 30
    sides: dict[str, set[object]] = {"train": set(), "eval": set()}
    told = {"train": 0, "eval": 0}
    for name, examples in sets.files.items():
        if "obj_move" in name:
            for example in examples:
                stories = {deeds_in(block.split("\nQuestion")[0]) for block in example.input.split("\n\n")}
                sides[name.split("/")[0]] |= stories
                told[name.split("/")[0]] += len(stories)
    assert not sides["train"] & sides["eval"]
    assert len(own & sides["train"]) == 24 == told["train"]  # 24 of 30 episodes, all stories of eight examples
    assert own <= sides["train"] | sides["eval"]


def test_counts_can_be_balanced() -> None:
    answers = [
        Counter(example.gold.split()[2] for example in made.files["train/train_count.json"])
        for made in (build(EPISODES, seed=1, sizes=SMALL, balanced_counts=balanced) for balanced in (False, True))
    ]
    commonest = [max(counted.values()) / counted.total() for counted in answers]
    assert commonest[1] < 0.5 < commonest[0]


def test_statistics_count_words_answers_and_positions(sets: TaskSets) -> None:
    summary = statistics(sets)
    files = summary["files"]
    assert {name: entry["n"] for name, entry in files.items()} == {name: len(e) for name, e in sets.files.items()}
    assert set(files["train/train_count.json"]["answers"]) <= {"no item", "one item", "2 items", "3 items", "4 items"}
    for name in ("eval/qa/act_recog.json", "eval/qa/obj_move.json"):
        positions = files[name]["gold_positions"]
        assert sum(positions) == files[name]["n"]
        assert max(positions) - min(positions) <= 1
    assert files["eval/qa/obj_move.json"]["majority"] == round(1 / 6, 4)
    assert summary["notes"] == list(sets.notes)
    json.dumps(summary)


def test_missing_material_is_noted_and_none_at_all_is_refused() -> None:
    own = build(EPISODES, seed=1)
    assert not any("official" in note or " of 1659" in note for note in own.notes)  # of a world of one's own
    theirs = build([replace(one, scene="robothow:file1_2") for one in EPISODES], seed=1)
    (smaller,) = [note for note in theirs.notes if "robothow" in note]
    assert f"train/train_plan_gen.json {len(own.files['train/train_plan_gen.json'])} of 1659" in smaller
    assert smaller.endswith("for more: `e2wm collect --policy mcts --goals robothow --out DIR`")
    few = build(EPISODES[:5], seed=1, eval_share=0.4)
    assert "eval/gen/plan_gen.json" not in few.files
    (why,) = [note for note in few.notes if note.startswith("eval: too little for plan_gen, ")]
    assert "2 plans of" in why
    assert why.endswith("collect more goals, or raise --eval-share, 1 for evaluation files alone")
    alone = build(EPISODES[:5], seed=1, eval_share=1)
    assert "eval/gen/plan_gen.json" in alone.files
    assert not any(name.startswith("train/train_plan") for name in alone.files)
    assert not any(note.startswith("train: ") for note in alone.notes)  # that was asked for
    only_stories = build(EPISODES[PLANNED:], seed=0, sizes=SMALL)
    assert "train/train_plan_gen.json" not in only_stories.files
    assert any(note.startswith("no files of plans: no planned episode") for note in only_stories.notes)
    with pytest.raises(InputError, match=r"no episode can be used \(no episodes\).*e2wm collect --policy mcts"):
        build([], seed=0)
    failed = [replace(episode, achieved=()) for episode in EPISODES[:3]]
    with pytest.raises(InputError, match="3 goal not achieved"):
        build(failed, seed=0)


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (replace(EPISODES[0], steps=(Step("walk home", ok=True),)), "episode m0: 'walk home'"),
        (replace(EPISODES[0], classes={}), "episode m0: no class for node 1"),
    ],
)
def test_malformed_episodes_are_refused_by_name(episode: Trajectory, message: str) -> None:
    with pytest.raises(InputError) as error:
        build([episode], seed=0)
    assert str(error.value).startswith(message)


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="eval_share=2"):
        build(EPISODES, seed=0, eval_share=2)


def test_write_is_repeatable_and_spares_other_files(sets: TaskSets, tmp_path: Path) -> None:
    paths = write(sets, tmp_path / "out")
    assert paths[-1].name == "statistics.json"
    first = json.loads((tmp_path / "out/train/train_count.json").read_text().splitlines()[0])
    assert first == sets.files["train/train_count.json"][0].to_json()
    (tmp_path / "out/eval/qa/count.json").unlink()  # as after a killed run
    assert write(sets, tmp_path / "out") == paths
    assert all(path.is_file() for path in paths)
    other = build(EPISODES, seed=2, sizes=SMALL)
    with pytest.raises(InputError, match="already holds"):
        write(other, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        write(sets, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="is a file"):
        write(sets, tmp_path / "mine/thesis.txt")
