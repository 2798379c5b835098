"""What follows from the table of rules, against the same written out by hand."""

from e2wm_jax.experience.search import moves
from e2wm_jax.worlds.household.rules import RULES, VERB_INDEX, VERBS

# Verb: what its things must be like, by any of these properties or classes
SQUEEZABLE = (
    "CLOTHES cleaning_solution tooth_paste shampoo food_peanut_butter dish_soap soap towel rag paper sponge "
    "food_lemon check"
)
NEEDS = {
    "Walk": [""], "Run": [""], "Find": [""], "TurnTo": [""], "LookAt": [""], "LookAt_Short": [""],
    "LookAt_Medium": [""], "LookAt_Long": [""], "PointAt": [""], "Watch": ["LOOKABLE"], "Sit": ["SITTABLE"],
    "Lie": ["LIEABLE"], "StandUp": [], "Sleep": [], "WakeUp": [], "Grab": ["GRABBABLE water child"],
    "PutBack": ["", ""], "PutIn": ["", ""], "PutObjBack": [""], "Drop": [""], "Release": [""],
    "Open": ["CAN_OPEN desk window"], "Close": ["CAN_OPEN desk window"], "SwitchOn": ["HAS_SWITCH"],
    "SwitchOff": ["HAS_SWITCH"], "PlugIn": ["HAS_PLUG"], "PlugOut": ["HAS_PLUG"],
    "Pour": ["POURABLE DRINKABLE", "RECIPIENT hands_both sponge face"], "Drink": ["DRINKABLE RECIPIENT"], "Eat": [""],
    "Cut": ["EATABLE"], "Read": ["READABLE"], "Type": ["keyboard HAS_SWITCH"], "Touch": [""], "Push": [""],
    "Pull": ["MOVABLE button chair curtain"], "Move": ["MOVABLE button chair curtain"], "Squeeze": [SQUEEZABLE],
    "Wipe": [""], "Wash": [""], "Rinse": [""], "Scrub": [""], "PutOn": ["CLOTHES"], "PutOff": ["CLOTHES"],
    "Greet": ["PERSON"],
}  # fmt: skip


def test_verbs_arities_and_what_fits_follow_from_the_rules():
    assert {rule.name: list(map(set, rule.needs)) for rule in RULES} == {
        name: [set(words.split()) for words in needs] for name, needs in NEEDS.items()
    }
    assert [rule.name for rule in RULES] == list(NEEDS)
    assert [rule.arity for rule in RULES] == list(map(len, NEEDS.values()))
    assert list(VERBS) == list(VERB_INDEX) == [name.upper() for name in NEEDS]


def test_what_moves_need_follows_from_the_rules():
    assert moves.NEEDS_STATE == {
        "Open": "CLOSED",
        "Close": "OPEN",
        "SwitchOn": "OFF",
        "SwitchOff": "ON",
        "PlugIn": "PLUGGED_OUT",
        "PlugOut": "PLUGGED_IN",
    }
    assert {"PutObjBack", "Drop", "PutOn", "PutBack", "PutIn", "Pour"} == moves.NEEDS_HOLDING
    assert {"Wipe"} == moves.NEEDS_HANDS_FULL
