"""`e2wm generate`: what a model says next, and the texts behind prompts that other commands ask for."""

from collections import Counter
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2wm_jax.data.lengths import few_lengths
from e2wm_jax.errors import InputError
from e2wm_jax.evaluate.model import (
    Evaluated,
    Opened,
    check_positions,
    ending_tokens,
    load_evaluated,
    open_evaluated,
    prompt_ids,
)
from e2wm_jax.evaluate.settings import GenerateSettings
from e2wm_jax.evaluate.texts.generation_config import TOP_K, GenerationConfig, drawing
from e2wm_jax.evaluate.texts.prompting import Prompting
from e2wm_jax.models import decoder
from e2wm_jax.models.decoding.generate import Decoding, generate
from e2wm_jax.models.decoding.sampling import Sampling
from e2wm_jax.models.positions import fewer_new_tokens
from e2wm_jax.running.progress import progress_bar, say
from e2wm_jax.storage.files import read_json_lines, read_text


def run(settings: GenerateSettings) -> dict[str, Any]:
    """Run the command; returns what `--json` prints.

    Raises:
        InputError: for bad settings or files, or a prompt that is too long for the model's positions, before weights
            are read; NonFiniteError for scores that are not finite.
    """
    texts = [*settings.prompt, *(read_prompts(settings.prompts) if settings.prompts else ())]
    if not texts:
        raise InputError("no prompt; give --prompt TEXT or --prompts FILE")
    _check_characters(("prompt", *settings.prompt), ("system", settings.system), ("stop", settings.stop))
    prompting = Prompting(settings.special_tokens, chat=settings.chat)
    prompting.check()
    if settings.system is not None and not settings.chat:
        raise InputError("--system needs --chat: without a chat template nobody but the prompt speaks")
    opened = open_evaluated(settings.model)
    decoding = Decoding(
        settings.max_new_tokens,
        settings.beams,
        settings.length_penalty,
        sampling(settings, opened.generation),
        settings.seed,
    )
    decoding.check()
    names = [f"prompt {i + 1} {text[:40]!r}" for i, text in enumerate(texts)]
    prompts = prompt_ids(opened, texts, prompting, where=names.__getitem__, system=settings.system)
    _check(opened, prompts, names, settings.max_new_tokens)
    _say_what_is_left_out(settings, opened)
    evaluated = load_evaluated(opened, settings.adapter, settings.base_dtype)
    found = continuations(
        evaluated,
        prompts,
        decoding,
        names=names,
        ends=ending_tokens(evaluated, chat=settings.chat),
        stop=settings.stop,
        batch_size=settings.batch_size,
    )
    drawn = None if decoding.sampling is None else {**decoding.sampling._asdict(), "seed": settings.seed}
    outputs = [{"prompt": text, "text": new} for text, new in zip(texts, found, strict=True)]
    return {"outputs": outputs, "chat": settings.chat, "sampling": drawn}


def sampling(settings: GenerateSettings, config: GenerationConfig) -> Sampling | None:
    """How tokens are drawn, if they are: what is not asked for as the checkpoint has it, or else as transformers."""
    wanted = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    asked = {name: value for name, value in wanted.items() if value is not None}
    if not settings.sample and not asked:
        return None
    found = drawing(config, asked) | asked
    temperature, top_k, top_p = found["temperature"], found["top_k"], found["top_p"]
    top_k = TOP_K if top_k is None else int(top_k)
    return Sampling(
        1.0 if temperature is None else temperature,
        None if top_k == 0 else top_k,  # as in transformers: all
        None if top_p in (None, 1.0) else top_p,
    )


def _check_characters(*given: tuple[str | None, ...]) -> None:
    """Refuse texts of the command line, behind their option's name, whose bytes are no UTF-8."""
    for option, *texts in given:
        for text in texts:
            if text is not None and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InputError(f"--{option} {text[:40]!a}: holds bytes that are no UTF-8 text; give it in UTF-8")


def _say_what_is_left_out(settings: GenerateSettings, opened: Opened) -> None:
    """One line for what transformers, or who trained the model, would do and this run does not."""
    config = opened.generation
    if opened.tokenizer.chat_template and not settings.chat:
        say("the tokenizer has a chat template; --chat puts each prompt into it, for models that answer in turns")
    if config.sample and settings.beams == 1 and sampling(settings, config) is None:
        drawn = (("temperature", config.temperature), ("top_k", config.top_k), ("top_p", config.top_p))
        values = ", ".join(f"{name} {value}" for name, value in drawn if value is not None)
        say(f"greedy; generation_config.json says do_sample{f' with {values}' if values else ''}: --sample draws so")
    if config.not_applied:
        say(f"generation_config.json: {', '.join(config.not_applied)}: not applied here")


def _check(opened: Opened, prompts: Sequence[Sequence[int]], names: Sequence[str], new: int) -> None:
    """Refuse prompts before weights are read."""
    for name, ids in zip(names, prompts, strict=True):
        if not ids:
            raise InputError(f"{name}: no tokens; a prompt must have one or more")
        tokens = f"{name}: {len(ids)} tokens and --max-new-tokens {new}"
        way_out = f"{fewer_new_tokens(len(ids), opened.config.max_positions)}shorten the prompt"
        check_positions(opened, len(ids) + new, tokens, way_out)


def show(result: dict[str, Any]) -> None:
    """Each prompt with its continuation."""
    between = "\n" if result["chat"] else ""
    for output in result["outputs"]:
        print(f"{output['prompt']}{between}{output['text']}")


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file.

    Raises:
        InputError: naming file:line of a row without text under "input" or "prompt", or the file where it has none.
    """
    if path.name.removesuffix(".gz").endswith(".txt"):
        texts = [line for line in read_text(path).split("\n") if line.strip()]
    else:
        texts = [_prompt(record, f"{path}:{number}") for number, record in read_json_lines(path)]
    if not texts:
        raise InputError(f"--prompts {path}: no prompt in it")
    return texts


def _prompt(record: Mapping[str, Any], where: str) -> str:
    text = record.get("input", record.get("prompt"))
    if not isinstance(text, str):
        raise InputError(f"{where}: no text under 'input' or 'prompt'; write {{\"input\": ...}}, or .txt with lines")
    return text


def continuations(
    evaluated: Evaluated,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    names: Sequence[str],
    ends: Collection[int],
    stop: str | None = None,
    batch_size: int = 8,
) -> list[str]:
    """The text behind each prompt, without special tokens and cut before the first ``stop``.

    Args:
        names: of the prompts, for messages.
        ends: tokens that end a text (`ending_tokens`).

    Raises:
        InputError: before anything is compiled, for a prompt that is too long for the model's positions.
        NonFiniteError: naming a prompt behind which the scores are not finite.
    """
    tokenizer = evaluated.tokenizer
    with progress_bar("generate", len(prompts), "prompt") as bar:
        found = generate(
            evaluated.config,
            decoder.unstack(evaluated.params),
            prompts,
            decoding,
            ends=ends,
            cuts=tokens_with(tokenizer, stop) if stop else (),
            batch_size=batch_size,
            names=names,
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
    *,
    chat: bool = False,
) -> Iterator[list[tuple[int, str]]]:
    """The line that each prompt goes on with: after every batch, the places of its prompts in ``prompts`` and their
    lines.

    Prompts of similar length go together.  Batches whose prompts are all ``done`` are left out; the others are what
    they would be without any done.

    Args:
        names: of the prompts, for messages.
        chat: they ask for an assistant's turn, whose end ends a line too.

    Raises:
        InputError: for a prompt that is too long; NonFiniteError as `generate`.
    """
    tokenizer = evaluated.tokenizer
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    rows = min(batch_size, 1 << (len(prompts) - 1).bit_length())
    longest = Counter(len(prompts[order[start : start + batch_size][-1]]) for start in range(0, len(order), batch_size))
    lengths = few_lengths(longest, evaluated.config.max_positions)
    params = decoder.unstack(evaluated.params)
    ends, cuts = ending_tokens(evaluated, chat=chat), tokens_with(tokenizer, "\n")
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
                ends=ends,
                cuts=cuts,
                batch_size=batch_size,
                names=[names[place] for place in filled],
                padded_lengths=lengths,
                mesh=evaluated.mesh,
            )
            lines = tokenizer.batch_decode(found[: len(chosen)], skip_special_tokens=True)
            yield [(place, line.split("\n")[0].strip()) for place, line in zip(chosen, lines, strict=True)]
            bar.update(len(chosen))


def tokens_with(tokenizer: Any, text: str) -> list[int]:
    """The tokens that hold ``text`` whole; one that is spread over several tokens is cut without stopping early."""
    return [i for i, own in enumerate(tokenizer.batch_decode([[i] for i in range(len(tokenizer))])) if text in own]
