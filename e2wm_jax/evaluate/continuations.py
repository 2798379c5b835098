"""`e2wm generate`: what a model says next, and the texts behind prompts that other commands ask for."""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.model import Evaluated, Opened, check_positions, load_evaluated, open_evaluated, prompt_ids
from e2wm_jax.evaluate.settings import GenerateSettings
from e2wm_jax.files import read_json_lines, read_text
from e2wm_jax.models import decoder
from e2wm_jax.models.generate import Decoding, generate
from e2wm_jax.models.sampling import Sampling
from e2wm_jax.progress import progress_bar


def run(settings: GenerateSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, or a prompt that is too long for the model's positions.
    """
    texts = [*settings.prompt, *(read_prompts(settings.prompts) if settings.prompts else ())]
    if not texts:
        raise InputError("no prompt; give --prompt TEXT or --prompts FILE")
    decoding = Decoding(
        settings.max_new_tokens, settings.beams, settings.length_penalty, _sampling(settings), settings.seed
    )
    decoding.check()
    opened = open_evaluated(settings.model)
    _check(opened, texts, settings)
    evaluated = load_evaluated(opened, settings.adapter, settings.base_dtype)
    found = continuations(
        evaluated,
        texts,
        decoding,
        ends=evaluated.ends,
        stop=settings.stop,
        batch_size=settings.batch_size,
        special_tokens=settings.special_tokens,
    )
    return {"outputs": [{"prompt": text, "text": new} for text, new in zip(texts, found, strict=True)]}


def _check(opened: Opened, texts: Sequence[str], settings: GenerateSettings) -> None:
    """Refuse prompts before weights are read."""
    new = settings.max_new_tokens
    where = [f"prompt {i + 1} {text[:40]!r}" for i, text in enumerate(texts)]
    encoded = prompt_ids(opened, texts, special_tokens=settings.special_tokens, where=where.__getitem__)
    for name, ids in zip(where, encoded, strict=True):
        if not ids:
            raise InputError(f"{name}: no tokens; a prompt must have one or more")
        tokens = f"{name}: {len(ids)} tokens and --max-new-tokens {new}"
        check_positions(opened, len(ids) + new, tokens, "shorten the prompt or lower --max-new-tokens")


def show(result: dict[str, Any]) -> None:
    """Each prompt with its continuation."""
    for output in result["outputs"]:
        print(output["prompt"] + output["text"])


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file.

    Raises:
        InputError: naming file:line where "input" is missing or no text.
    """
    if path.name.removesuffix(".gz").endswith(".txt"):
        return [line for line in read_text(path).split("\n") if line.strip()]
    texts = []
    for number, record in read_json_lines(path):
        if not isinstance(record.get("input"), str):
            raise InputError(f"{path}:{number}: no text under 'input'; write {{\"input\": ...}}, or .txt with lines")
        texts.append(record["input"])
    return texts


def continuations(
    evaluated: Evaluated,
    texts: Sequence[str],
    decoding: Decoding,
    *,
    ends: Sequence[int] = (),
    stop: str | None = None,
    batch_size: int = 8,
    special_tokens: bool = False,
    names: Sequence[str] | None = None,
) -> list[str]:
    """The text behind each prompt, without special tokens and cut before the first ``stop``.

    Args:
        ends: tokens that end a text beside the tokenizer's own.
        names: of the prompts, for messages.

    Raises:
        InputError: before anything is compiled, for a prompt that is too long for the model's positions or has a token
            without a row.
        NonFiniteError: naming a prompt behind which the scores are no numbers.
    """
    config, params, tokenizer = evaluated.config, evaluated.params, evaluated.tokenizer
    named = names or [f"prompt {i + 1}" for i in range(len(texts))]
    prompts = prompt_ids(evaluated, texts, special_tokens=special_tokens, where=lambda i: named[i])
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    with progress_bar("generate", len(texts), "prompt") as bar:
        found = generate(
            config,
            decoder.unstack(params),
            prompts,
            decoding,
            ends={*ends, *own},
            cuts=tokens_with(tokenizer, stop) if stop else (),
            batch_size=batch_size,
            names=named,
            on_batch=bar.update,
            mesh=evaluated.mesh,
        )
    new = tokenizer.batch_decode(found, skip_special_tokens=True) if found else []
    return [text.split(stop)[0] if stop else text for text in new]


def first_lines(
    evaluated: Evaluated,
    prompts: Sequence[Sequence[int]],
    names: Sequence[str],
    decoding: Decoding,
    batch_size: int,
    done: Container[int],
) -> Iterator[list[tuple[int, str]]]:
    """The line that each prompt goes on with: after every batch, the places of its prompts in ``prompts`` and their
    lines.

    Prompts of similar length go together.  Batches whose prompts are all ``done`` are left out; the others are what
    they would be without any done.

    Args:
        names: of the prompts, for messages.

    Raises:
        InputError: for a prompt that is too long; NonFiniteError as `generate`.
    """
    tokenizer = evaluated.tokenizer
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    rows = min(batch_size, 1 << (len(prompts) - 1).bit_length())
    params = decoder.unstack(evaluated.params)
    own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    cuts = tokens_with(tokenizer, "\n")
    with progress_bar("generate", len(prompts), "prompt") as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            if all(place in done for place in chosen):
                bar.update(len(chosen))
                continue
            # Filled up with the last prompt, so that the last batch needs no compilation of its own.
            filled = [*chosen, *chosen[-1:] * (rows - len(chosen))]
            found = generate(
                evaluated.config,
                params,
                [prompts[place] for place in filled],
                decoding,
                ends={*evaluated.ends, *own},
                cuts=cuts,
                batch_size=batch_size,
                names=[names[place] for place in filled],
                mesh=evaluated.mesh,
            )
            lines = tokenizer.batch_decode(found[: len(chosen)], skip_special_tokens=True)
            yield [(place, line.split("\n")[0].strip()) for place, line in zip(chosen, lines, strict=True)]
            bar.update(len(chosen))


def tokens_with(tokenizer: Any, text: str) -> list[int]:
    """The tokens that hold ``text`` whole; one that is spread over several tokens is cut without stopping early."""
    return [i for i, own in enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))])) if text in own]


def _sampling(settings: GenerateSettings) -> Sampling | None:
    if settings.temperature is settings.top_k is settings.top_p is None:
        return None
    temperature = 1.0 if settings.temperature is None else settings.temperature
    return Sampling(temperature, settings.top_k, settings.top_p)
