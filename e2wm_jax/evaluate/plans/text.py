"""Plan sentences read back as actions: the inverse of `tasks.household.sentences.action_sentence`.

"Put soap on sink." says what to do in class names; which soap it means, `plan_steps` finds out. Some sentences can be
read in several ways ("Put on coat on bed."), so reading one gives all, the one with most fixed words first.
"""

import re
from typing import NamedTuple

from e2wm_jax.tasks.household.verbs import ENGLISH
from e2wm_jax.worlds.household.rules import VERBS

_ARTICLES = re.compile(r"^(?:the|an?)\s+", re.IGNORECASE)


class Meaning(NamedTuple):
    """One way to read a sentence."""

    verb: str  # as in `rules.VERBS`: "PutBack"
    names: tuple[str, ...]  # objects as class names: "home_office"


def sentences(plan: str) -> list[str]:
    """The sentences of a plan, without their full stops; class names have none."""
    return [sentence for part in plan.split(".") if (sentence := " ".join(part.split()))]


def meanings(sentence: str) -> tuple[Meaning, ...]:
    """All ways to read a sentence as an action, in any case and with or without articles; () where there is none.

    "Look at" has four verbs, which do the same: it is read as LookAt.
    """
    found = []
    for verb, form in _FORMS:
        found += [Meaning(verb, tuple(map(_class_name, names))) for names in _fits(form, sentence)]
    return tuple(dict.fromkeys(found))


def _class_name(words: str) -> str:
    return _ARTICLES.sub("", words.strip()).strip().lower().replace(" ", "_")


def _fits(form: tuple[str, ...], sentence: str) -> list[tuple[str, ...]]:
    """The names in the gaps of a form's words ("put", "on") in all ways to place these; fixed words are ("stand up",)
    where there is no gap."""
    first, *between = form
    if not between:
        return [()] if sentence.lower() == first else []
    if not sentence.lower().startswith(f"{first} "):
        return []
    rest = sentence[len(first) + 1 :]
    if between == [""]:
        return [(rest,)]
    cuts = [match.span() for match in re.finditer(rf"(?<=\S) {between[0]} (?=\S)", rest, re.IGNORECASE)]
    return [(rest[:start], rest[end:]) for start, end in cuts]


def _forms() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Verbs with the words around the gaps of their sentence: ("PutBack", ("put", "on")), ("Walk", ("walk to", ""))."""
    forms: dict[tuple[str, ...], str] = {}
    for name, phrases in ENGLISH.items():
        words = re.split(r"\{[01]\}", phrases.plan.lower())
        form = tuple(word.strip() for word in (words[:-1] if len(words) == 3 else words))
        forms.setdefault(form, VERBS[name].name)
    ordered = sorted(forms.items(), key=lambda item: -len(" ".join(item[0]).split()))
    return tuple((verb, form) for form, verb in ordered)


_FORMS = _forms()
