"""What is wrong with an evaluation set, found in the files themselves.

    position     the right answer always stands at the same place
    majority     one place is right far more often than chance
    ambiguous    the same input occurs with different answers
    overlap      the set contains examples of another one, e.g. a "seen" set all of the unseen one
    leak         questions or stories occur word for word in training files, as what is asked or as a solved example

The last three belong to single examples, so that scores can be given with and without them (`cleaned`).

An input is read as E2WM's prompts are built: solved examples, then a question, and a cue on its last line ("A:") which
is answered in every example.  A question of several lines is the text it is about, its story, and the line that asks.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from e2wm_jax.data.source import Question, TaskExample, read_task

_CHANCE = 0.01  # a majority that equal places show less often than this is one


class Asked(NamedTuple):
    """One example of an evaluation set."""

    input: str
    answer: str
    choices: tuple[str, ...] = ()


class Defects(NamedTuple):
    """What was found in one set."""

    notes: tuple[str, ...]  # one sentence each
    flags: dict[str, frozenset[int]]  # "in train_count" -> indices of examples


class Training(NamedTuple):
    """Questions and stories of a training file."""

    targets: frozenset[str]  # what its rows ask
    examples: frozenset[str]  # what the solved examples in their prompts ask


def asked(examples: Sequence[Question | TaskExample]) -> list[Asked]:
    """What defects are looked for in."""
    return [
        Asked(one.input, one.answers[one.gold], one.answers) if isinstance(one, Question) else Asked(one.input, one.ref)
        for one in examples
    ]


def read_training(paths: Iterable[Path]) -> dict[str, Training]:
    """Questions and stories of training files {"input", "ref"}, by the files' names without endings.

    Raises:
        InputError: naming file:line for a malformed row.
    """
    found: dict[str, Training] = {}
    for path in paths:
        targets: set[str] = set()
        examples: set[str] = set()
        for row in read_task(path):
            *solved, last = questions(row.input)
            targets |= {last, story(last)}
            examples |= {text for question in solved for text in (question, story(question))}
        name = path.name.split(".")[0]
        before = found.get(name, Training(frozenset(), frozenset()))
        found[name] = Training(before.targets | targets, before.examples | examples)
    return found


def questions(prompt: str) -> list[str]:
    """The questions of a prompt, those of its solved examples first, without cues, answers and the header."""
    body, newline, cue = prompt.rstrip().rpartition("\n")
    if not newline:
        return [cue]
    blocks = body.split(f"\n{cue}")
    # A block behind the first begins with the answer to the one before; a header ends with an empty line.
    texts = [blocks[0], *(block.partition("\n")[2] for block in blocks[1:])]
    return [text.strip().split("\n\n")[-1] for text in texts]


def story(question: str) -> str:
    """What a question is about: all its lines but the one that asks, or all of a single line."""
    return question.rpartition("\n")[0] or question


def find(
    name: str,
    examples: Sequence[Asked],
    others: Mapping[str, Sequence[Asked]] | None = None,
    training: Mapping[str, Training] | None = None,
) -> Defects:
    """Everything that is wrong with a set.

    Args:
        others: further sets by name; this one may be among them.
        training: from `read_training`.
    """
    notes: list[str] = []
    flags: dict[str, frozenset[int]] = {}
    notes += _positions(examples)
    for label, found, note in (
        _ambiguous(examples),
        *(_overlap(examples, other, own) for other, own in (others or {}).items() if other != name),
        *(_leaks(examples, source, facts) for source, facts in (training or {}).items()),
    ):
        if found:
            flags[label] = found
            notes.append(note)
    if flags and not set(range(len(examples))) - frozenset().union(*flags.values()):
        notes.append("no example is free of these, so there is no clean score")
    return Defects(tuple(notes), flags)


def cleaned(scores: Mapping[str, Sequence[float]], indices: Sequence[int], defects: Defects) -> dict[str, Any]:
    """Mean scores of the examples without any flag, and with and without each; nothing if there are no flags.

    Args:
        scores: metric -> one value per example.
        indices: of these examples in their file.

    Returns:
        "clean": {metric: mean or None, "n", "without": labels}, "parts": {label: {"with": {metric: mean or None, "n"},
        "without": {...}}}.
    """
    if not defects.flags:
        return {}

    def means(kept: set[int]) -> dict[str, Any]:
        chosen = {
            name: [x for x, i in zip(values, indices, strict=True) if i in kept] for name, values in scores.items()
        }
        n = sum(i in kept for i in indices)
        return {**{name: sum(values) / n if n else None for name, values in chosen.items()}, "n": n}

    everything = set(indices)
    flagged = everything & frozenset().union(*defects.flags.values())
    return {
        "clean": {**means(everything - flagged), "without": list(defects.flags)},
        "parts": {
            label: {"with": means(everything & found), "without": means(everything - found)}
            for label, found in defects.flags.items()
        },
    }


def _positions(examples: Sequence[Asked]) -> list[str]:
    """Where the right answers stand."""
    if not examples or not all(example.choices for example in examples):
        return []
    n, places = len(examples), Counter(example.choices.index(example.answer) for example in examples)
    place, number = places.most_common(1)[0]
    options = max(len(example.choices) for example in examples)
    if number == n > 1:
        return [
            f"the right answer is always number {place + 1} of {options}: harmless to likelihoods, fatal where letters "
            "or numbers of answers are asked for"
        ]
    # Hoeffding's bound, for each of the places, on a share so far above that of equal places.
    excess = number / n - 1 / min(len(example.choices) for example in examples)
    if excess <= 0 or options * math.exp(-2 * n * excess**2) > _CHANCE:
        return []
    here = {example.choices[place] for example in examples if len(example.choices) > place}
    what = f"{next(iter(here))!r}" if len(here) == 1 else f"answer number {place + 1}"
    return [f"always giving {what} scores {100 * number / n:.1f} % ({number} of {n})"]


def _ambiguous(examples: Sequence[Asked]) -> tuple[str, frozenset[int], str]:
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(example.input, set()).add(example.answer)
    found = frozenset(i for i, example in enumerate(examples) if len(answers[example.input]) > 1)
    inputs = sum(len(own) > 1 for own in answers.values())
    return "ambiguous", found, f"inputs that occur with different answers: {inputs} ({len(found)} examples)"


def _overlap(examples: Sequence[Asked], other: str, theirs: Sequence[Asked]) -> tuple[str, frozenset[int], str]:
    """Examples of a set that is no larger."""
    pairs = {(one.input, one.answer) for one in theirs} if len(theirs) <= len(examples) else set()
    found = frozenset(i for i, one in enumerate(examples) if (one.input, one.answer) in pairs)
    everything = (
        ", which is all of it" if len({(examples[i].input, examples[i].answer) for i in found}) == len(pairs) else ""
    )
    return f"in {other}", found, f"{len(found)} of {len(examples)} examples are also in {other}{everything}"


def _leaks(examples: Sequence[Asked], source: str, facts: Training) -> tuple[str, frozenset[int], str]:
    own = [{question, story(question)} for question in (questions(example.input)[-1] for example in examples)]
    targets = {i for i, texts in enumerate(own) if texts & facts.targets}
    solved = {i for i, texts in enumerate(own) if texts & facts.examples} - targets
    note = (
        f"{len(targets | solved)} of {len(examples)} questions occur word for word in {source} "
        f"({len(targets)} as targets, {len(solved)} as solved examples of prompts)"
    )
    return f"in {source}", frozenset(targets | solved), note
