"""Plans, activities and the split, against texts written by hand and exact counts."""

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.household.plan import TaskPlan, act_recog, by_task, plan_gen, question, select, shots
from e2wm_jax.tasks.household.qa import act_recog as act_recog_qa
from e2wm_jax.tasks.household.qa import gold_positions
from e2wm_jax.tasks.split import components, split, whole_names
from e2wm_jax.worlds.household.changes import Step


def episode(**changes: object) -> Trajectory:
    fields: dict = {
        "id": "e1",
        "scene": "s",
        "dialect": "vh23",
        "policy": "mcts",
        "seed": 0,
        "steps": (Step("[Walk] <bedroom> (1)", ok=True), Step("[Lie] <bed> (2)", ok=True)),
        "classes": {1: "bedroom", 2: "bed"},
        "task": "go to sleep",
        "goal": ("character || LYING", "character || ON || bed"),
        "achieved": ("character || LYING", "character || ON || bed"),
        "items": ("bedroom", "bed", "floor_lamp", "bed", "character"),
        "conditions": ("floor_lamp || OFF", "bed || INSIDE || bedroom"),
    }
    return Trajectory(**(fields | changes))


def plan(task: str, text: str, goal: str = "", context: str = "") -> TaskPlan:
    return TaskPlan(task, f"How to {task}?{context}", text, frozenset([goal or text]))


def test_question_lists_items_once_and_conditions() -> None:
    (found,), _ = select([episode()])
    assert found.question == (
        "How to go to sleep? Given items include bedroom, bed, floor lamp. The bed is in the bedroom. "
        "The floor lamp is off."
    )
    assert found.items == ("bedroom", "bed", "floor_lamp")
    assert question("go to sleep", (), ()) == "How to go to sleep?"


def test_select_keeps_reached_goals_and_says_why_others_are_dropped() -> None:
    half = {"achieved": ("character || LYING", "something || ELSE")}
    episodes = [
        episode(),
        episode(**half),
        episode(policy="random", task=None, goal=()),
        episode(task=None),
        episode(steps=(Step("[Lie] <bed> (2)", ok=False),)),
        episode(policy="best-first", goal=(room := ("character || INSIDE || bedroom",)), achieved=room),
        episode(goal=(*room, "bed || CLOSE || character"), achieved=("bed || CLOSE || character", *room)),
        episode(goal=("bed || CLOSE || character",), achieved=("bed || CLOSE || character",)),
    ]
    plans, outcome = select(episodes)
    assert [plan.text for plan in plans] == ["Walk to bedroom. Lie on bed."]
    assert outcome == {
        "used": 1,
        "goal not achieved": 1,
        "not planned": 1,
        "without task or goal": 1,
        "without a successful step": 1,
        "goal of closeness or a room alone": 3,
    }
    assert len(select(episodes, achieved_share=0.5)[0]) == 2


def test_plan_gen_is_the_official_two_shot_prompt() -> None:
    plans = [plan("a", "Walk to a."), plan("b", "Walk to b."), plan("c", "Walk to c.")]
    examples = plan_gen(plans, size=9, rng=random.Random(0))
    assert sorted(example.ref for example in examples) == ["Walk to a.", "Walk to b.", "Walk to c."]
    target = next(example for example in examples if example.ref == "Walk to c.")
    block = "Q: How to {0}?\nA: Walk to {0}.\n"
    ends = "Q: How to c?\nA:"
    assert target.input in (block.format("a") + block.format("b") + ends, block.format("b") + block.format("a") + ends)


def test_act_recog_is_the_official_two_shot_prompt() -> None:
    plans = [plan("a", "Walk to a."), plan("b", "Walk to b."), plan("c", "Walk to c.")]
    target = next(example for example in act_recog(plans, size=9, rng=random.Random(1)) if example.ref == "c")
    block = "Given a household activity plan as follows:\n{}\nQ: What is the name of the activity?\nA:"
    first, second, last = target.input.split("\n\n")
    assert {first, second} == {block.format(f"Walk to {name}.") + f" {name}" for name in "ab"}
    assert last == block.format("Walk to c.")


def test_targets_are_distinct_and_too_few_tasks_give_nothing() -> None:
    twice = [plan("a", "Walk to a."), plan("a", "Walk to a."), plan("b", "Walk to b."), plan("c", "Walk to c.")]
    assert len(plan_gen(twice, size=9, rng=random.Random(0))) == 3
    assert plan_gen(twice[:3], size=9, rng=random.Random(0)) == []
    assert len(plan_gen(twice, size=2, rng=random.Random(0))) == 2


def test_examples_come_from_tasks_drawn_uniformly_and_never_from_the_targets_own() -> None:
    plans = [plan("often", f"Walk to {index}.") for index in range(50)]
    plans += [plan(task, f"Run to {task}.") for task in "abcd"]
    rng = random.Random(0)
    drawn = Counter(chosen.task for _ in range(500) for chosen in shots(by_task(plans), plans[-1], count=2, rng=rng))
    assert drawn.keys() == {"often", "a", "b", "c"}
    assert all(200 < number < 300 for number in drawn.values())


def test_an_example_with_the_targets_plan_is_not_shown() -> None:
    pool = by_task([plan("work", "Walk to computer."), plan("play", "Walk to computer.")])
    assert shots(pool, plan("work", "Walk to computer."), count=2, rng=random.Random(0)) == []


def test_act_recog_qa_has_balanced_gold_and_no_second_right_answer() -> None:
    plans = [plan(f"task {index}", f"Walk to {index}.") for index in range(22)]
    plans.append(plan("twin", "Walk to 0."))
    questions = act_recog_qa(plans, plans, size=99, rng=random.Random(0))
    assert len(questions) == 23
    positions = Counter(question.answer_list.index(question.answer) for question in questions)
    assert sorted(positions.values()) == [5, 6, 6, 6]
    for asked in questions:
        *solved, last = asked.input.split("\nGiven a task plan: ")
        assert len(solved) == 2
        assert last.endswith("\nQuestion: what is the name of this task?\nAnswer:")
        assert len(set(asked.answer_list)) == 4
        assert asked.answer not in ("task 0", "twin") or not {"task 0", "twin"} <= set(asked.answer_list)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(2, 7), st.integers(0, 9))
def test_gold_positions_differ_by_at_most_one(count: int, choices: int, seed: int) -> None:
    positions = gold_positions(count, choices, random.Random(seed))
    numbers = [positions.count(position) for position in range(choices)]
    assert sum(numbers) == count
    assert max(numbers) - min(numbers) <= 1


def test_components_follow_chains() -> None:
    items = ["ab", "x", "bc", "cd", "y"]
    assert components(items, tuple) == [["ab", "bc", "cd"], ["x"], ["y"]]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_split_keeps_everything_and_shares_no_key(items: list[tuple[int, int]], share: float, seed: int) -> None:
    def keys(item: tuple[int, int]) -> Iterable[tuple[str, int]]:
        return ("left", item[0]), ("right", item[1])

    train, held_out = split(items, keys, eval_share=share, rng=random.Random(seed))
    assert sorted(train + held_out) == sorted(items)
    assert not {key for item in train for key in keys(item)} & {key for item in held_out for key in keys(item)}
    assert (train, held_out) == split(items, keys, eval_share=share, rng=random.Random(seed))


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.2, 20), (0.5, 50)])
def test_split_holds_out_the_share_asked_for(share: float, expected: int) -> None:
    assert len(split(range(100), lambda item: [item], eval_share=share, rng=random.Random(0))[1]) == expected


def test_split_of_one_component_is_all_train() -> None:
    assert split(range(9), lambda _: ["same"], eval_share=0.5, rng=random.Random(0)) == (list(range(9)), [])


def test_split_holds_out_whole_components_of_what_must_be() -> None:
    items = ["ab", "bc", "d", "e", "f", "g"]
    for seed in range(9):
        train, held_out = split(
            items, tuple, eval_share=0.5, rng=random.Random(seed), held_out=lambda item: item == "ab"
        )
        assert set(held_out) > {"ab", "bc"}
        assert (len(train), len(held_out)) == (3, 3)


def chosen(names: str, *, links: dict[int, str], share: float, room: int, seed: int) -> frozenset[str]:
    """Items are positions in `names`, each with its letter as name; linked where `links` gives them one key."""
    return whole_names(
        range(len(names)),
        lambda item: [("own", item), ("link", links.get(item, item))],
        lambda item: names[item],
        share=share,
        room=room,
        rng=random.Random(seed),
    )


def test_names_are_held_out_with_all_that_is_linked_to_them() -> None:
    names = "aabbccdddddddddd"
    for seed in range(9):
        found = chosen(names, links={}, share=0.5, room=8, seed=seed)
        assert len(found) == 2
        assert "d" not in found  # ten items are more than half of the room
        linked = chosen(names, links={0: "x", 6: "x", 7: "x", 8: "x"}, share=1.0, room=8, seed=seed)
        assert linked == {"b", "c"}  # a draws in three of d
        assert chosen("aaabbbb", links={}, share=0.1, room=4, seed=seed) == {"a"}  # the smallest, as none is small
        assert chosen("aaabbbb", links={}, share=0.1, room=2, seed=seed) == frozenset()
        assert chosen(names, links={}, share=0.0, room=8, seed=seed) == frozenset()


def test_targets_may_be_of_some_tasks_while_examples_are_of_any() -> None:
    plans = [plan(name, f"Walk to {name}.") for name in "abcde"]
    examples = plan_gen(plans, size=9, rng=random.Random(0), tasks={"b", "e"})
    assert {example.ref for example in examples} == {"Walk to b.", "Walk to e."}
