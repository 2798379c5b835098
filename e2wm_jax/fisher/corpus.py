"""The documents of a Fisher pass: token rows, and where in the data each comes from."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from e2wm_jax.config import ModelConfig
from e2wm_jax.data.batch import Row
from e2wm_jax.data.source import PYDOC_SPLITS, read_documents
from e2wm_jax.data.token_ids import check_ids
from e2wm_jax.data.tokenize import encode
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json_lines, read_text, sha256


@dataclass(frozen=True)
class Corpus:
    """Documents of two tokens and more, in the order of the data; a document's number is its index here."""

    rows: tuple[Row, ...]
    places: tuple[tuple[str, int], ...]  # of each document: its file, and which of the file's documents it is, from 0
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
    tokenizer: Any, data: Sequence[str], *, samples: int | None, max_length: int, special_tokens: bool
) -> Corpus:
    """The first `samples` documents (None: all) with a token to predict, each cut to `max_length` tokens.

    Raises:
        InputError: for a malformed file, or if there is no such document.
    """
    texts, places = [], []
    for path in data:
        documents = read_documents(path)
        texts += documents
        places += [(path, index) for index in range(len(documents))]
    encoded = encode(tokenizer, texts, special_tokens=special_tokens)
    kept = [number for number, ids in enumerate(encoded) if len(ids) >= 2]
    if not kept:
        raise InputError(f"--data {' '.join(data)}: no document of two tokens or more; nothing can be predicted")
    chosen = kept[:samples]
    return Corpus(
        tuple(Row(np.asarray(encoded[number][:max_length], np.int32), 1) for number in chosen),
        tuple(places[number] for number in chosen),
        len(texts) - len(kept),
    )


def where(corpus: Corpus, number: int) -> str:
    """A document's place as an editor finds it: "file:line", of "pydoc:fisher" the number of the topic from 1."""
    path, index = corpus.places[number]
    if path in PYDOC_SPLITS:
        return f"{path}, document {index + 1}"
    file = Path(path)
    if file.name.removesuffix(".gz").endswith(".txt"):
        text = read_text(file)
        blocks = [found.start() for found in re.finditer(r"\S(?:[^\n]|\n(?!\s*\n))*", text)]
        return f"{path}:{text.count(chr(10), 0, blocks[index]) + 1}"
    lines = [line for line, record in read_json_lines(file) if record["text"].strip()]
    return f"{path}:{lines[index]}"


def check_corpus_ids(tokenizer: Any, config: ModelConfig, corpus: Corpus) -> None:
    """Refuse documents with a token for which the model has no row.

    Raises:
        InputError: naming file and line of the first.
    """
    if corpus.rows and max(int(row.ids.max()) for row in corpus.rows) >= config.vocab_size:
        rows = enumerate(corpus.rows)
        number, row = next((n, row) for n, row in rows if row.ids.max() >= config.vocab_size)
        check_ids(tokenizer, config.vocab_size, [(where(corpus, number), row.ids)])


def describe(path: str) -> dict[str, str]:
    """Name and content hash of a data file, for the record."""
    return {"path": path} if path in PYDOC_SPLITS else {"path": path, "sha256": sha256(Path(path))}
