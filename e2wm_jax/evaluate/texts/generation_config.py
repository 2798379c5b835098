"""What a checkpoint's generation_config.json says: which tokens end a text, and how tokens are to be drawn."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import read_json
from e2wm_jax.storage.model_files import ModelFiles

TOP_K = 50  # of transformers, where nobody says otherwise
# What transformers' generate would do and ours does not, and the values that mean nothing.
_NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "sequence_bias": (),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1.0,),
    "exponential_decay_length_penalty": (),
}


class GenerationConfig(NamedTuple):
    """None where the file says nothing. What only matters where tokens are drawn is checked there (`drawing`)."""

    ends: tuple[int, ...] = ()  # eos_token_id, one or several
    sample: bool = False
    temperature: float | None = None
    top_k: float | None = None
    top_p: float | None = None
    not_applied: tuple[str, ...] = ()  # "repetition_penalty 1.1": what transformers would do besides


def read_generation_config(files: ModelFiles) -> GenerationConfig:
    """That of a Hugging Face directory; tokens that end texts stand in config.json where they do not stand there.

    Raises:
        InputError: naming file and key of a value that is none of its kind.
    """
    if files.format != "hf":
        return GenerationConfig()
    path = files.path / "generation_config.json"
    raw = read_json(path) if path.is_file() else {}
    ends = _ends(raw, path)
    if ends is None:
        ends = _ends(read_json(files.path / "config.json"), files.path / "config.json")
    besides = {key: raw[key] for key in _NOT_APPLIED if raw.get(key) is not None}
    return GenerationConfig(
        ends or (),
        raw.get("do_sample") is True,
        _number(raw, "temperature", path),
        _number(raw, "top_k", path),
        _number(raw, "top_p", path),
        tuple(f"{key} {value}" for key, value in besides.items() if value not in _NOT_APPLIED[key]),
    )


def drawing(config: GenerationConfig, besides: Collection[str]) -> dict[str, float | None]:
    """Temperature, top_k and top_p of the checkpoint, but for those ``besides`` that are asked for otherwise.

    Raises:
        InputError: naming one with which nothing can be drawn.
    """
    rules = (
        ("temperature", config.temperature, "above 0", lambda value: value > 0),
        ("top_k", config.top_k, "a whole number, 0 or more", lambda value: value >= 0 and value == int(value)),
        ("top_p", config.top_p, "above 0 and at most 1", lambda value: 0 < value <= 1),
    )
    for name, value, rule, fits in rules:
        if value is not None and name not in besides and not fits(value):
            raise InputError(
                f"generation_config.json: {name} is {value}; to draw with, it must be {rule}; "
                f"give --{name.replace('_', '-')}"
            )
    return {name: None if name in besides else value for name, value, *_ in rules}


def _ends(raw: Mapping[str, Any], path: Path) -> tuple[int, ...] | None:
    found = raw.get("eos_token_id")
    if found is None:
        return None
    ends = found if isinstance(found, list) else [found]
    if not all(type(end) is int for end in ends):
        raise InputError(f"{path}: eos_token_id is {found!r}; expected a token's number, or a list of such")
    return tuple(end for end in ends if end >= 0)  # -1 stands for none


def _number(raw: Mapping[str, Any], key: str, path: Path) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise InputError(f"{path}: {key} is {value!r}; expected a number")
    return value
