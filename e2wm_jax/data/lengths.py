"""Which lengths rows are padded to: few, for a program is compiled for each, and near, for padding is computed too."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from e2wm_jax.data.batch import Row

MOST = 3  # lengths
# On machines and models of all sizes a compilation takes about as long as so many steps do, of the longest rows.
_COMPILATION = 30


def few_lengths(batches: Mapping[int, float], limit: int, *, most: int = MOST) -> tuple[int, ...]:
    """The lengths to pad to, ascending: those for which padding and compilations together cost least.

    Args:
        batches: the number of batches, or what is expected of it, whose longest row has so many tokens.
        limit: no length is above it.
        most: lengths at most.
    """
    padded: defaultdict[int, float] = defaultdict(float)
    for length, number in batches.items():
        padded[min(_rounded(length), limit)] += number
    sizes = np.array(sorted(padded), np.float64)
    counts = np.cumsum([padded[int(size)] for size in sizes])
    cost, chosen = sizes * counts, [[place] for place in range(len(sizes))]  # with the length at a place as the last
    best = cost[-1], chosen[-1]
    for number in range(2, min(most, len(sizes)) + 1):
        # One more length before: all batches up to it are as cheap as they were, the others are padded to this one.
        before = [cost[:place] + sizes[place] * (counts[place] - counts[:place]) for place in range(len(sizes))]
        which = [int(np.argmin(options)) if len(options) else 0 for options in before]
        cost = np.array([min(options, default=np.inf) for options in before])
        chosen = [[*chosen[which[place]], place] for place in range(len(sizes))]
        best = min(best, (cost[-1] + (number - 1) * _COMPILATION * sizes[-1], chosen[-1]))
    return tuple(int(sizes[place]) for place in best[1])


def longest_of(lengths: Sequence[int], draws: int, batches: float) -> dict[int, float]:
    """What to expect of `batches` batches, each of so many rows drawn without replacement: the number of those whose
    longest row has each length."""
    draws = min(draws, len(lengths))
    at_most, found, before = 0, {}, 0.0
    for length, count in sorted(Counter(lengths).items()):
        at_most += count
        share = math.exp(_log_choices(at_most, draws) - _log_choices(len(lengths), draws)) if at_most >= draws else 0.0
        found[length], before = (share - before) * batches, share
    return found


def shapes_of(rows: Iterable[Row], lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """For each length the predicted tokens to pad to: those of any row that is no longer."""
    targets = dict.fromkeys(lengths, 1)
    for row in rows:
        length = next(length for length in lengths if length >= len(row.ids))
        targets[length] = max(targets[length], row.num_targets)
    most = np.maximum.accumulate(list(targets.values()))
    return tuple((length, min(_rounded(int(number)), length)) for length, number in zip(lengths, most, strict=True))


def _rounded(length: int) -> int:
    step = 16 if length <= 256 else 64  # lengths that matrix units like
    return -(-length // step) * step


def _log_choices(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
