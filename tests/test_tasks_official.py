"""The released E2WM files as a yardstick: they load, our labels are theirs, and our texts have their form.

They have no licence and are not part of the repository: found in ``$E2WM_DATA`` or ``../shared/data``, or skipped.
"""

import os
import random
import re
from functools import cache
from pathlib import Path

import pytest

from e2wm_jax.storage.files import read_json_lines
from e2wm_jax.tasks.example import Choice, Example, Generation, from_json
from e2wm_jax.tasks.household import confusing, housework, inference, plan, qa, tracking
from e2wm_jax.tasks.household.counting import CountStory, answer, count
from e2wm_jax.tasks.household.knowledge import Activity
from e2wm_jax.tasks.household.plan import TaskPlan
from e2wm_jax.tasks.leakage import LeakageError, check_leakage, facts

DATA = Path(os.environ.get("E2WM_DATA", Path(__file__).parents[2] / "shared/data")) / "e2wm"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no released E2WM files in {DATA}; set E2WM_DATA")

KINDS = {verb: kind for kind, verbs in tracking.PHRASES.items() for verb in verbs}
SENTENCE = re.compile(rf"(\w+) ({'|'.join(KINDS)}) the ([a-z ]+)")


@cache
def official(name: str) -> list[Example]:
    path = DATA / f"{name}.gz"
    return [from_json(record, where=f"{path}:{number}") for number, record in read_json_lines(path)]


def read_story(text: str) -> tracking.Story:
    matches = [SENTENCE.fullmatch(sentence) for sentence in text.removesuffix(".").split(". ")]
    return tuple(tracking.Event(match[1], KINDS[match[2]], match[3]) for match in matches)  # type: ignore


@pytest.mark.parametrize(
    ("name", "size", "kind"),
    [
        ("train/train_plan_gen.json", 1659, Generation),
        ("train/train_act_recog.json", 1659, Generation),
        ("train/train_count.json", 1000, Generation),
        ("train/train_obj_move.json", 1000, Generation),
        ("eval/gen/plan_gen.json", 175, Generation),
        ("eval/gen/plan_gen_unseen.json", 54, Generation),
        ("eval/gen/plan_gen_confusing.json", 135, Generation),
        ("eval/gen/plan_gen_unseen_confusing.json", 43, Generation),
        ("eval/gen/obj_move_path.json", 200, Generation),
        ("eval/qa/act_recog.json", 549, Choice),
        ("eval/qa/act_infer.json", 262, Choice),
        ("eval/qa/housework_qa.json", 261, Choice),
        ("eval/qa/neg_housework_qa.json", 162, Choice),
        ("eval/qa/obj_move.json", 200, Choice),
        ("eval/qa/count.json", 194, Choice),
    ],
)
def test_official_files_load(name: str, size: int, kind: type) -> None:
    examples = official(name)
    assert len(examples) == size
    assert {type(example) for example in examples} == {kind}


@pytest.mark.parametrize("name", ["train/train_obj_move.json", "eval/gen/obj_move_path.json"])
def test_our_paths_are_the_official_ones_in_every_block(name: str) -> None:
    for example in official(name):
        for block in f"{example.input} {example.gold}".split("\n\n"):
            story, thing, path = re.fullmatch(r"(.*)\n.* where the (.*) appeared\?\nAnswer: (.*)", block).groups()  # type: ignore
            assert ", ".join(tracking.room_path(read_story(story), thing)) == path
            assert (thing, tuple(path.split(", "))) in tracking.askable(read_story(story))


def test_our_before_and_after_are_the_official_ones() -> None:
    for example in official("eval/qa/obj_move.json"):
        target = f"{example.input} {example.gold}".split("\n\n")[-1]
        story, thing, relation, room, gold = re.fullmatch(
            r"(.*)\nQuestion: Where was the (.*) (before|after) the (.*)\?\nAnswer: (.*)", target
        ).groups()  # type: ignore
        path = tracking.room_path(read_story(story), thing)
        assert path[path.index(room) + (1 if relation == "after" else -1)] == gold
        assert isinstance(example, Choice)
        assert example.answer_list == tracking.ROOMS


def test_official_stories_are_ones_that_we_could_tell() -> None:
    for example in official("train/train_obj_move.json"):
        for block in example.input.split("\n\n"):
            place: dict[str, str] = {}
            for event in read_story(block.split("\n")[0]):
                assert event.person in tracking.PEOPLE
                if event.kind == "move":
                    assert event.what in set(tracking.ROOMS) - {place.get(event.person)}
                    place[event.person] = event.what
                elif event.kind == "get":
                    assert event.what in tracking.OBJECTS[place[event.person]]


def shape(example: Example) -> str:
    """The prompt with everything that varies taken out; equal shapes mean equal punctuation, labels and line breaks."""
    text = re.sub(r"(?<=Q: How to )[^?\n]*\?.*", "*", example.input)
    text = re.sub(r"(?<=as follows:\n).*|(?<=Given a task plan: ).*", "*", text)
    # A few of the official stories run over several lines.
    text = re.sub(r"(?<=Q: )(?!What|How to )(?:.|\n)*? How many items are there on the [^?]*", "*", text)
    text = re.sub(r"^.*(?=\nQuestion: (?:What is the order|Where))", "*", text, flags=re.MULTILINE)
    text = re.sub(r"where the .* appeared|(?<=Where )(?:was|is) the .* (?:before|after) the [^?]*", "*", text)
    text = re.sub(r"^.*(?=\nQuestion: Given the above)|(?<=^Answer:)\w.*", "*", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=^Question: To ).*(?=, a )|(?<=^[B-D]: ).*", "*", text, flags=re.MULTILINE)
    return re.sub(r"(?<=^A: ).*|(?<=^Answer: ).*", "*", text, flags=re.MULTILINE)


PLANS = [
    TaskPlan(
        f"do {name}",
        f"How to do {name}? Given items include {name}.",
        f"Walk to {name}.",
        frozenset(name),
        items=(f"{name}1", f"{name}2", f"{name}3"),
        conditions=(f"{name}1 || INSIDE || kitchen",),
        change=frozenset([f"{name}1 || ON"]),
    )
    for name in "bcdefghijklmnopq"
]
KNOWN = {one.task: Activity(frozenset([one.change]), frozenset(one.items)) for one in PLANS}
STORIES = [
    CountStory(
        str(i),
        f"Anna was at home. {i}. How many items are there on the desk?",
        i % 3,
        answer("desk", ["cup"] * (i % 3)),
    )
    for i in range(9)
]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("train/train_plan_gen.json", lambda rng: plan.plan_gen(PLANS, size=1, rng=rng)),
        ("train/train_act_recog.json", lambda rng: plan.act_recog(PLANS, size=1, rng=rng)),
        ("train/train_count.json", lambda rng: count(STORIES, size=1, rng=rng)),
        ("train/train_obj_move.json", lambda rng: tracking.obj_move_path(rng, size=1, seen=set())),
        ("eval/gen/plan_gen.json", lambda rng: plan.plan_gen(PLANS, size=1, rng=rng)),
        ("eval/gen/plan_gen_unseen.json", lambda rng: plan.plan_gen(PLANS, size=1, rng=rng, tasks={"do b"})),
        (
            "eval/gen/plan_gen_confusing.json",
            lambda rng: plan.plan_gen(PLANS, size=1, rng=rng, reword=confusing.distraction(PLANS, KNOWN, rng)),
        ),
        ("eval/gen/obj_move_path.json", lambda rng: tracking.obj_move_path(rng, size=1, seen=set())),
        ("eval/qa/act_recog.json", lambda rng: qa.act_recog(PLANS, PLANS, size=1, rng=rng)),
        ("eval/qa/act_infer.json", lambda rng: inference.act_infer(PLANS, PLANS, KNOWN, size=1, rng=rng)),
        ("eval/qa/housework_qa.json", lambda rng: housework.housework_qa(PLANS, KNOWN, size=1, rng=rng)),
        ("eval/qa/neg_housework_qa.json", lambda rng: housework.neg_housework_qa(PLANS, KNOWN, size=1, rng=rng)),
        ("eval/qa/obj_move.json", lambda rng: qa.obj_move(rng, size=1, seen=set())),
        ("eval/qa/count.json", lambda rng: qa.count(STORIES, size=1, rng=rng)),
    ],
)
def test_our_prompts_have_the_official_shape(name: str, ours) -> None:  # type: ignore[no-untyped-def]
    (example,) = ours(random.Random(0))
    assert {shape(example)} == {shape(one) for one in official(name)}


def test_the_leakage_check_finds_that_official_counting_stories_are_in_both_halves() -> None:
    names = ("train/train_count.json", "eval/qa/count.json")
    train, held_out = (facts(name, official(name)) for name in names)
    assert len(held_out & train) > 0.95 * len(held_out)
    with pytest.raises(LeakageError, match="train and eval share a story"):
        check_leakage({name: official(name) for name in names})
    paths = ("train/train_obj_move.json", "eval/gen/obj_move_path.json")
    check_leakage({name: official(name) for name in paths})


def test_our_count_answers_have_the_official_form() -> None:
    form = re.compile(
        r"There is no item on the [a-z ]+\.|There is one item on the [a-z ]+\. It is the .+\."
        r"|There are \d items on the [a-z ]+\. They are (the .+ and the .+|the .+, and the .+)\."
    )
    theirs = [example.gold for example in official("train/train_count.json")]
    assert sum(form.fullmatch(text) is not None for text in theirs) > 0.95 * len(theirs)
    assert all(form.fullmatch(answer("desk", list("abcd")[:number])) for number in range(5))


def test_every_sentence_of_the_official_training_plans_can_be_written() -> None:
    """Their plans use our sentences: the verb phrases are those of the table."""
    from e2wm_jax.tasks.household.verbs import ENGLISH

    forms = [
        re.compile(re.escape(phrases.plan).replace(r"\{0\}", "[a-z ]+").replace(r"\{1\}", "[a-z ]+") + r"\.")
        for phrases in ENGLISH.values()
    ]
    sentences = {
        sentence + "."
        for example in official("train/train_plan_gen.json")
        for sentence in example.gold.removesuffix(".").split(". ")
    }
    assert not [sentence for sentence in sentences if not any(form.fullmatch(sentence) for form in forms)]


def test_our_states_are_told_in_official_sentences() -> None:
    """Every sentence form of the official states but their spelling of names is one of ours."""
    forms = [form.replace("{all}", "{0}") for form in inference._FORMS.values()]
    person = f"(?:{'|'.join(inference.PEOPLE)})"
    patterns = [
        re.compile(re.sub(r"\\\{\d\\\}", "[a-z, -]+", re.escape(form)).replace(r"\{person\}", person)) for form in forms
    ]
    theirs = {
        sentence
        for example in official("eval/qa/act_infer.json")
        for state in re.findall(r"^(.*)\nQuestion: Given", example.input, re.MULTILINE)
        for sentence in re.findall(r"[^ .][^.]*\.", state)
    }
    unlike = [one for one in theirs if not any(pattern.fullmatch(one) for pattern in patterns)]
    assert len(unlike) < 0.03 * len(theirs), unlike
    assert all(re.search(f"on {person.lower()}", one) for one in unlike)  # "The shoes is on peter."
