"""New tokens behind prompts: greedy, sampled, or the best of a beam search.

Letters as in `layers`; N new tokens.  Prompts are padded on the left to a common length and to a fixed number of rows,
so that there is one compilation per (rows, prompt bucket, new tokens bucket) and none per prompt.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import padded_length
from e2wm_jax.errors import InputError, NonFiniteError, check_at_least
from e2wm_jax.models import decoder
from e2wm_jax.models.decoding.beam import Prompts, Rules, beam_search
from e2wm_jax.models.decoding.sampling import Sampling, next_token
from e2wm_jax.models.layers import Params
from e2wm_jax.models.positions import fewer_new_tokens
from e2wm_jax.sharding import batch_sharding

_LEAST_TEMPERATURE = 1e-30  # scores that are divided by it are still finite in float32
_LEAST_BFLOAT16_ROWS = 2  # XLA on a CPU multiplies a single row by a float32 copy of the matrix


@dataclass(frozen=True)
class Decoding:
    """How to continue prompts; the defaults are greedy."""

    max_new_tokens: int = 64
    num_beams: int = 1
    length_penalty: float = 1.0  # of beams: log-likelihood / length ** length_penalty
    sampling: Sampling | None = None  # with one beam only
    seed: int = 0

    def check(self) -> None:
        """Raise InputError for values out of range."""
        check_at_least(("--max-new-tokens", self.max_new_tokens, 1), ("--beams", self.num_beams, 1))
        if (sampling := self.sampling) is None:
            return
        if self.num_beams > 1:
            raise InputError(
                f"--beams {self.num_beams} with --temperature: beams are not sampled; leave one of them out"
            )
        if not _LEAST_TEMPERATURE <= sampling.temperature < float("inf"):
            raise InputError(
                f"--temperature {sampling.temperature}: must be a positive number, {_LEAST_TEMPERATURE:g} or more; "
                "leave it out for greedy"
            )
        if sampling.top_k is not None:
            check_at_least(("--top-k", int(sampling.top_k), 1))
        if sampling.top_p is not None and not 0 < sampling.top_p <= 1:
            raise InputError(f"--top-p {sampling.top_p}: must be above 0 and at most 1")


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding = Decoding(),
    *,
    ends: Iterable[int] = (),
    cuts: Iterable[int] = (),
    batch_size: int = 8,
    names: Sequence[str] | None = None,
    padded_lengths: Sequence[int] = (),
    on_batch: Callable[[int], None] = lambda number: None,
    mesh: Mesh | None = None,
) -> list[list[int]]:
    """The new tokens behind each prompt, the one that ended it included, in the order of the prompts.

    A prompt's tokens do not depend on the others: each samples with a key of ``decoding.seed`` and its own index.

    Args:
        params: stacked or, so that nothing is copied at every call, from `decoder.unstack`.
        ends: tokens that end a row, as transformers' eos_token_id.
        cuts: tokens after which the caller discards the rest.  They end a row that is greedy or sampled.  A beam search
            is not changed by them, but it stops once all its hypotheses agree up to one.
        batch_size: prompts at a time.
        names: of the prompts, for messages.
        padded_lengths: what prompts are padded to, ascending; by default `padded_length` of each batch.
        on_batch: told after each batch how many prompts it held.
        mesh: where the parameters lie; rows are split over its data and fsdp.

    Raises:
        InputError: before anything is compiled, for a prompt that is empty or leaves less than
            ``decoding.max_new_tokens`` of the model's positions, or for impossible settings.
        NonFiniteError: naming the prompt behind which the model's scores are not finite.
    """
    decoding.check()
    check_at_least(("--batch-size", batch_size, 1))
    names = names or [f"prompt {i + 1}" for i in range(len(prompts))]
    _check_prompts(config, prompts, decoding, names)
    params = decoder.unstack(params)
    ending, cutting = (_flags(config, tokens) for tokens in (ends, cuts))
    rows = _rows(config, params, len(prompts), batch_size, mesh)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        own = [prompts[i] for i in chosen]
        tokens, lengths, finite = _continue(
            config, params, own, chosen, rows, decoding, ending, cutting, mesh, padded_lengths
        )
        for row, index in enumerate(chosen):
            if not finite[row]:
                raise NonFiniteError(names[index])
            results[index] = tokens[row, : lengths[row]].tolist()
        on_batch(len(chosen))
    return results


def _check_prompts(
    config: ModelConfig, prompts: Sequence[Sequence[int]], decoding: Decoding, names: Sequence[str]
) -> None:
    new, positions = decoding.max_new_tokens, config.max_positions
    for name, prompt in zip(names, prompts, strict=True):
        if not len(prompt):
            raise InputError(f"{name}: no tokens; a prompt must have one or more")
        if len(prompt) + new > positions:
            raise InputError(
                f"{name}: {len(prompt)} tokens and --max-new-tokens {new} are more than the model's {positions} "
                f"positions; {fewer_new_tokens(len(prompt), positions)}shorten the prompt"
            )
    if 4 * decoding.num_beams > config.vocab_size:
        raise InputError(f"--beams {decoding.num_beams}: at most a quarter of the vocabulary, {config.vocab_size // 4}")


def _flags(config: ModelConfig, tokens: Iterable[int]) -> np.ndarray:
    flags = np.zeros(config.vocab_size, bool)
    flags[[token for token in tokens if token < config.vocab_size]] = True
    return flags


def _rows(config: ModelConfig, params: Params, prompts: int, batch_size: int, mesh: Mesh | None) -> int:
    """Rows of every batch: the batch size, or the power of two that holds all prompts, if that is less; as many for
    each device that splits them."""
    rows = min(batch_size, 1 << (prompts - 1).bit_length())
    slow = jax.default_backend() == "cpu" and decoder.activation_dtype(config, params) == jnp.bfloat16
    rows = max(rows, _LEAST_BFLOAT16_ROWS) if slow else rows
    parts = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-rows // parts) * parts


def _continue(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    indices: Sequence[int],
    rows: int,
    decoding: Decoding,
    ends: np.ndarray,
    cuts: np.ndarray,
    mesh: Mesh | None,
    padded_lengths: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One batch: tokens [rows, N], how many of them count [rows], and whether their scores were finite [rows]."""
    longest = max(map(len, prompts))
    length = next((known for known in padded_lengths if known >= longest), padded_length(longest, config.max_positions))
    ids = np.zeros((rows, length), np.int32)
    positions, segments = np.zeros_like(ids), np.full_like(ids, -1)
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        ids[row, length - n :], positions[row, length - n :], segments[row, length - n :] = prompt, np.arange(n), 0
    split = partial(jax.device_put, device=None if mesh is None else batch_sharding(mesh))
    batch = tuple(map(split, (ids, positions, segments)))
    limit = np.int32(decoding.max_new_tokens)
    new_tokens = padded_length(decoding.max_new_tokens, config.max_positions)
    if decoding.num_beams > 1:
        found = beam_search(
            config,
            params,
            Prompts(*batch),
            Rules(*map(jnp.asarray, (ends, cuts, limit, np.float32(decoding.length_penalty)))),
            num_beams=decoding.num_beams,
            candidates=max(2, 1 + int(ends.sum())) * decoding.num_beams,
            new_tokens=new_tokens,
        )
    else:
        numbers = np.zeros(rows, np.int32)
        numbers[: len(indices)] = indices
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(decoding.seed)))(numbers)
        found = decode(
            config,
            params,
            *(*batch, ends | cuts, limit, split(keys), decoding.sampling),
            new_tokens=new_tokens,
        )
    tokens, lengths, finite = map(np.asarray, found)
    return tokens, lengths, finite


@partial(jax.jit, static_argnames=("config", "new_tokens"))
def decode(
    config: ModelConfig,
    params: Params,
    ids: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    ends: jax.Array,
    limit: jax.Array,
    keys: jax.Array,
    sampling: Sampling | None,
    *,
    new_tokens: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One token after the other behind left-padded prompts, ids, positions, segments [B, T] each (padding -1).

    Args:
        ends: [V] bool, tokens that end a row.
        limit: how many tokens to write at most; ``new_tokens``, at least as many, sets the shapes.
        keys: [B] random keys.

    Returns:
        tokens [B, N], how many of them count [B], and whether all scores were finite [B].
    """
    hidden, cache = decoder.prefill(config, params, ids, positions, segments, places=new_tokens)
    batch = len(ids)
    nobody = (
        jnp.zeros((batch, new_tokens), jnp.int32),
        jnp.zeros(batch, jnp.int32),
        ~jnp.any(segments == 0, axis=1),
        jnp.ones(batch, bool),
    )

    def write(state: tuple[jax.Array, ...], hidden: jax.Array, step: jax.Array) -> tuple[jax.Array, ...]:
        tokens, lengths, ended, finite = state
        scores = decoder.logits(config, params, hidden[:, -1])
        token = next_token(scores, keys, step, sampling)
        finite &= jnp.isfinite(jnp.max(scores, axis=-1))  # a maximum is NaN where any score is
        return tokens.at[:, step].set(token), lengths + ~ended, ended | ends[token], finite

    def unfinished(carry: tuple[jax.Array, tuple[jax.Array, ...], decoder.Cache]) -> jax.Array:
        step, (_, _, ended, _), _ = carry
        return (step < limit) & ~jnp.all(ended)

    def advance(
        carry: tuple[jax.Array, tuple[jax.Array, ...], decoder.Cache],
    ) -> tuple[jax.Array, tuple[jax.Array, ...], decoder.Cache]:
        step, state, cache = carry
        last = jax.lax.dynamic_slice_in_dim(state[0], step - 1, 1, axis=1)
        hidden, cache = decoder.extend(config, params, cache, last, positions[:, -1:] + step, jnp.zeros_like(last))
        return step + 1, write(state, hidden, step), cache

    carry = (jnp.int32(1), write(nobody, hidden, jnp.int32(0)), cache)
    _, (tokens, lengths, _, finite), _ = jax.lax.while_loop(unfinished, advance, carry)
    return tokens, lengths, finite
