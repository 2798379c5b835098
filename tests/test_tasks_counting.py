"""Counting stories: wording and labels by hand, then labels against an independent reader of the world's edges."""

import importlib.util
import random
import re
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2wm_jax.experience.trajectory import Trajectory
from e2wm_jax.tasks.household.counting import (
    EVEN,
    OFFICIAL_TRAIN,
    CountQuestion,
    CountStory,
    answer,
    count,
    draw,
    items_on,
    put_into_words,
    questions,
)
from e2wm_jax.tasks.household.qa import count as count_qa
from e2wm_jax.tasks.household.story import Person, deeds, noun, tell
from e2wm_jax.worlds.household.actions import Thing
from e2wm_jax.worlds.household.changes import Edge, Step

ANNA = Person("Anna", "she", "her", "herself")
CLASSES = {
    0: "character",
    1: "cup",
    2: "cup",
    3: "desk",
    4: "kitchen_counter",
    5: "shoes",
    6: "bedroom",
    7: "hands_both",
}


def walk(node: int) -> Step:
    return Step(f"[Walk] <{CLASSES[node]}> ({node})", ok=True)


def grab(node: int, *off: int) -> Step:
    return Step(
        f"[Grab] <{CLASSES[node]}> ({node})",
        ok=True,
        edges_added=((0, "HOLDS_RH", node),),
        edges_removed=tuple((node, "ON", place) for place in off),
    )


def put(node: int, place: int) -> Step:
    return Step(
        f"[PutBack] <{CLASSES[node]}> ({node}) <{CLASSES[place]}> ({place})",
        ok=True,
        edges_added=((node, "ON", place), (node, "CLOSE", place)),
        edges_removed=((0, "HOLDS_RH", node),),
    )


def episode(*steps: Step, name: str = "e") -> Trajectory:
    return Trajectory(name, "s", "vh23", "random", 0, steps, CLASSES)


class First(random.Random):
    """Always the first choice, never a link."""

    def choice(self, options):  # type: ignore[no-untyped-def]
        return options[0]

    def random(self) -> float:
        return 0.99


def story_of(*steps: Step) -> str:
    return tell(deeds(episode(*steps)), ANNA, First())


def test_first_mention_is_indefinite_and_later_ones_definite() -> None:
    assert story_of(walk(6), walk(4), walk(4)) == (
        "Anna was at home. She walked to the bedroom. She walked to a kitchen counter. "
        "She walked to the kitchen counter."
    )


def test_second_instance_is_another_and_then_the_second() -> None:
    text = story_of(walk(1), walk(2), walk(2), walk(1))
    assert re.findall(r"walked to (.*?)\.", text) == ["a cup", "another cup", "the second cup", "the first cup"]


def test_body_parts_plurals_and_oneself() -> None:
    wash = Step("[Wash] <hands_both> (7)", ok=True)
    look = Step("[TurnTo] <character> (0)", ok=True)
    assert story_of(wash, walk(5), walk(5), look) == (
        "Anna was at home. She washed her hands. She walked to some shoes. She walked to the shoes. "
        "She turned to herself."
    )


def test_pronoun_stands_within_a_sentence_and_moves_the_particle() -> None:
    texts = {tell(deeds(episode(walk(1), grab(1), walk(3))), ANNA, random.Random(seed)) for seed in range(60)}
    assert any("picked it up" in text for text in texts)
    assert any("picked up the cup" in text for text in texts)
    assert not any("picked up it" in text or re.search(r"\. (She|Anna) \w+ (up )?it", text) for text in texts)


def test_put_back_names_the_place_where_the_thing_went() -> None:
    back = Step("[PutObjBack] <cup> (1)", ok=True, edges_added=((1, "ON", 3),))
    assert story_of(walk(3), grab(1, 3), back).endswith("She put back the cup on the desk.")
    assert items_on(deeds(episode(walk(3), grab(1, 3), back)), 3) == (1,)


@pytest.mark.parametrize(
    ("class_name", "expected"),
    [("food_apple", "apple"), ("food_food", "food"), ("coffee_table", "coffee table"), ("tvstand", "TV stand")],
)
def test_noun(class_name: str, expected: str) -> None:
    assert noun(class_name) == expected


def test_answers_have_the_official_form() -> None:
    assert answer("desk", []) == "There is no item on the desk."
    assert answer("desk", ["cup"]) == "There is one item on the desk. It is the cup."
    assert answer("desk", ["cup", "rug"]) == "There are 2 items on the desk. They are the cup and the rug."
    assert answer("desk", list("abc")) == "There are 3 items on the desk. They are the a, the b, and the c."


def test_items_are_those_put_there_and_not_taken_away() -> None:
    story = deeds(episode(grab(5), put(5, 3), grab(1), put(1, 3), grab(5, 3), put(5, 4)))
    assert items_on(story, 3) == (1,)
    assert items_on(story, 4) == (5,)
    sit = Step("[Sit] <desk> (3)", ok=True, edges_added=((0, "ON", 3),))
    assert items_on(deeds(episode(sit)), 3) == ()


def asked(*steps: Step) -> dict[str, set[tuple[int, ...]]]:
    """Surface -> item sets over all questions about the whole episode that any seed brings."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for seed in range(20):
        for question in questions(episode(*steps), random.Random(seed)):
            if len(question.deeds) == len(steps):
                found.setdefault(question.surface.name, set()).add(question.items)
    return found


def test_nothing_is_asked_where_a_reader_could_disagree() -> None:
    base = (walk(1), grab(1), put(1, 3))
    assert asked(*base) == {"desk": {(1,)}}
    assert asked(walk(4), *base) == {"desk": {(1,)}, "kitchen_counter": {()}}
    eaten = Step("[Eat] <cup> (1)", ok=True)
    assert asked(*base, eaten) == {}
    on_top = put(5, 1)  # shoes on the cup on the desk
    assert asked(*base, on_top) == {}
    inside = Step("[PutIn] <shoes> (5) <desk> (3)", ok=True, edges_added=((5, "INSIDE", 3),))
    assert asked(*base, inside) == {}
    carried = grab(3)
    assert asked(*base, carried) == {}


def test_two_things_of_one_class_are_two_items() -> None:
    story = episode(grab(1), put(1, 3), grab(2), put(2, 3))
    found = [question for seed in range(20) for question in questions(story, random.Random(seed))]
    question = max(found, key=lambda question: len(question.items))
    told = put_into_words(question, random.Random(0))
    assert (told.number, told.sentence) == (
        2,
        "There are 2 items on the desk. They are the first cup and the second cup.",
    )


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([3, 4])), min_size=1, max_size=8), st.integers(0, 9)
)
def test_labels_agree_with_the_final_edges(errands: list[tuple[int, int]], seed: int) -> None:
    where: dict[int, int] = {}
    steps: list[Step] = []
    for thing, place in errands:
        steps += [walk(thing), grab(thing, *([where[thing]] if thing in where else [])), walk(place), put(thing, place)]
        where[thing] = place
    _check_labels(episode(*steps), initial=set(), seed=seed)


def _check_labels(trajectory: Trajectory, initial: set[Edge], seed: int) -> None:
    """Replay all edges up to the end of each story; count what is ON the surface and was put there within it."""
    for question in questions(trajectory, random.Random(seed)):
        lines = [step.action for step in trajectory.steps]
        stories = [
            (start, start + len(question.script))
            for start in range(len(lines))
            if tuple(lines[start : start + len(question.script)]) == question.script
        ]
        assert stories
        readings = []
        for start, stop in stories:
            edges = set(initial)
            for step in trajectory.steps[:stop]:
                edges = (edges - set(step.edges_removed)) | set(step.edges_added)
            surface = question.surface.id
            put_there = {
                int(number)
                for line in lines[start:stop]
                for number in re.findall(rf"^\[PutBack\] <[^>]+> \((\d+)\) <[^>]+> \({surface}\)", line)
            }
            readings.append(
                {node for node, relation, place in edges if (relation, place) == ("ON", surface)} & put_there
            )
        assert set(question.items) in readings


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("virtualhome", "virtualhome_eval")),
    reason="virtualhome or virtualhome-eval is not installed",
)
def test_labels_agree_with_the_simulator() -> None:
    from e2wm_jax.experience.explore.explorer import explore
    from e2wm_jax.worlds.household.homes import scenes
    from e2wm_jax.worlds.household.oracle.virtualhome import VirtualHome

    name = f"robothow:{scenes.program_ids()[0]}"
    scene = scenes.load(name)
    classes = {node.id: node.class_name for node in scene.nodes.values()}
    for seed in range(2):
        steps = tuple(explore(VirtualHome("vh23"), scene, length=25, seed=seed))
        trajectory = Trajectory(str(seed), name, "vh23", "random", seed, steps, classes)
        assert questions(trajectory, random.Random(seed))
        _check_labels(trajectory, initial=set(scene.edges), seed=seed)


def candidates(*numbers: int) -> list[CountQuestion]:
    """One question about a story of its own for every number."""
    found = []
    for index, number in enumerate(numbers):
        done = deeds(episode(Step(f"[Touch] <cup> ({1000 + index})", ok=True)))
        found.append(CountQuestion(f"e{index}", done, Thing("desk", 3), tuple(range(number))))
    return found


def drawn(found: list[CountQuestion], size: int, shares: dict[int, float]) -> Counter[int]:
    return Counter(len(question.items) for question in draw(found, size=size, rng=random.Random(0), shares=shares))


def test_draw_follows_the_official_frequencies() -> None:
    plenty = candidates(*(number for number in range(7) for _ in range(700)))
    assert drawn(plenty, 1000, OFFICIAL_TRAIN) == {0: 235, 1: 513, 2: 196, 3: 46, 4: 6, 5: 4}
    official = [0] * 300 + [1] * 600 + [2] * 20
    few = drawn(candidates(*official), 400, OFFICIAL_TRAIN)  # the rest keep their proportion where twos have run out
    assert few[2] == 20
    assert sum(few.values()) == 400
    assert abs(few[0] / few[1] - 235 / 513) < 0.01


def test_draw_ends_where_one_number_is_left_and_can_balance() -> None:
    assert drawn(candidates(*[0] * 30, *[1] * 50, *[2] * 10), 999, EVEN) == {0: 30, 1: 30, 2: 10}
    assert drawn(candidates(*[0] * 30, *[1] * 50, *[2] * 10), 12, EVEN) == {0: 4, 1: 4, 2: 4}
    assert drawn(candidates(*[1] * 9), 5, OFFICIAL_TRAIN) == {1: 5}
    assert draw([], size=5, rng=random.Random(0)) == []


def test_draw_repeats_no_story_and_no_outcome() -> None:
    one = candidates(2)[0]
    same_story = replace(one, surface=Thing("bed", 8), items=())
    same_outcome = replace(one, deeds=candidates(1, 1)[1].deeds)
    for seed in range(9):
        chosen = draw([same_story, one, same_outcome], size=9, rng=random.Random(seed), shares=EVEN)
        # `same_outcome` and `same_story` have nothing in common but `one`, which takes the place of both.
        assert chosen == [one] or sorted(chosen, key=repr) == sorted([same_story, same_outcome], key=repr)


def told(number: int, source: str) -> CountStory:
    return CountStory(source, f"Story {source}. How many items are there on the desk?", number, f"Answer {number}.")


def test_count_is_the_official_three_shot_prompt() -> None:
    examples = count([told(index, str(index)) for index in range(4)], size=1, rng=random.Random(0))
    assert len(examples) == 1
    header, *solved, last = examples[0].input.split("\n\n")
    assert header.startswith("Given a sequence of actions in a house, and a question about what items")
    assert sorted(solved) == [f"Q: Story {i}. How many items are there on the desk?\nA: Answer {i}." for i in (1, 2, 3)]
    assert last == "Q: Story 0. How many items are there on the desk?\nA:"
    assert examples[0].ref == "Answer 0."


def test_count_shows_no_example_of_the_targets_own_episode() -> None:
    assert count([told(index, "same") for index in range(9)], size=9, rng=random.Random(0)) == []


def test_count_qa_is_the_official_five_shot_prompt_with_varied_numbers() -> None:
    pool = [told(index % 5, str(index)) for index in range(30)] + [told(7, "too many")]
    for example in count_qa(pool, size=99, rng=random.Random(0)):
        *solved, last = example.input.split("\n\n")
        assert sorted(block.split("\nA: ")[1] for block in solved) == list("01234")
        assert last.startswith("Q: Story ")
        assert last.endswith("\nA:")
        assert example.answer_list == ("0", "1", "2", "3", "4")
