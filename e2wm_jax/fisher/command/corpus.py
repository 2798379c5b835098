"""The documents of a Fisher pass: token rows, and where in the data each comes from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.data.source import read_texts
from e2wm_jax.data.tokenize import check_ids, encode
from e2wm_jax.errors import InputError
from e2wm_jax.models.positions import check_positions
from e2wm_jax.storage.files import content_digest


@dataclass(frozen=True)
class Corpus:
    """Documents of two tokens and more, in the order of the data; a document's number is its index here."""

    rows: tuple[Row, ...]
    places: tuple[str, ...]  # of each document as an editor finds it: "file:line", "pydoc:fisher, document 1"
    too_short: int  # documents left out, for they have no token to predict

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return sum(row.num_targets for row in self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(len(row.ids) for row in self.rows)

    def digest(self) -> str:
        """SHA-256 of the tokens: of what the pass sees of data, tokenizer and settings."""
        found = hashlib.sha256()
        for row in self.rows:
            found.update(np.asarray([len(row.ids), row.first_target], np.int64).tobytes())
            found.update(row.ids.tobytes())
            found.update(b"" if row.chosen is None else row.chosen.tobytes())
        return found.hexdigest()


def read_corpus(
    tokenizer: Any,
    data: Sequence[str],
    *,
    samples: int | None,
    max_length: int,
    special_tokens: bool,
    columns: str = "",
    seed: int = 0,
) -> Corpus:
    """Documents with a token to predict, each cut to `max_length` tokens: all, or `samples` of them drawn by `seed`
    without replacement, in the order of the data.

    Args:
        columns: as of `data.source.read_mixture`.

    Raises:
        InputError: for a malformed file, or if there is no such document.
    """
    found = [one for path in data for one in read_texts(path, columns=columns)]
    encoded = encode(tokenizer, [text for _, text in found], special_tokens=special_tokens)
    kept = [number for number, ids in enumerate(encoded) if len(ids) >= 2]
    if not kept:
        raise InputError(f"{' '.join(data)}: no document of two tokens or more; nothing can be predicted")
    chosen = kept
    if samples is not None and samples < len(kept):
        drawn = np.random.default_rng(seed).choice(len(kept), samples, replace=False)
        chosen = [kept[number] for number in sorted(drawn.tolist())]
    rows = []
    for number in chosen:
        ids = encoded[number]
        rows.append(Row(np.asarray(ids[:max_length], np.int32), 1, cut=max(len(ids) - max_length, 0)))
    return Corpus(tuple(rows), tuple(found[number][0] for number in chosen), len(found) - len(kept))


def check_corpus(tokenizer: Any, config: ModelConfig, corpus: Corpus) -> None:
    """Refuse documents that the model cannot read: with too many positions, or a token without a row.

    Raises:
        InputError: naming file and line of the first.
    """
    check_positions(config, corpus.rows, corpus.places.__getitem__)
    check_ids(tokenizer, config.vocab_size, zip(corpus.places, (row.ids for row in corpus.rows), strict=True))


def describe(path: str) -> dict[str, str]:
    """Name and content hash of data, for the record."""
    source = Path(path)
    return {"path": path, "sha256": content_digest(source)} if source.exists() else {"path": path}
