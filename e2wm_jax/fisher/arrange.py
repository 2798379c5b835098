"""Which documents share a row and which rows a batch, and what a pass over them costs.

Long rows are filled best, short rows compute best, because a row's attention grows with the square of its length, and
documents of similar length belong together: `arrange` tries some of each and keeps what costs least.

Costs are in products of one token with all weights.  A place in a row costs three of them, whether there is a token or
not: the forward pass, the same again in the backward pass, and the inputs' gradients.  Attention adds its share to each
of them and once more, for the gradients of its second operands.  A document costs one per token of the window in which
its product is made (`kernels.square_sum`, "xla"), and a step what it takes to read and write all sums.

Letters: T tokens of a row.
"""

from collections.abc import Sequence
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import padded_length
from e2wm_jax.data.pack import best_fit
from e2wm_jax.kernels.square_sum import RUNGS
from e2wm_jax.models.decoder import weight_table

Layout = Literal["rows", "packed"]

ATTENTION = 1000.0  # of a model of middling size, see `attention_length`
_PER_SCORE = 800  # weights: what a head does with two tokens is bound by memory, it has but 2 * 64 to 2 * 256 products
_PER_PLACE = 3
_PER_STEP = 300
_PER_SHAPE = 20_000  # what compiling a step is worth
_SHORTEST_ROW = 128
_LIMITS = 16  # longest rows to try
_JUDGED = 2048  # documents on which arrangements are compared


class Arranged(NamedTuple):
    """A batch before it is filled."""

    bins: list[list[int]]  # of each row, which documents
    rows: int  # of them; those beyond the bins are empty
    length: int  # T
    documents: int  # places for documents, for each of the devices that share the rows
    per_row: int  # no row has more
    window: int  # no document is longer


def attention_length(config: ModelConfig) -> float:
    """T at which a row's attention costs as much as the products with the weights, about: 500 for a model of width 384
    measured on a CPU."""
    table = weight_table(config)
    stacked = sum(np.prod(spec.shape) for spec in table.values() if spec.stacked)
    head = np.prod(table["embed.weight"].shape)
    return float(stacked + head / config.num_layers) / (_PER_SCORE * config.num_heads)


def arrange(
    lengths: Sequence[int],
    batch_size: int,
    max_length: int,
    layout: Layout,
    parts: int = 1,
    attention: float = ATTENTION,
) -> list[Arranged]:
    """Batches of every document once, the same for the same arguments, of few shapes; short rows first.

    Rows are as many as `batch_size`, packed ones as many as hold the tokens of `batch_size` rows of `max_length`, but
    no more than it takes to have all batches of a length equally full, and a multiple of `parts`.

    Args:
        lengths: of the documents, none above `max_length`.
        attention: `attention_length` of the model.
    """
    if layout == "rows":
        return _in_rows(lengths, batch_size, max_length, parts)
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    judged = [lengths[order[place]] for place in np.linspace(0, len(order) - 1, min(len(order), _JUDGED)).astype(int)]
    share = len(order) / max(len(judged), 1)

    def cost_of(form: tuple[int, int, bool]) -> float:
        return cost(judged, _packed(judged, batch_size, max_length, parts, *form), attention, share)

    return _packed(lengths, batch_size, max_length, parts, *min(_forms(judged, max_length), key=cost_of))


def cost(
    lengths: Sequence[int], batches: Sequence[Arranged], attention: float = ATTENTION, times: float = 1.0
) -> float:
    """Of a pass over these batches, were there so many ``times`` as many."""
    places = sum(batch.rows * batch.length * (_PER_PLACE + 4 * batch.length / attention) for batch in batches)
    squares = sum(_multiplied(lengths[index], batch.window) for batch in batches for row in batch.bins for index in row)
    shapes = {batch[1:] for batch in batches}
    return times * (places + squares + _PER_STEP * len(batches)) + _PER_SHAPE * len(shapes)


def real_share(lengths: Sequence[int], batches: Sequence[Arranged]) -> float:
    """Of the places in the rows, those that hold a token."""
    return sum(lengths) / max(sum(batch.rows * batch.length for batch in batches), 1)


def _multiplied(length: int, window: int) -> int:
    """Tokens of the window of a document."""
    rung = -(-length * RUNGS // window)
    return -(-window * rung // RUNGS)


def _in_rows(lengths: Sequence[int], batch_size: int, max_length: int, parts: int) -> list[Arranged]:
    """A row for each document."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    rows = _even(len(order), batch_size, parts)
    found = []
    for start in range(0, len(order), rows):
        here = order[start : start + rows]
        length = padded_length(lengths[here[-1]], max_length)
        found.append(Arranged([[index] for index in here], rows, length, rows // parts, 1, length))
    return found


def _forms(lengths: Sequence[int], max_length: int) -> list[tuple[int, int, bool]]:
    """Arguments of `_packed` to try."""
    longest = max(lengths, default=1)
    limits = {_up(int(limit), max_length) for limit in np.linspace(longest, min(max_length, 4 * longest), _LIMITS)}
    return list(product((1, 2, 4, max_length), sorted({*limits, max_length}), (True, False)))


def _packed(
    lengths: Sequence[int], batch_size: int, max_length: int, parts: int, times: int, limit: int, fitted: bool
) -> list[Arranged]:
    """Rows about ``times`` as long as their longest document, at most ``limit``; each batch with a window about as long
    as its longest document, if ``fitted``, else one for all rows of a length."""

    def row_for(length: int) -> int:
        return padded_length(min(length * times, limit), limit, least=_SHORTEST_ROW)

    by_length: dict[int, list[list[int]]] = {}
    for row in best_fit(lengths, row_for):
        by_length.setdefault(row_for(lengths[row[0]]), []).append(row)
    found = []
    for length, bins in sorted(by_length.items()):
        bins.sort(key=lambda row: lengths[row[0]])  # a row begins with its longest document
        rows = _even(len(bins), max(parts, batch_size * max_length // length // parts * parts), parts)
        same_shape: dict[int, list[list[list[int]]]] = {}
        for start in range(0, len(bins), rows):
            group = bins[start : start + rows]
            same_shape.setdefault(padded_length(lengths[group[-1][0]], length) if fitted else 0, []).append(group)
        for groups in same_shape.values():
            window = _up(lengths[groups[-1][-1][0]], length)
            documents, per_row = _places(groups, rows // parts), _places(groups, 1)
            found += [Arranged(group, rows, length, documents, per_row, window) for group in groups]
    return found


def _up(length: int, limit: int) -> int:
    """The next multiple of 8, but not above the limit."""
    return min(-(-length // 8) * 8, limit)


def _places(groups: Sequence[Sequence[Sequence[int]]], share: int) -> int:
    """Places for the documents of each ``share`` of the rows of these batches."""
    most = max(sum(map(len, group[start : start + share])) for group in groups for start in range(0, len(group), share))
    # As many as rows where every row is one document.
    return most if most <= share else padded_length(most, 2 * most, least=4)


def _even(bins: int, most: int, parts: int) -> int:
    """Rows of each of the fewest batches of at most `most` rows: as few as hold the bins, a multiple of `parts`."""
    batches = max(1, -(-bins // most))
    return -(-bins // (batches * parts)) * parts
