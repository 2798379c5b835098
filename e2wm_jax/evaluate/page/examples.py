"""Examples on the page of an evaluation: what was asked, what each model answered or wrote, and what was right."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from e2wm_jax.data.example import Question
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.page.evaluations import StoredEvaluation, asked, pairs
from e2wm_jax.options.choices import SetKind
from e2wm_jax.report import paragraph, texts

_LONGEST = 700  # characters of a text that is shown


def answered(evaluations: Sequence[StoredEvaluation], examples: int) -> Iterator[str]:
    """Examples of each set of questions, evenly spaced: the question, its right answer, and what each model chose; of
    those sets whose file still lies where it lay."""
    for name, kept in pairs(evaluations):
        common = set.intersection(*(asked(one) for one in kept))
        shown = _spaced(sorted(common), examples)
        questions = _examples(evaluations, name, "qa") if shown else {}
        blocks = []
        for n in shown:
            if (question := questions.get(n)) is None or not all(_fits(one[n], question) for one in kept):
                continue
            chose = {
                one.label: _marked(question.answers[records[n]["choice"]], records[n]["choice"] == question.gold)
                for one, records in zip(evaluations, kept, strict=True)
            }
            parts = {"question": _cut(question.input), "right": question.answers[question.gold], **chose}
            blocks.append(texts(parts, title=f"{name}, example {n}"))
        if blocks:
            yield paragraph(f"{name}: {len(blocks)} of {len(common)} questions, evenly spaced.")
            yield from blocks


def _fits(record: Mapping[str, Any], question: Question) -> bool:
    """Whether a prediction can be one of this question: files may have changed."""
    choice = record["choice"]
    return type(choice) is int and 0 <= choice < len(question.answers) and record["gold"] == question.gold


def _spaced(known: list[int], examples: int) -> list[int]:
    return known[:: max(len(known) // examples, 1)][:examples] if examples else []


def _marked(text: str, right: bool) -> str:
    return f"{text}  {'✓ right' if right else '✗ wrong'}"


def written(evaluations: Sequence[StoredEvaluation], examples: int) -> Iterator[str]:
    """Examples of each generation set, evenly spaced: prompt, reference, and what each model wrote."""
    for name, kept in pairs(evaluations):
        known = [n for n in sorted(set.union(*map(set, kept))) if any("prediction" in one.get(n, {}) for one in kept)]
        shown = _spaced(known, examples)
        prompts = _examples(evaluations, name, "generate") if shown else {}
        blocks = [
            texts(
                {**({"prompt": _cut(prompts[n].input)} if n in prompts else {}), **_parts(evaluations, kept, n)},
                title=f"{name}, example {n}",
            )
            for n in shown
        ]
        if blocks:
            yield paragraph(f"{name}: {len(blocks)} of {len(known)} examples, evenly spaced.")
            yield from blocks


def _examples(evaluations: Sequence[StoredEvaluation], name: str, kind: SetKind) -> dict[int, Any]:
    """The examples of a set, where its file still lies where it lay."""
    from e2wm_jax.evaluate.sets import find_sets, read_set  # it brings what evaluates

    for source in dict.fromkeys(source for one in evaluations for source in one.data):
        with contextlib.suppress(InputError):
            for found in find_sets(source):
                if (found.name, found.kind) == (name, kind):
                    return dict(enumerate(read_set(found)))
    return {}


def _parts(evaluations: Sequence[StoredEvaluation], kept: list[dict[int, dict[str, Any]]], n: int) -> dict[str, str]:
    found = [one.get(n, {}) for one in kept]
    said = {key: next((_shown(one, key) for one in found if key in one), None) for key in ("reference", "answer")}
    parts = {key: _cut(text) for key, text in said.items() if text is not None}
    wrote = zip(evaluations, found, strict=True)
    return parts | {one.label: _cut(_shown(record, "prediction")) for one, record in wrote if "prediction" in record}


def _shown(record: Mapping[str, Any], key: str) -> str:
    """A text of a record; of a plan that was carried out its steps and what became of them, of bAbI right or wrong."""
    value = record[key]
    steps = value.get("steps") if isinstance(value, dict) else None
    if isinstance(steps, list) and all(isinstance(step, dict) for step in steps):
        goal, reached = record.get("goal"), value.get("reached")
        facts = []
        if isinstance(goal, list) and isinstance(reached, list) and goal:
            facts = [f"goal facts reached: {len(reached)} of {len(goal)}"]
        return "\n".join([*map(_step, steps), *facts])
    if key == "prediction" and isinstance(record.get("correct"), bool):
        return _marked(str(value), record["correct"])
    return str(value)


def _step(step: Mapping[str, Any]) -> str:
    """A sentence of a plan, and why it failed."""
    if step.get("trouble") is None:
        return f"✓ {step.get('sentence')}"
    message = f": {step['message']}" if step.get("message") else ""
    return f"✗ {step.get('sentence')} ({step['trouble']}{message})"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 150]} […] {text[-150:]}"
