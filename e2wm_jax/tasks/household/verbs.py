"""The English of the simulator's verbs: one table for plans ("Walk to sink.") and stories ("She walked to a sink").

Keys are the verbs in capitals, as the executor compares them. `plan` follows E2WM's rules: `{0}` and `{1}` are the
objects' names without articles. `past` lists interchangeable past forms with noun phrases in the same places; where a
verb ends in a particle it is written as for a pronoun ("picked {0} up"; the story says "picked up a cup").
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Phrases:
    """How one verb is written: in a plan (imperative) and in a story (past tense, several ways)."""

    plan: str
    past: tuple[str, ...]


_LOOK = Phrases("Look at {0}", ("looked at {0}",))

ENGLISH = {
    "WALK": Phrases("Walk to {0}", ("walked to {0}", "went to {0}", "headed to {0}")),
    "RUN": Phrases("Run to {0}", ("ran to {0}", "hurried to {0}")),
    "FIND": Phrases("Find {0}", ("found {0}", "spotted {0}")),
    "TURNTO": Phrases("Turn to {0}", ("turned to {0}",)),
    "LOOKAT": _LOOK,
    "LOOKAT_SHORT": _LOOK,
    "LOOKAT_MEDIUM": _LOOK,
    "LOOKAT_LONG": _LOOK,
    "POINTAT": Phrases("Point at {0}", ("pointed at {0}",)),
    "SIT": Phrases("Sit on {0}", ("sat down on {0}", "sat on {0}")),
    "LIE": Phrases("Lie on {0}", ("lay down on {0}", "lay on {0}")),
    "STANDUP": Phrases("Stand up", ("stood up", "got up")),
    "SLEEP": Phrases("Sleep", ("slept for a while",)),
    "WAKEUP": Phrases("Wake up", ("woke up",)),
    "GRAB": Phrases("Grab {0}", ("grabbed {0}", "picked {0} up", "took {0}")),
    "OPEN": Phrases("Open {0}", ("opened {0}",)),
    "CLOSE": Phrases("Close {0}", ("closed {0}", "shut {0}")),
    "PUTBACK": Phrases("Put {0} on {1}", ("put {0} on {1}", "placed {0} on {1}", "set {0} down on {1}")),
    "PUTIN": Phrases("Put {0} in {1}", ("put {0} in {1}", "placed {0} in {1}")),
    "PUTOBJBACK": Phrases("Put back {0}", ("put {0} back", "returned {0}")),
    "DROP": Phrases("Drop {0}", ("dropped {0}",)),
    "RELEASE": Phrases("Release {0}", ("let go of {0}",)),
    "SWITCHON": Phrases("Switch on {0}", ("switched {0} on", "turned {0} on")),
    "SWITCHOFF": Phrases("Switch off {0}", ("switched {0} off", "turned {0} off")),
    "PLUGIN": Phrases("Plug in {0}", ("plugged {0} in",)),
    "PLUGOUT": Phrases("Plug out {0}", ("unplugged {0}",)),
    "WIPE": Phrases("Wipe {0}", ("wiped {0}",)),
    "WASH": Phrases("Wash {0}", ("washed {0}",)),
    "RINSE": Phrases("Rinse {0}", ("rinsed {0}",)),
    "SCRUB": Phrases("Scrub {0}", ("scrubbed {0}",)),
    "PUTON": Phrases("Put on {0}", ("put {0} on",)),
    "PUTOFF": Phrases("Put off {0}", ("took {0} off",)),
    "POUR": Phrases("Pour {0} into {1}", ("poured {0} into {1}",)),
    "DRINK": Phrases("Drink {0}", ("drank from {0}",)),
    "READ": Phrases("Read {0}", ("read {0}",)),
    "EAT": Phrases("Eat {0}", ("ate from {0}",)),
    "CUT": Phrases("Cut {0}", ("cut {0}",)),
    "TOUCH": Phrases("Touch {0}", ("touched {0}",)),
    "TYPE": Phrases("Type on {0}", ("typed on {0}",)),
    "WATCH": Phrases("Watch {0}", ("watched {0}",)),
    "PUSH": Phrases("Push {0}", ("pushed {0}",)),
    "PULL": Phrases("Pull {0}", ("pulled {0}",)),
    "MOVE": Phrases("Move {0}", ("moved {0}",)),
    "SQUEEZE": Phrases("Squeeze {0}", ("squeezed {0}",)),
    "GREET": Phrases("Greet {0}", ("greeted {0}",)),
}

# The first words of `past` as in "after walking to {0}".
GERUNDS = {
    "ate": "eating",
    "closed": "closing",
    "cut": "cutting",
    "drank": "drinking",
    "dropped": "dropping",
    "found": "finding",
    "got": "getting",
    "grabbed": "grabbing",
    "greeted": "greeting",
    "headed": "heading",
    "hurried": "hurrying",
    "lay": "lying",
    "let": "letting",
    "looked": "looking",
    "moved": "moving",
    "opened": "opening",
    "picked": "picking",
    "placed": "placing",
    "plugged": "plugging",
    "pointed": "pointing",
    "poured": "pouring",
    "pulled": "pulling",
    "pushed": "pushing",
    "put": "putting",
    "ran": "running",
    "read": "reading",
    "returned": "returning",
    "rinsed": "rinsing",
    "sat": "sitting",
    "scrubbed": "scrubbing",
    "set": "setting",
    "shut": "shutting",
    "slept": "sleeping",
    "spotted": "spotting",
    "squeezed": "squeezing",
    "stood": "standing",
    "switched": "switching",
    "took": "taking",
    "touched": "touching",
    "turned": "turning",
    "typed": "typing",
    "unplugged": "unplugging",
    "walked": "walking",
    "washed": "washing",
    "watched": "watching",
    "went": "going",
    "wiped": "wiping",
    "woke": "waking",
}
