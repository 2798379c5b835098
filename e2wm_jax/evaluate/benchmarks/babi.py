"""`e2wm eval babi`: the twenty question-answering tasks of bAbI, few-shot, by exact match.

The prompt of the E2WM paper's bAbI scores is not published.  This one has the form of the nearest public template, the
task `babi` of lm-evaluation-harness: every sentence on a line of its own, questions asked earlier in the story left
out, worked examples before it with an empty line between them.  With one example:

    Passage: Mary moved to the bathroom.
    John went to the hallway.
    Question: Where is Mary?
    Answer: bathroom

    Passage: Daniel travelled to the office.
    Question: Where is Daniel?
    Answer:

The examples are from the task's train split, each from a story of its own, drawn by the seed and the same for all
questions of a task.  Two are the default: with them most prompts of task 3, by far the longest, fit models of 2,048
positions.  Where a prompt does not fit, its first examples are left out until it does, and the result counts such
prompts under "shortened"; one that does not fit without any is refused before anything is computed.

The model continues greedily up to the end of the line.  What it wrote is right if it equals the answer, both without
white space around them, periods at their end and regard to case.  Several answers count as the file has them, in its
order: "football,apple".  With --chat the whole prompt is what a user says, and the assistant's turn is the answer.
Beside each accuracy stands the share of the most common answer, which needs no reading, and the interval of a bootstrap
over stories, since questions about one story are not independent.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.errors import InputError, check_at_least
from e2wm_jax.evaluate.benchmarks.babi_stories import (
    TASKS,
    StoryQuestion,
    TaskQuestions,
    draw_shots,
    parse_tasks,
    read_tasks,
)
from e2wm_jax.evaluate.benchmarks.settings import BabiOptions, BabiSettings
from e2wm_jax.evaluate.model import Evaluated, Opened, load_evaluated, open_evaluated, prompt_ids
from e2wm_jax.evaluate.predictions import Predictions, content_digest, identity
from e2wm_jax.evaluate.statistics import bootstrap_means, percentile_interval
from e2wm_jax.evaluate.texts.continuations import first_lines
from e2wm_jax.evaluate.texts.prompting import WAYS_OUT, Prompting
from e2wm_jax.models.decoding.generate import Decoding
from e2wm_jax.models.positions import fewer_new_tokens
from e2wm_jax.running.progress import say


@dataclass(frozen=True)
class _Asked:
    """A question of the test split as it is put to the model."""

    index: int  # among all questions of all tasks
    task: int
    question: StoryQuestion
    prompt: str
    ids: list[int]  # of the prompt, as far as they fit
    shots: int  # fewer than asked for where more do not fit
    cut: bool  # whether not even the question fits


def run(settings: BabiSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, or a question that is too long for the model's positions; NonFiniteError
            for scores that are not finite.
    """
    tasks = parse_tasks(settings.tasks)
    check(settings)
    opened, data = open_evaluated(settings.model), read_tasks(settings.data, tasks)
    ask(opened, data, settings)  # what is wrong is said before weights are read
    return evaluate(
        load_evaluated(opened, settings.adapter, settings.base_dtype),
        settings.data,
        tasks,
        settings,
        predictions=settings.predictions,
        resume=settings.resume,
    )


def evaluate(
    evaluated: Evaluated,
    source: Path,
    tasks: Sequence[int],
    options: BabiOptions = BabiOptions(),
    *,
    predictions: Path | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Scores of some tasks; all shares are between 0 and 1, keys of tasks are their numbers as text.

    Returns:
        "accuracy", "majority", "n" by task; "mean", of the tasks' accuracies; "intervals" of 95 %, by task and of
        "mean", but not of tasks with one story, which says nothing of others, nor then of the mean; "shots" and, by
        task, how many prompts were "shortened"; how many questions were "skipped" or "truncated", if any.

    Raises:
        InputError: for impossible options, bad files, or a question that is too long for the model's positions.
    """
    check(options)
    decoding = Decoding(options.max_new_tokens)
    data = read_tasks(source, tasks)
    asked = ask(evaluated, data, options)
    made = identity(
        evaluated,
        content_digest([[one.prompt, one.question.answer] for one in asked]),
        **{field.name: getattr(options, field.name) for field in fields(BabiOptions)},
    )
    kept = Predictions(predictions, made, len(asked), resume=resume, is_record=_is_record)
    prompts, names = [one.ids for one in asked], [one.question.where for one in asked]
    done = kept.done.keys()
    for batch in first_lines(evaluated, prompts, names, decoding, options.batch_size, done, chat=options.chat):
        kept.add([_record(asked[place], line) for place, line in batch])
    skipped = sum(len(test[: options.samples]) for _, test in data.values()) - len(asked)
    truncated = sum(one.cut for one in asked)
    counts = {name: n for name, n in (("skipped", skipped), ("truncated", truncated)) if n}
    return {**_scores(asked, kept.finish(), options), **counts}


def check(options: BabiOptions) -> None:
    """Refuse impossible options.

    Raises:
        InputError: naming the first.
    """
    check_at_least(
        ("--shots", options.shots, 0), ("--samples", options.samples, 1), ("--batch-size", options.batch_size, 1)
    )
    Decoding(options.max_new_tokens).check()
    _prompting(options).check()


def prompt(question: StoryQuestion) -> str:
    """ "Passage: ... Question: ... Answer:" without the answer."""
    passage = "".join(f"{statement}\n" for statement in question.passage)
    return f"Passage: {passage}Question: {question.question}\nAnswer:"


def worked(question: StoryQuestion) -> str:
    """A prompt with its answer, and the empty line behind it."""
    return f"{prompt(question)} {question.answer}\n\n"


def normalized(answer: str) -> str:
    """What exact match compares: without white space around it, periods at its end and capitals."""
    return answer.strip().rstrip(".").rstrip().lower()


def show(result: dict[str, Any]) -> None:
    """A line per task."""
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "", title=f"bAbI, {result['shots']} shots, exact match")
    for heading in ("accuracy", "95 %", "majority", "questions"):
        table.add_column(heading, justify="right")
    for task, accuracy in result["accuracy"].items():
        interval, majority, n = _range(result, task), result["majority"][task], result["n"][task]
        table.add_row(task, TASKS[int(task)], f"{accuracy:.3f}", interval, f"{majority:.3f}", str(n))
    table.add_section()
    majority = sum(result["majority"].values()) / len(result["majority"])
    everything = str(sum(result["n"].values()))
    table.add_row("mean", "", f"{result['mean']:.3f}", _range(result, "mean"), f"{majority:.3f}", everything)
    Console(width=100, highlight=False).print(table)


def _range(result: Mapping[str, Any], name: str) -> str:
    interval = result["intervals"].get(name)
    return f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else ""


def ask(model: Opened | Evaluated, data: dict[int, TaskQuestions], options: BabiOptions) -> list[_Asked]:
    """Every question with as many of its task's examples as fit, without a forward pass.

    Raises:
        InputError: for a question that is too long without any, if such are refused, or has a token without a row.
    """
    asked: list[_Asked] = []
    skipped = 0
    for task, (train, test) in data.items():
        examples = [worked(shot) for shot in draw_shots(train, options.shots, seed=options.seed, task=task)]
        questions = test[: options.samples]
        for question, text, ids, shots, cut in _fitting(model, examples, questions, options):
            if cut and options.too_long == "skip":
                skipped += 1
            else:
                asked.append(_Asked(len(asked), task, question, text, ids, shots, cut))
    if shortened := sum(one.shots < options.shots for one in asked):
        say(f"{shortened} of {len(asked)} prompts have fewer than {options.shots} examples, so that they fit the model")
    for number, what in ((skipped, "left out"), (sum(one.cut for one in asked), "cut from the left")):
        if number:
            say(f"{number} questions are {what}: they do not fit the model without any example")
    if not asked:
        raise InputError("no question fits the model's positions; give a model for longer texts")
    return asked


def _fitting(
    model: Opened | Evaluated, examples: Sequence[str], questions: Sequence[StoryQuestion], options: BabiOptions
) -> list[tuple[StoryQuestion, str, list[int], int, bool]]:
    """Each question, its prompt and token ids with the number of examples, the last ones, with which it fits, and
    whether it does not without any."""
    room = model.config.max_positions - options.max_new_tokens
    if room < 1:
        raise InputError(f"--max-new-tokens {options.max_new_tokens}: leaves no room for a question")
    found: dict[int, tuple[StoryQuestion, str, list[int], int, bool]] = {}
    for number in range(len(examples), -1, -1):
        places = [place for place in range(len(questions)) if place not in found]
        names = [questions[place].where for place in places]
        texts = ["".join(examples[len(examples) - number :]) + prompt(questions[place]) for place in places]
        encoded = prompt_ids(model, texts, _prompting(options), where=names.__getitem__)
        for place, text, ids in zip(places, texts, encoded, strict=True):
            question = questions[place]
            if len(ids) <= room:
                found[place] = question, text, ids, number, False
            elif number == 0 and options.too_long == "refuse":
                raise InputError(
                    f"{question.where}: {len(ids)} tokens without any example, and the model has room for {room} "
                    f"before its answer; {fewer_new_tokens(len(ids), model.config.max_positions)}"
                    f"leave the task out of --tasks; {WAYS_OUT}"
                )
            elif number == 0:
                found[place] = question, text, ids[-room:], 0, True
    return [found[place] for place in range(len(questions))]


def _prompting(options: BabiOptions) -> Prompting:
    """How a question with its examples is put to the model."""
    return Prompting(options.special_tokens, options.too_long, options.chat)


def _record(one: _Asked, text: str) -> dict[str, Any]:
    """A row of a predictions file."""
    return {
        "index": one.index,
        "task": one.task,
        "prediction": text.strip(),
        "answer": one.question.answer,
        "correct": normalized(text) == normalized(one.question.answer),
    }


def _scores(asked: Sequence[_Asked], records: Sequence[dict[str, Any]], options: BabiOptions) -> dict[str, Any]:
    result: dict[str, Any] = {"accuracy": {}, "mean": 0.0, "n": {}, "intervals": {}, "majority": {}}
    result |= {"shots": options.shots, "shortened": {}}
    resampled, alone = [], 0
    for task in dict.fromkeys(one.task for one in asked):
        chosen = [one for one in asked if one.task == task]
        correct = np.array([bool(records[one.index]["correct"]) for one in chosen], np.float64)
        stories = np.unique([one.question.story for one in chosen], return_inverse=True)[1]
        sizes = np.bincount(stories)
        means = bootstrap_means(np.bincount(stories, correct) / sizes, seed=task, weights=sizes)
        resampled.append(means)
        alone += len(sizes) == 1
        answers = Counter(normalized(one.question.answer) for one in chosen)
        name = str(task)
        result["accuracy"][name] = float(correct.mean())
        result["n"][name] = len(chosen)
        if len(sizes) > 1:
            result["intervals"][name] = list(percentile_interval(means))
        result["majority"][name] = answers.most_common(1)[0][1] / len(chosen)
        if shortened := sum(one.shots < options.shots for one in chosen):
            result["shortened"][name] = shortened
    result["mean"] = sum(result["accuracy"].values()) / len(resampled)
    if not alone:
        result["intervals"]["mean"] = list(percentile_interval(np.mean(resampled, axis=0)))
    return result


def _is_record(record: dict[str, Any]) -> bool:
    texts = all(isinstance(record.get(key), str) for key in ("prediction", "answer"))
    return texts and isinstance(record.get("correct"), bool)
