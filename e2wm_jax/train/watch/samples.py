"""What the model writes while it learns: --prompt, continued before the first step and at every checkpoint."""

from collections.abc import Callable
from typing import Any, NamedTuple

from e2wm_jax import lora
from e2wm_jax.config import ModelConfig
from e2wm_jax.data.chat import as_messages, chat_prompt_ids, end_of_turn
from e2wm_jax.data.tokenize import encode_prompts
from e2wm_jax.errors import InputError
from e2wm_jax.lora import Adapters, Scope
from e2wm_jax.models.decoding.generate import Decoding, generate
from e2wm_jax.models.layers import Params
from e2wm_jax.train.settings import TrainSettings

SAMPLES_FILE = "samples.jsonl"
_GREEDY = Decoding(max_new_tokens=32)


class Prompts(NamedTuple):
    """Texts to continue, in tokens, and what ends a continuation."""

    tokenizer: Any
    texts: tuple[str, ...]
    ids: list[list[int]]
    ends: set[int]


def encoded_prompts(settings: TrainSettings, tokenizer: Any, config: ModelConfig) -> Prompts:
    """The texts of --prompt; with --chat a user says them.

    Raises:
        InputError: for a prompt without tokens, or one that leaves too few of the model's positions.
    """
    ends = {tokenizer.eos_token_id, end_of_turn(tokenizer) if settings.chat and settings.prompt else None}
    if settings.chat:
        ids = [chat_prompt_ids(tokenizer, as_messages(text), "--prompt") for text in settings.prompt]
    else:
        ids = encode_prompts(tokenizer, settings.prompt, special_tokens=settings.special_tokens)
    for text, tokens in zip(settings.prompt, ids, strict=True):
        if not tokens or len(tokens) + _GREEDY.max_new_tokens > config.max_positions:
            raise InputError(
                f"--prompt {text[:40]!r}: {len(tokens)} tokens; it needs 1 or more, and {_GREEDY.max_new_tokens} of "
                f"the model's {config.max_positions} positions behind them"
            )
    return Prompts(tokenizer, settings.prompt, ids, {end for end in ends if end is not None})


def sampler(prompts: Prompts, scope: Scope, params: Params) -> Callable[[Adapters], list[dict[str, str]]] | None:
    """The continuations as a function of the adapters, greedy and the same at any step; None without prompts."""
    if not prompts.texts:
        return None

    def samples(adapters: Adapters) -> list[dict[str, str]]:
        adapted = lora.attach(params, adapters, scope.spec)
        found = generate(scope.config, adapted, prompts.ids, _GREEDY, ends=prompts.ends)
        texts = (prompts.tokenizer.decode(ids, skip_special_tokens=True) for ids in found)
        return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts.texts, texts, strict=True)]

    return samples
