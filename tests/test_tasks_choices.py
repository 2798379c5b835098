"""Activity inference, housework and distraction: texts and labels by hand, and what must never be among the choices."""

import random
import re
from collections import Counter

from e2wm_jax.experience.trajectory import Trajectory, final_change
from e2wm_jax.tasks.household.confusing import distraction, item_facts
from e2wm_jax.tasks.household.housework import housework_qa, neg_housework_qa
from e2wm_jax.tasks.household.inference import act_infer, possible, state_sentences, told
from e2wm_jax.tasks.household.knowledge import Activity, activities, unrelated
from e2wm_jax.tasks.household.plan import TaskPlan, plan_gen, question
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.facts import without_closeness

CLASSES = {0: "character", 1: "home_office", 2: "computer", 3: "chair", 4: "mail", 5: "bedroom", 6: "chair"}


def episode(*steps: Step) -> Trajectory:
    return Trajectory("e", "s", "vh23", "mcts", 0, steps, CLASSES)


def step(**changes: tuple[tuple[object, ...], ...]) -> Step:
    return Step("[TurnTo] <chair> (3)", ok=True, **changes)  # type: ignore[arg-type]


def test_the_final_change_is_what_is_new_at_the_end() -> None:
    change = final_change(
        episode(
            step(edges_added=((0, "INSIDE", 5),), edges_removed=((0, "INSIDE", 1),)),
            step(edges_added=((0, "INSIDE", 1),), edges_removed=((0, "INSIDE", 5),)),  # back where it began
            step(edges_added=((0, "HOLDS_RH", 4),), edges_removed=((4, "ON", 3),)),
            step(edges_added=((4, "ON", 6),), edges_removed=((0, "HOLDS_RH", 4),)),  # on another chair
            step(states_added=((2, "ON"),), states_removed=((2, "OFF"),)),
            step(edges_added=((0, "CLOSE", 2), (2, "CLOSE", 0))),
        )
    )
    assert change == {"mail || ON || chair", "computer || ON", "character || CLOSE || computer"}


def test_a_goal_of_closeness_alone_stays_whole() -> None:
    assert without_closeness(("a || CLOSE || b", "lamp || ON")) == {"lamp || ON"}
    assert without_closeness(("a || CLOSE || b",)) == {"a || CLOSE || b"}


def test_states_are_told_in_the_official_sentences() -> None:
    change = {
        "computer || ON",
        "phone || PLUGGED_IN",
        "character || SITTING",
        "cat || CLOSE || character",
        "character || CLOSE || kitchen_counter",
        "character || HOLDS_RH || mail",
        "character || HOLDS_LH || food_cheese",
        "character || FACING || computer",
        "character || ON || chair",
        "character || INSIDE || home_office",
        "shoes || ON || character",
        "toy || ON || dresser",
        "milk || INSIDE || freezer",
        # untold: cleanness, rooms of things, closeness of things and to oneself
        "sink || CLEAN",
        "milk || INSIDE || dining_room",
        "computer || CLOSE || mail",
        "character || CLOSE || character",
    }
    assert state_sentences(change, "Mary") == [
        "The computer is on.",
        "The phone is plugged in.",
        "Mary is sitting.",
        "Mary is close to cat, kitchen counter.",
        "Mary is holding the mail in the right hand.",
        "Mary is holding the food cheese in the left hand.",
        "Mary is facing the computer.",
        "Mary is on the chair.",
        "Mary is inside the home office.",
        "The shoes is on Mary.",
        "The toy is on the dresser.",
        "The milk is inside the freezer.",
    ]
    assert len(told(change)) == len(change) - 4


def plan(task: str, *change: str, items: tuple[str, ...] = ()) -> TaskPlan:
    text = question(task, items, [])
    return TaskPlan(task, text, f"Do {task}.", frozenset(change), items, change=frozenset(change))


SITTING, ON, COLD = "character || SITTING", "computer || ON", "fridge || CLOSED"


def test_every_activity_that_a_state_fulfils_is_possible() -> None:
    known = {
        "work": Activity(frozenset({frozenset({SITTING, ON})}), frozenset()),
        "rest": Activity(frozenset({frozenset({SITTING}), frozenset({COLD})}), frozenset()),
        "cool": Activity(frozenset({frozenset({SITTING, COLD})}), frozenset()),
        "wash": Activity(frozenset({frozenset({"sink || CLEAN"})}), frozenset()),  # nothing of it is told
    }
    twin = plan("type", SITTING, ON, "desk || CLEAN")  # reads the same
    assert possible(frozenset({SITTING, ON}), [twin], known) == {"work", "rest", "wash", "type"}


def test_act_infer_shows_ten_other_activities_and_no_second_right_answer() -> None:
    plans = [plan(f"task {index}", f"thing_{index} || ON") for index in range(14)]
    plans += [plan("task 0", "thing_0 || ON", SITTING), plan("twin", "thing_1 || ON")]
    known = {p.task: Activity(frozenset({p.goal}), frozenset()) for p in plans}
    known["task 0"] = Activity(frozenset({plans[0].goal, plans[14].goal}), frozenset())
    questions = act_infer(plans, plans, known, size=99, rng=random.Random(0))
    assert len(questions) == 16
    positions = Counter(asked.answer_list.index(asked.answer) for asked in questions)
    assert sorted(positions.values()) == [4, 4, 4, 4]
    for asked in questions:
        *solved, last = asked.input.split("\n\n")
        form = r".*\.\nQuestion: Given the above state, a possible activity could be\nAnswer:"
        names = [re.fullmatch(form + "(.+)", block)[1] for block in solved]  # type: ignore[index]
        assert len(set(names)) == len(names) == 10
        assert asked.answer not in names
        assert re.fullmatch(form, last)
        assert not {"task 1", "twin"} <= set(asked.answer_list)
        if asked.answer in ("task 1", "twin"):
            assert not {"task 1", "twin"} & (set(names) | set(asked.answer_list)) - {asked.answer}
    assert len(act_infer(plans, plans, known, size=5, rng=random.Random(0))) == 5
    assert act_infer(plans[:9], plans, known, size=5, rng=random.Random(0)) == []


def test_unrelated_are_items_of_other_tasks_without_a_common_word() -> None:
    episodes = [
        Trajectory(
            "a", "s", "vh23", "mcts", 0, (Step("[Walk] <fridge> (1)", ok=True),), {1: "fridge"}, task="get food"
        ),
        Trajectory("b", "s", "vh23", "mcts", 0, (), {}, task="get food", items=("food_kiwi", "kitchen", "character")),
        Trajectory("c", "s", "vh23", "mcts", 0, (), {}, task="read", goal=("novel || ON || kitchen_table",)),
        Trajectory("d", "s", "vh23", "mcts", 0, (), {}, task="read", items=("food_carrot", "hands_both", "lamp")),
        Trajectory("e", "s", "vh23", "random", 0, (), {}, items=("rug",)),
    ]
    known = activities(episodes)
    assert known["get food"].items == {"fridge", "food_kiwi"}
    assert known["read"].items == {"novel", "kitchen_table", "food_carrot", "lamp"}
    assert unrelated("get food", known) == ["kitchen_table", "lamp", "novel"]
    assert unrelated("read", known) == ["fridge"]  # kiwi is food, as the carrot is


def household() -> tuple[list[TaskPlan], dict[str, Activity]]:
    plans = [plan(f"do {i}", items=(f"own{i}", f"tool{i}", f"place{i}", "kitchen")) for i in range(12)]
    known = {p.task: Activity(frozenset(), frozenset(p.items) - {"kitchen"}) for p in plans}
    known["do 0"] = Activity(frozenset(), frozenset({"own0", "tool0", "place0", "own1", "seldom"}))
    return plans, known


def test_housework_asks_once_about_every_task_before_any_again() -> None:
    plans, known = household()
    questions = housework_qa(plans, known, size=20, rng=random.Random(0))
    assert len(questions) == 20
    form = re.compile(r"Question: To (do \d+), a possibly related item could be\nAnswer:(.*)")
    asked = Counter()
    for one in questions:
        blocks = [form.fullmatch(block) for block in one.input.split("\n\n")]
        tasks = [block[1] for block in blocks]  # type: ignore[index]
        assert len(tasks) == 11 == len(set(tasks))
        asked[tasks[-1]] += 1
        for block in blocks[:-1]:
            assert block[2].strip() in {i for p in plans if p.task == block[1] for i in p.items}  # type: ignore[index]
        own = known[tasks[-1]].items
        assert [choice for choice in one.answer_list if choice in own] == [one.answer]
        assert one.answer not in ("kitchen", "seldom")  # no item; of no plan that is asked about
    assert sorted(asked.values()) == [1] * 4 + [2] * 8
    positions = Counter(one.answer_list.index(one.answer) for one in questions)
    assert sorted(positions.values()) == [5, 5, 5, 5]
    assert len(housework_qa(plans, known, size=999, rng=random.Random(0))) == 36


def test_negated_housework_lists_three_of_the_task_and_one_of_none() -> None:
    plans, known = household()
    questions = neg_housework_qa(plans, known, size=30, rng=random.Random(1))
    assert len(questions) == 30
    form = r"Question: To (do \d+), a unrelated item could be\nA: (.*)\nB: (.*)\nC: (.*)\nD: (.*)\nAnswer:(.*)"
    for one in questions:
        blocks = [re.fullmatch(form, block) for block in one.input.split("\n\n")]
        assert len(blocks) == 11
        for block in blocks:
            task, *choices, answer = block.groups()  # type: ignore[union-attr]
            answer = answer.strip() or one.answer
            assert [choice for choice in choices if choice not in known[task].items] == [answer]
        assert tuple(blocks[-1].groups()[1:5]) == one.answer_list  # type: ignore[union-attr]
    assert len({(one.input.split("\n\n")[-1].split("\n")[0], one.answer) for one in questions}) == 30


def test_distraction_adds_items_with_their_facts_and_keeps_the_plan() -> None:
    facts = {"cup": ("cup || INSIDE || kitchen",), "lamp": ("lamp || OFF", "lamp || INSIDE || bedroom")}
    facts |= {"box": ("box || CLOSED",), "pen": ("pen || INSIDE || box", "pen || INSIDE || bedroom")}
    plans = [
        TaskPlan(f"use {item}", "", f"Use {item}.", frozenset([item]), (item,), conditions)
        for item, conditions in facts.items()
    ]
    assert item_facts(plans) == {  # no more than states and rooms; nothing that is nowhere
        "cup": [("cup || INSIDE || kitchen",)],
        "lamp": [("lamp || OFF", "lamp || INSIDE || bedroom")],
        "pen": [("pen || INSIDE || bedroom",)],
    }
    known = {p.task: Activity(frozenset(), frozenset(p.items)) for p in plans}
    sentences = {"cup": {"The cup is in the kitchen."}, "lamp": {"The lamp is in the bedroom.", "The lamp is off."}}
    sentences |= {"box": {"The box is closed."}, "pen": {"The pen is in the bedroom."}}
    numbers = set()
    for seed in range(40):
        rng = random.Random(seed)
        for example in plan_gen(plans, size=9, rng=rng, reword=distraction(plans, known, rng)):
            *solved, last = re.findall(r"Q: How to use (\w+)\? Given items include (.*?)\. (.*)\nA:(.*)", example.input)
            assert example.ref == f"Use {last[0]}."
            for own, listed, conditions, text in (*solved, last):
                items = listed.split(", ")
                assert len(set(items)) == len(items)
                assert own in items
                expected = {one for item in set(items) - {own} for one in sentences[item]} | sentences[own]
                assert set(re.findall(r"The [^.]*\.", conditions)) - {"The pen is inside the box."} == expected
                assert text in ("", f" Use {own}.")
            assert all(len(block[1].split(", ")) == 2 for block in solved)
            numbers.add(len(last[1].split(", ")) - 1)
    assert numbers == {1, 2, 3}
