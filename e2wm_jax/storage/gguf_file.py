"""The container of llama.cpp's models: a header of metadata and tensor infos, then the tensors' bytes.

Read here because `gguf.GGUFReader` makes an array of every string of the vocabulary, which takes seconds; types,
block sizes and dequantization are `gguf`'s.  Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from e2wm_jax.errors import InputError
from e2wm_jax.storage.files import check_fetched

_MAGIC, _VERSIONS, _ALIGNMENT = b"GGUF", (2, 3), 32
_SCALARS = "BbHhIif?saQqd"  # struct's letters by type number; s a string, a an array
_STRING, _ARRAY = _SCALARS.index("s"), _SCALARS.index("a")
_MAX_DIMS = 4
_PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")  # as gguf-split names them


class GgufField(NamedTuple):
    """A metadata value, read as `gguf.ReaderField` is."""

    value: Any

    def contents(self) -> Any:
        """The value: a number, a string, or a list of them."""
        return self.value


class GgufTensor(NamedTuple):
    """Where a tensor is and what: its type by `gguf.GGMLQuantizationType`'s numbers, its shape outermost first."""

    kind: int
    shape: tuple[int, ...]
    offset: int  # in the file
    path: Path


@dataclass(frozen=True)
class GgufFile:
    """The header of a file, or of the parts of a model; bytes are mapped when asked for."""

    path: Path
    fields: dict[str, GgufField]
    tensors: dict[str, GgufTensor]

    def data(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor of a known type, [..., bytes of a row], mapped from the file."""
        tensor = self.tensors[name]
        return np.memmap(tensor.path, np.uint8, "r", tensor.offset, _byte_shape(tensor))


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file and check that all it tells of is there; of a model in parts, given by the
    first, all of them.

    Raises:
        InputError: for a part without the others, or a file for other machines.
        ValueError: saying what is wrong with the file.
        OSError: if it, or another part, cannot be opened.
    """
    file = _read_one(path)
    count = file.fields["split.count"].value if "split.count" in file.fields else 0
    if not isinstance(count, int) or count < 2:
        return file
    match = _PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise InputError(f"{path}: one of {count} parts; they must be named NAME-00001-of-{count:05d}.gguf and so on")
    names = [f"{match['name']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    if path.name != names[0]:
        raise InputError(f"{path}: part {int(match['number'])} of {count}; give the first, {names[0]}")
    if missing := [name for name in names if not path.with_name(name).is_file()]:
        raise InputError(f"{path}: the first of {count} parts, and {missing[0]} is not beside it; fetch it too")
    tensors = dict(file.tensors)
    for name in names[1:]:
        check_fetched(path.with_name(name))
        try:
            part = _read_one(path.with_name(name))
        except ValueError as error:
            raise ValueError(f"its part {name}: {error}") from error
        if twice := sorted(tensors.keys() & part.tensors.keys()):
            raise InputError(f"{path}: {twice[0]} is in {name} too; fetch the parts again")
        tensors |= part.tensors
    expected = file.fields["split.tensors.count"].value if "split.tensors.count" in file.fields else len(tensors)
    if len(tensors) != expected:
        raise InputError(f"{path}: its parts hold {len(tensors)} tensors, not {expected}; fetch them again")
    return GgufFile(path, file.fields, tensors)


def _read_one(path: Path) -> GgufFile:
    if path.stat().st_size < len(_MAGIC):
        raise ValueError(f"it has {path.stat().st_size} bytes")
    cursor = _Cursor(np.memmap(path, np.uint8, "r"))
    if cursor.take(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    if (version := cursor.number("I")) not in _VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise InputError(f"{path}: a big-endian GGUF file; give a little-endian one, as nearly all are")
        raise ValueError(f"version {version}; supported: {', '.join(map(str, _VERSIONS))}")
    tensor_count, field_count = cursor.number("Q"), cursor.number("Q")
    fields = {}
    for _ in range(field_count):
        name = cursor.string()
        fields[name] = GgufField(cursor.value(cursor.number("I")))
    infos = [_tensor_info(cursor, path) for _ in range(tensor_count)]
    alignment = fields["general.alignment"].value if "general.alignment" in fields else _ALIGNMENT
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, tensor in infos:
        if name in tensors:
            raise ValueError(f"two tensors {name}")
        tensors[name] = tensor._replace(offset=start + tensor.offset)
        if (end := _end(tensors[name])) > cursor.size:
            raise ValueError(f"{name} ends at byte {end} of {cursor.size}")
    return GgufFile(path, fields, tensors)


class _Cursor:
    """A place in the header that moves on as values are read."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.size, self.at = data.data, data.size, 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise ValueError(f"it ends at byte {self.size}, within its header")
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, letter: str) -> Any:
        size = struct.calcsize(f"<{letter}")
        return struct.unpack(f"<{letter}", self.take(size))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def strings(self, count: int) -> list[str]:
        """As many calls of `string`, ten times as fast: a vocabulary has 100000 of them."""
        data, at, length, found = self.data, self.at, struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            start = at + 8
            at = start + length(data, at)[0] if start <= self.size else self.size + 1
            if at > self.size:
                raise ValueError(f"it ends at byte {self.size}, within its header")
            found.append(str(data[start:at], "utf-8"))
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        if kind >= len(_SCALARS):
            raise ValueError(f"unknown type {kind} of metadata at byte {self.at}")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return self.strings(count)
        if kind == _ARRAY or kind >= len(_SCALARS):
            return [self.value(kind) for _ in range(count)]
        letter = _SCALARS[kind]
        return list(struct.unpack(f"<{count}{letter}", self.take(count * struct.calcsize(f"<{letter}"))))


def _tensor_info(cursor: _Cursor, path: Path) -> tuple[str, GgufTensor]:
    name = cursor.string()
    if not 1 <= (dims := cursor.number("I")) <= _MAX_DIMS:
        raise ValueError(f"{name} has {dims} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dims))[::-1]
    return name, GgufTensor(cursor.number("I"), shape, cursor.number("Q"), path)


def _byte_shape(tensor: GgufTensor) -> tuple[int, ...]:
    import gguf

    return gguf.quant_shape_to_byte_shape(tensor.shape, gguf.GGMLQuantizationType(tensor.kind))


def _end(tensor: GgufTensor) -> int:
    """Of its bytes in the file, as far as its type is known."""
    import gguf

    if tensor.kind not in list(gguf.GGMLQuantizationType):
        return tensor.offset
    return tensor.offset + math.prod(_byte_shape(tensor))
