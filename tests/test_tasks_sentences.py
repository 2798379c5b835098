"""Script lines, conditions and examples as text, against sentences written by hand."""

import pytest

from e2wm_jax.errors import InputError
from e2wm_jax.tasks.example import Choice, Generation, from_json
from e2wm_jax.tasks.household.sentences import (
    action_sentence,
    condition_sentence,
    condition_sentences,
    plan_text,
    succeeded,
)
from e2wm_jax.tasks.household.verbs import ENGLISH
from e2wm_jax.worlds.household.changes import Step
from e2wm_jax.worlds.household.rules import VERBS


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("[Walk] <home_office> (319)", "Walk to home office."),
        ("[RUN] <home_office> (1.319)", "Run to home office."),
        ("[Sit] <chair> (356)", "Sit on chair."),
        ("[LIE] <bed> (105)", "Lie on bed."),
        ("[Type] <keyboard> (415)", "Type on keyboard."),
        ("[StandUp]", "Stand up."),
        ("[WAKEUP]", "Wake up."),
        ("[LookAt] <computer> (417)", "Look at computer."),
        ("[LOOKAT_SHORT] <computer> (417)", "Look at computer."),
        ("[TURNTO] <computer> (417)", "Turn to computer."),
        ("[SWITCHON] <computer> (417)", "Switch on computer."),
        ("[PlugIn] <dvd_player> (1)", "Plug in dvd player."),
        ("[PutBack] <food_food> (1000) <table> (2)", "Put food food on table."),
        ("[PUTIN] <shoes> (3) <dresser> (4)", "Put shoes in dresser."),
        ("[PutOn] <shoes> (3)", "Put on shoes."),
        ("[PUTOFF] <shoes> (3)", "Put off shoes."),
        ("[PutObjBack] <rag> (3)", "Put back rag."),
        ("[POUR] <water> (5) <hands_both> (6)", "Pour water into hands both."),
        ("[Grab] <remote_control> (7)", "Grab remote control."),
    ],
)
def test_action_sentence(line: str, sentence: str) -> None:
    assert action_sentence(line) == sentence


def test_every_verb_of_the_world_has_english_for_its_objects() -> None:
    assert ENGLISH.keys() == VERBS.keys()
    for name, phrases in ENGLISH.items():
        arity = VERBS[name].arity
        for text in (phrases.plan, *phrases.past):
            assert [f"{{{index}}}" in text for index in range(2)] == [arity > 0, arity > 1], (name, text)


def test_action_sentence_refuses_what_it_cannot_read() -> None:
    with pytest.raises(InputError, match="fly"):
        action_sentence("[fly] <kite> (1)")
    with pytest.raises(InputError, match="takes 2"):
        action_sentence("[PutBack] <cup> (1)")


def test_only_steps_that_did_something_are_told() -> None:
    failed = Step("[Open] <fridge> (1)", ok=False, messages=("<fridge> (1) is not closed",))
    vain = Step(
        "[PutObjBack] <cup> (2)", ok=True, messages=("<cup> (2) not close",)
    )  # VirtualHome calls this a success
    odd = Step("[PlugOut] <tv> (3)", ok=True, messages=("<tv> (3) is still on",), states_added=((3, "PLUGGED_OUT"),))
    plain = Step("[TurnTo] <tv> (3)", ok=True)
    assert [succeeded(step) for step in (failed, vain, odd, plain)] == [False, False, True, True]
    assert plan_text([failed, vain, odd, plain]) == "Plug out tv. Turn to tv."


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("book || INSIDE || home_office", "The book is in the home office."),
        ("book || INSIDE || filing_cabinet", "The book is inside the filing cabinet."),
        ("filing_cabinet || CLOSED", "The filing cabinet is closed."),
        ("computer || OFF", "The computer is off."),
        ("light || ON", "The light is on."),
        ("dvd_player || PLUGGED_IN", "The dvd player is plugged."),
        ("character || SITTING", "The character is sitting."),
        ("couch || FACING || television", "The couch is facing the television."),
        ("cup || ON || table", "The cup is on the table."),
        ("cup || CLEAN", ""),
    ],
)
def test_condition_sentence(condition: str, sentence: str) -> None:
    assert condition_sentence(condition) == sentence


def test_conditions_say_rooms_then_states_then_containers() -> None:
    conditions = ["box || CLOSED", "pen || INSIDE || box", "box || INSIDE || bedroom", "box || INSIDE || bedroom"]
    assert condition_sentences(conditions) == [
        "The box is in the bedroom.",
        "The box is in the bedroom.",
        "The box is closed.",
        "The pen is inside the box.",
    ]


@pytest.mark.parametrize("condition", ["book", "book || FLYING", "book || NEAR || desk", "a || ON || b || c"])
def test_unknown_conditions_are_refused(condition: str) -> None:
    with pytest.raises(InputError, match="is not a condition"):
        condition_sentence(condition)


def test_examples_keep_the_official_keys_in_order() -> None:
    generation = Generation("Q: How?\nA:", "So.")
    choice = Choice("Where?\nAnswer:", "kitchen", ("hallway", "kitchen"))
    assert list(generation.to_json()) == ["input", "ref"]
    assert list(choice.to_json()) == ["input", "answer", "answer_list"]
    assert from_json(generation.to_json()) == generation
    assert from_json(choice.to_json()) == choice


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"input": "Q"}, "a.json:3: needs a text field 'ref', found none"),
        ({"input": 5, "ref": "x"}, "a.json:3: needs a text field 'input', found int"),
        ({"input": "Q", "answer": "a", "answer_list": "ab"}, "a.json:3: answer_list must be a list of texts"),
        ({"input": "Q", "answer": "c", "answer_list": ["a", "b"]}, "a.json:3: answer 'c' must occur exactly once"),
    ],
)
def test_malformed_examples_are_refused(record: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        from_json(record, where="a.json:3")
    assert str(error.value).startswith(message)
