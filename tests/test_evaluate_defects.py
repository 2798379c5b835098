"""What is wrong with evaluation sets: made-up ones by hand, the released ones by their known numbers."""

from pathlib import Path

import pytest

from e2wm_jax.evaluate.defects import Asked, Defects, asked, cleaned, find, questions, read_training, story
from e2wm_jax.evaluate.sets import find_sets, read_set


def test_questions_of_a_prompt_with_solved_examples():
    plan = "Q: How to rest? Given items include bed.\nA: Walk to bed.\nQ: How to eat?\nA:"
    assert questions(plan) == ["Q: How to rest? Given items include bed.", "Q: How to eat?"]
    count = "A header for all.\n\nQ: Tom came. How many?\nA: 1\n\nQ: Ann left. How many?\nA:"
    assert questions(count) == ["Q: Tom came. How many?", "Q: Ann left. How many?"]
    state = "Tom is there.\nQuestion: What?\nAnswer:wash\n\nMary sits.\nQuestion: What?\nAnswer:"
    assert questions(state) == ["Tom is there.\nQuestion: What?", "Mary sits.\nQuestion: What?"]
    assert [story(one) for one in questions(state)] == ["Tom is there.", "Mary sits."]
    options = "Question: not of it\nA: x\nB: y\nAnswer: x\n\nQuestion: nor of that\nA: u\nB: v\nAnswer:"
    assert questions(options) == ["Question: not of it\nA: x\nB: y", "Question: nor of that\nA: u\nB: v"]
    assert questions("one line") == ["one line"]
    assert story("one line") == "one line"


def test_a_constant_place_and_a_frequent_one():
    always = [Asked(str(i), "d", ("a", "b", "c", "d")) for i in range(9)]
    assert find("x", always).notes[0].startswith("the right answer is always number 4 of 4")
    assert find("x", always[:1]).notes == ()
    # 30 of 40 of two: exp(-2 * 40 / 16) * 2 = .0135 is no surprise; 60 of 80 is.
    for n, notes in ((40, ()), (80, ("always giving 'no' scores 75.0 % (60 of 80)",))):
        some = [Asked(str(i), "no" if i % 4 else "yes", ("yes", "no")) for i in range(n)]
        assert find("x", some).notes == notes


def test_overlap_ambiguity_and_leaks_of_made_up_sets(tmp_path):
    def ask(text: str) -> str:
        return f"Q: solved?\nA: yes\nQ: {text}\nA:"

    train = tmp_path / "train_x.json"
    train.write_text(
        '{"input": "Q: one?\\nA: yes\\nQ: two?\\nA:", "ref": "no"}\n{"input": "Q: three?\\nA:", "ref": "no"}\n'
    )
    mine = [Asked(ask(text), answer) for text, answer in (("one?", "a"), ("two?", "b"), ("six?", "c"), ("six?", "d"))]
    other = [mine[3], mine[1]]
    found = find("mine", mine, {"mine": mine, "small": other, "large": [*mine, *mine]}, read_training([train]))
    assert found.flags == {"ambiguous": {2, 3}, "in small": {1, 3}, "in train_x": {0, 1}}
    assert found.notes == (
        "inputs that occur with different answers: 1 (2 examples)",
        "2 of 4 examples are also in small, which is all of it",
        "2 of 4 questions occur word for word in train_x (1 as targets, 1 as solved examples of prompts)",
        "no example is free of these, so there is no clean score",
    )
    assert find("small", other, {"mine": mine, "small": other}).flags == {}  # it is the larger one that contains it


def test_cleaned_scores_by_hand():
    found = Defects((), {"a": frozenset({1, 4}), "b": frozenset({4, 9})})
    scores = {"accuracy": [1.0, 0.0, 1.0, 0.0]}
    assert cleaned(scores, [0, 1, 4, 7], found) == {
        "clean": {"accuracy": 0.5, "n": 2, "without": ["a", "b"]},
        "parts": {
            "a": {"with": {"accuracy": 0.5, "n": 2}, "without": {"accuracy": 0.5, "n": 2}},
            "b": {"with": {"accuracy": 1.0, "n": 1}, "without": {"accuracy": pytest.approx(1 / 3), "n": 3}},
        },
    }
    assert cleaned({"lcs": [1.0]}, [4], found)["clean"] == {"lcs": None, "n": 0, "without": ["a", "b"]}
    assert cleaned(scores, [0, 1, 4, 7], Defects(("note",), {})) == {}


@pytest.fixture(scope="module")
def released(shared_data) -> dict[str, Defects]:
    """The defects of all eleven released sets."""
    texts = {one.name: asked(read_set(one)) for one in find_sets(shared_data / "e2wm/eval")}
    training = read_training(sorted(Path(shared_data / "e2wm/train").glob("*.json.gz")))
    return {name: find(name, examples, texts, training) for name, examples in texts.items()}


def test_the_released_sets_have_their_known_defects(released):
    """The numbers of two independent readings of the files, but for the plans' questions, which are counted here."""
    assert {name: {label: len(found) for label, found in one.flags.items()} for name, one in released.items()} == {
        "act_infer": {"ambiguous": 12},
        "act_recog": {},
        "count": {"in train_count": 194},
        "housework_qa": {},
        "neg_housework_qa": {},
        "obj_move": {},
        "obj_move_path": {},
        "plan_gen": {"in plan_gen_unseen": 54, "in train_plan_gen": 101},
        "plan_gen_confusing": {"in plan_gen_unseen_confusing": 43, "in train_plan_gen": 21},
        "plan_gen_unseen": {},
        "plan_gen_unseen_confusing": {},
    }
    assert released["act_infer"].notes == ("inputs that occur with different answers: 6 (12 examples)",)
    assert [note.split(":")[0] for note in released["act_recog"].notes] == ["the right answer is always number 4 of 4"]
    assert released["count"].notes == (
        "always giving '1' scores 51.5 % (100 of 194)",
        "194 of 194 questions occur word for word in train_count (50 as targets, 144 as solved examples of prompts)",
        "no example is free of these, so there is no clean score",
    )
    assert released["plan_gen"].notes[0] == "54 of 175 examples are also in plan_gen_unseen, which is all of it"
    assert released["plan_gen_confusing"].notes[0] == (
        "43 of 135 examples are also in plan_gen_unseen_confusing, which is all of it"
    )


def test_without_training_files_no_leak_is_claimed(shared_data):
    (one,) = find_sets(shared_data / "e2wm/eval/qa/count.json.gz")
    found = find("count", asked(read_set(one)))
    assert found.flags == {}
    assert found.notes == ("always giving '1' scores 51.5 % (100 of 194)",)
