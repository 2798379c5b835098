"""What a compiled program multiplies and moves on one device, read from its optimized HLO text.

XLA's own `cost_analysis` counts the body of a loop once; a layer scan runs it once per layer.  Here every computation
counts as often as it runs: a loop's body times the trip count that XLA knows, a called one once per call.  A loop whose
trip count XLA does not know counts once, and is reported.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+[0-9a-z]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONTRACTED = re.compile(r"\blhs_contracting_dims=\{([0-9,]*)\}")


class Program(NamedTuple):
    """Of one device."""

    flops: float  # of products of matrices
    bytes: dict[str, float]  # of the outputs of collectives, by kind
    calls: dict[str, int]  # how many of them run
    largest: dict[str, float]  # the output of one
    unknown_loops: int

    @property
    def moved(self) -> float:
        """Bytes of all collectives."""
        return sum(self.bytes.values())


@dataclass
class _Computation:
    flops: float = 0.0
    outputs: list[tuple[str, float]] = field(default_factory=list)  # of collectives: kind, bytes
    calls: list[tuple[str, int]] = field(default_factory=list)  # computation, times
    unknown_loops: int = 0


def read_program(text: str) -> Program:
    """Count an optimized HLO module (`compiled.as_text()`), as XLA writes it for CPU."""
    entry, computations = _parse(text)
    flops, unknown = 0.0, 0
    moved: defaultdict[str, float] = defaultdict(float)
    largest: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for name, times in _runs(entry, computations):
        one = computations[name]
        flops += times * one.flops
        unknown += one.unknown_loops
        for kind, size in one.outputs:
            moved[kind] += times * size
            largest[kind] = max(largest[kind], size)
            calls[kind] += times
    return Program(flops, dict(moved), dict(calls), dict(largest), unknown)


def _parse(text: str) -> tuple[str, dict[str, _Computation]]:
    computations: dict[str, _Computation] = {}
    shapes: dict[str, str] = {}
    entry, here = "", _Computation()
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            here = computations.setdefault(head[2], _Computation())
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            name, shape, operation, rest = found.groups()
            shapes[name] = shape
            _add(here, shape, operation, rest, shapes)
    return entry, computations


def _add(here: _Computation, shape: str, operation: str, rest: str, shapes: dict[str, str]) -> None:
    if operation == "dot":
        here.flops += 2.0 * _numbers(shape) * _contracted(rest, shapes)
    elif operation.removesuffix("-start") in COLLECTIVES:
        here.outputs.append((operation.removesuffix("-start"), _size(shape)))
    times = 1
    if operation == "while":
        trips = _TRIPS.search(rest)
        times = int(trips[1]) if trips else 1
        here.unknown_loops += trips is None
    names = _CALLED.findall(rest)
    for branches in _BRANCHES.findall(rest):
        names += [branch.strip(" %") for branch in branches.split(",")]
    here.calls += [(name, times) for name in names]


def _contracted(rest: str, shapes: dict[str, str]) -> int:
    """Length of the sums of a dot, from the shape of its first operand."""
    operand = rest.split(")")[0].split(", %")[0]
    typed = _ARRAY.search(operand)
    array = typed or _ARRAY.search(shapes[operand.strip(" %").split(",")[0]])
    dimensions = _CONTRACTED.search(rest)
    if array is None or dimensions is None:
        return 1
    sizes = [int(size) for size in array[2].split(",") if size]
    return math.prod(sizes[int(at)] for at in dimensions[1].split(",") if at)


def _runs(entry: str, computations: dict[str, _Computation]) -> Iterator[tuple[str, int]]:
    """Every computation with the times that it runs, once for each way to it."""
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        yield name, times
        waiting += [(called, times * each) for called, each in computations[name].calls if called in computations]


def _numbers(shape: str) -> int:
    return sum(math.prod(int(size) for size in sizes.split(",") if size) for _, sizes in _ARRAY.findall(shape))


def _size(shape: str) -> float:
    """Bytes of an array or of a tuple of arrays."""
    total = 0.0
    for kind, sizes in _ARRAY.findall(shape):
        each = _BYTES.get(kind) or int(re.sub(r"\D", "", kind) or 8) / 8
        total += each * math.prod(int(size) for size in sizes.split(",") if size)
    return total
