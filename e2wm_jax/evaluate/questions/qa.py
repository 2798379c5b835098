"""Multiple-choice questions by the likelihood of each answer, scored as the official code does.

normalized   sum log p(answer | input) / tokens of the answer            act_recog, count, obj_move
calibrated   log p(answer | input) - log p(answer | "Answer:")           housework_qa, neg_housework_qa, act_infer
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.data.source import Question, read_questions
from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.model import Evaluated, load_evaluated, open_evaluated
from e2wm_jax.evaluate.predictions import Predictions, Record, content_digest, identity
from e2wm_jax.evaluate.questions.answer_scores import Rule, fitting, score_batches
from e2wm_jax.evaluate.results import is_number
from e2wm_jax.evaluate.settings import QaSettings
from e2wm_jax.evaluate.statistics import bootstrap_interval
from e2wm_jax.evaluate.table import show_scores
from e2wm_jax.evaluate.texts.prompting import Prompting
from e2wm_jax.sharding import make_mesh

RULES: dict[str, Rule] = {
    "act_recog": "normalized",
    "count": "normalized",
    "obj_move": "normalized",
    "housework_qa": "calibrated",
    "neg_housework_qa": "calibrated",
    "act_infer": "calibrated",
}


def run(settings: QaSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, before weights are read; NonFiniteError for scores that are not finite.
    """
    check_at_least(("--samples", settings.samples, 1), ("--batch-size", settings.batch_size, 1))
    task = settings.task or task_name(settings.data)
    if task not in RULES:
        raise InputError(_no_rule(settings))
    questions = read_questions(settings.data)[: settings.samples]
    prompting = Prompting(settings.special_tokens, settings.too_long, settings.chat)
    prompting.check()
    mesh = None if settings.mesh is None else make_mesh(settings.mesh)
    opened = open_evaluated(settings.model)
    fitted = fitting(opened, dict(enumerate(questions)), prompting)
    records = predict(
        load_evaluated(opened, settings.adapter, settings.base_dtype, mesh=mesh),
        fitted.examples,
        RULES[task],
        prompting,
        batch_size=settings.batch_size,
        path=settings.predictions,
        resume=settings.resume,
    )
    return {"task": task, **summary(records), **fitted.counts, "intervals": intervals(records)}


def _no_rule(settings: QaSettings) -> str:
    """What to do about a task without a scoring rule, whether it came from --task or from a file's name."""
    rules = ", ".join(RULES)
    if settings.task is not None:
        return f"--task {settings.task}: unknown; it names the rule by which answers are scored, one of {rules}"
    return (
        f"--data {settings.data}: its name is that of no known task, so how are its answers to be scored? Give --task, "
        f"one of {rules}; act_recog scores by log p per token, act_infer by log p beyond that behind 'Answer:'"
    )


def show(result: dict[str, Any]) -> None:
    """A line per score, with its interval."""
    show_scores(result)


def predict(
    evaluated: Evaluated,
    questions: Mapping[int, Question],
    rule: Rule,
    prompting: Prompting = Prompting(),
    *,
    batch_size: int = 4,
    path: Path | None = None,
    resume: bool = False,
) -> list[Record]:
    """{"index", "scores", "choice", "gold"} of every question, by its index in the file; also in ``path``, if given.

    Raises:
        InputError: as `Predictions` and `score_batches`.
    """
    made = identity(
        evaluated,
        content_digest([[index, q.input, q.answers, q.gold] for index, q in questions.items()]),
        rule=rule,
        examples=len(questions),
        batch_size=batch_size,
        **asdict(prompting),
    )
    predictions = Predictions(path, made, questions, resume=resume, is_record=_is_record)
    indices = list(questions)
    done = {place for place, index in enumerate(indices) if index in predictions.done}
    for batch in score_batches(
        evaluated,
        list(questions.values()),
        rule,
        prompting,
        batch_size=batch_size,
        done=done,
    ):
        predictions.add([_record(indices[place], questions[indices[place]], scores) for place, scores in batch])
    return predictions.finish()


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Share of questions whose best answer is the gold one (the first of equals), beside always choosing one index."""
    most_common = Counter(record["gold"] for record in records).most_common(1)[0][1]
    n = len(records)
    return {"accuracy": sum(hits(records)) / n, "n": n, "majority": most_common / n}


def hits(records: Sequence[Record]) -> list[bool]:
    """Which questions are answered right."""
    return [record["choice"] == record["gold"] for record in records]


def intervals(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """The 95 % interval of the accuracy."""
    return {"accuracy": bootstrap_interval(hits(records))}


def task_name(path: Path) -> str:
    """ "act_recog" of ".../act_recog.json.gz"."""
    return path.name.split(".")[0]


def accuracy(questions: Sequence[Question], scores: Sequence[np.ndarray]) -> dict[str, Any]:
    """`summary` of questions and the scores of their answers."""
    return summary([_record(i, *both) for i, both in enumerate(zip(questions, scores, strict=True))])


def _record(index: int, question: Question, scores: np.ndarray) -> Record:
    """One row of a predictions file."""
    return {
        "index": index,
        "scores": [float(x) for x in scores],
        "choice": int(np.argmax(scores)),
        "gold": question.gold,
    }


def _is_record(record: Record) -> bool:
    scores = record.get("scores")
    numbers = isinstance(scores, list) and all(map(is_number, scores))
    return numbers and type(record.get("choice")) is type(record.get("gold")) is int
