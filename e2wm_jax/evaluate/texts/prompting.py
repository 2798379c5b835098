"""How examples are put to a model, and what becomes of those for which it has too few positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from e2wm_jax.errors import InputError
from e2wm_jax.options.choices import TooLong
from e2wm_jax.running.progress import say

WAYS_OUT = "--too-long truncate cuts prompts from the left, --too-long skip leaves such examples out"
_COUNTED = {"skip": "skipped", "truncate": "truncated"}


@dataclass(frozen=True)
class Prompting:
    """What stands around an example's text, and what happens where it is too long."""

    special_tokens: bool = False  # the tokenizer's default ones
    too_long: TooLong = "refuse"
    chat: bool = False  # the text is what a user says, put into the tokenizer's chat template

    def check(self) -> None:
        """Raise InputError for what does not go together."""
        if self.chat and self.special_tokens:
            raise InputError("--special-tokens with --chat: the chat template writes its own; leave one of them out")


class Need(NamedTuple):
    """How much room an example takes."""

    where: str  # "file:line"
    tokens: int  # of its prompt and of what is to stand behind it


class Fitted(NamedTuple):
    """The examples that are evaluated, by their index in the file."""

    examples: dict[int, Any]
    over: int  # how many were too long
    too_long: TooLong

    @property
    def counts(self) -> dict[str, int]:
        """{"skipped": n} or {"truncated": n} of a result; empty where every example fits."""
        return {_COUNTED[self.too_long]: self.over} if self.over else {}


def fit(
    examples: Mapping[int, Any],
    needs: Mapping[int, Need],
    positions: int,
    too_long: TooLong,
    way_out: str = WAYS_OUT,
) -> Fitted:
    """Those of the examples that are to be evaluated with so many positions; says how many are left out or cut.

    Raises:
        InputError: naming the first that is too long if such are refused, or if none is left.
    """
    over = [index for index, need in needs.items() if need.tokens > positions]
    if not over:
        return Fitted(dict(examples), 0, too_long)
    first, number = needs[over[0]], f"{len(over)} of {len(examples)}"
    if too_long == "refuse":
        raise InputError(
            f"{first.where}: {first.tokens} tokens, the model has {positions} positions ({number} examples are too "
            f"long); {way_out}"
        )
    if too_long == "truncate":
        say(f"{first.where}: {number} examples are cut to the model's {positions} positions, this one and others")
        return Fitted(dict(examples), len(over), too_long)
    if len(over) == len(examples):
        raise InputError(
            f"{first.where}: all {len(over)} examples are too long for the model's {positions} positions; "
            "leave the file out, or use --too-long truncate"
        )
    say(f"{first.where}: {number} examples, this one and others, are left out: the model has {positions} positions")
    left_out = set(over)
    return Fitted({i: one for i, one in examples.items() if i not in left_out}, len(over), too_long)
