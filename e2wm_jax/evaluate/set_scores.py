"""The scores of one set of `eval all`: its examples measured against the model, put to it, and judged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from e2wm_jax.errors import check_at_least
from e2wm_jax.evaluate import defects, perplexity
from e2wm_jax.evaluate.benchmarks import babi
from e2wm_jax.evaluate.defects import Defects
from e2wm_jax.evaluate.model import Evaluated, Opened
from e2wm_jax.evaluate.questions import answer_scores, qa
from e2wm_jax.evaluate.sets import EvalSet, babi_tasks
from e2wm_jax.evaluate.settings import SuiteOptions
from e2wm_jax.evaluate.texts import generation
from e2wm_jax.evaluate.texts.prompting import Prompting
from e2wm_jax.models.decoding.generate import Decoding


class Content(NamedTuple):
    """A set that has been read."""

    set: EvalSet
    examples: dict[int, Any]  # those to evaluate, by their index in the file
    defects: Defects
    counts: Mapping[str, int]  # how many are skipped or truncated


def prompting_of(options: SuiteOptions) -> Prompting:
    """How examples are put to the model."""
    return Prompting(options.special_tokens, options.too_long, options.chat)


def check_options(options: SuiteOptions) -> None:
    """Refuse impossible options.

    Raises:
        InputError: naming the first.
    """
    check_at_least(
        ("--samples", options.samples, 1),
        ("--seed", options.seed, 0),
        ("--batch-size", options.batch_size, 1),
        ("--max-length", options.max_length, 2),
    )
    _decoding(options).check()
    prompting_of(options).check()


def fitting(model: Opened | Evaluated, content: Content, options: SuiteOptions) -> Content:
    """The examples for which the model has room, or is given it."""
    examples, prompting, one = content.examples, prompting_of(options), content.set
    if one.kind == "babi":  # which counts its own
        babi.ask(model, babi.read_tasks(one.path, babi_tasks(one.path)), _babi_options(options))
        return content
    if one.kind == "qa":
        fitted = answer_scores.fitting(model, examples, prompting)
    elif one.kind == "generate":
        fitted = generation.fitting(model, examples, _decoding(options), prompting)
    else:
        name = str(one.path)
        fitted = perplexity.fitting(model, examples, prompting, max_length=options.max_length, name=name)
    return content._replace(examples=fitted.examples, counts=fitted.counts)


def score_set(evaluated: Evaluated, content: Content, options: SuiteOptions, path: Path | None) -> dict[str, Any]:
    """Scores of a set in the form of results.json; its predictions go to ``path``.

    Raises:
        InputError: for predictions of something else; NonFiniteError for scores that are not finite.
    """
    found = _SCORES[content.set.kind](evaluated, content, options, path)
    return {"kind": content.set.kind, **found, **content.counts}


def _decoding(options: SuiteOptions) -> Decoding:
    return Decoding(options.max_new_tokens, options.beams)


def _qa(evaluated: Evaluated, content: Content, options: SuiteOptions, path: Path | None) -> dict[str, Any]:
    records = qa.predict(
        evaluated,
        content.examples,
        qa.RULES[content.set.name],
        prompting_of(options),
        batch_size=options.batch_size,
        path=path,
        resume=options.resume,
    )
    scores = {"accuracy": [float(hit) for hit in qa.hits(records)]}
    return {
        **qa.summary(records),
        "intervals": qa.intervals(records),
        **defects.cleaned(scores, list(content.examples), content.defects),
    }


def _generate(evaluated: Evaluated, content: Content, options: SuiteOptions, path: Path | None) -> dict[str, Any]:
    records = generation.predict(
        evaluated,
        content.examples,
        _decoding(options),
        prompting_of(options),
        batch_size=options.batch_size,
        path=path,
        resume=options.resume,
    )
    scores = generation.example_scores(content.set.name, records)
    constant = generation.majority(content.set.name, [record["reference"] for record in records])
    return {
        **generation.summary(scores),
        "n": len(records),
        **({} if constant is None else {"majority": list(constant.values())[-1]}),
        "intervals": generation.intervals(scores),
        **defects.cleaned(scores, list(content.examples), content.defects),
    }


def _babi(evaluated: Evaluated, content: Content, options: SuiteOptions, path: Path | None) -> dict[str, Any]:
    tasks, asked = babi_tasks(content.set.path), _babi_options(options)
    return babi.evaluate(evaluated, content.set.path, tasks, asked, predictions=path, resume=options.resume)


def _babi_options(options: SuiteOptions) -> babi.BabiOptions:
    return babi.BabiOptions(
        samples=options.samples,
        batch_size=options.batch_size,
        special_tokens=options.special_tokens,
        too_long=options.too_long,
        chat=options.chat,
    )


def _perplexity(evaluated: Evaluated, content: Content, options: SuiteOptions, path: Path | None) -> dict[str, Any]:
    records = perplexity.predict(
        evaluated,
        content.examples,
        prompting_of(options),
        max_length=options.max_length,
        batch_size=options.batch_size,
        path=path,
        resume=options.resume,
        name=str(content.set.path),
    )
    return {**perplexity.summary(records), "n": len(records), "intervals": perplexity.intervals(records)}


_SCORES = {"qa": _qa, "generate": _generate, "babi": _babi, "perplexity": _perplexity}
