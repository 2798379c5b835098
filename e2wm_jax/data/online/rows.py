"""Token rows of endless data, made in worker processes a little ahead of where they are read."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple

from e2wm_jax.data.batch import Row
from e2wm_jax.data.columns import as_turns
from e2wm_jax.data.online.generate import UNIT, examples
from e2wm_jax.data.online.names import OnlineTask
from e2wm_jax.data.source import TaskExample
from e2wm_jax.data.tokenize import task_rows
from e2wm_jax.errors import InputError
from e2wm_jax.running.processes import Workers

_KEPT = 16  # units kept behind the place that is read: packing and threads may ask for one twice
_TRIES = 16  # units from which one is filled where rows are skipped


class Unit(NamedTuple):
    """A job: which unit of which task."""

    part: int
    number: int


@dataclass(frozen=True)
class RowMaker:
    """What a worker does: simulate, verbalise and tokenise one unit."""

    tokenizer: Any
    tasks: tuple[tuple[float, OnlineTask], ...]  # with the weights of their answers
    seed: int
    max_length: int
    special_tokens: bool = False
    skip_truncated: bool = False
    append_eos: bool | None = None
    chat: bool = False

    def __call__(self, unit: Unit) -> list[Row]:
        """The `UNIT` rows of a unit.

        Raises:
            InputError: if a row has no answer token within max_length; with skip_truncated, if most have none.
        """
        weight, task = self.tasks[unit.part]
        rows: list[Row] = []
        for again in range(_TRIES if self.skip_truncated else 1):
            # Units from far behind the first ones take the places of rows that are skipped.
            number = unit.number + again * 2**40
            made = [
                TaskExample(example.input, example.ref, weight, example_name(task, number * UNIT + place))
                for place, example in enumerate(examples(task, seed=self.seed, unit=number))
            ]
            rows += self._rows(made)
            if len(rows) >= UNIT:
                return rows[:UNIT]
        raise InputError(
            f"--data {task.name}: --max-length {self.max_length} cuts away the answers of most examples; raise it"
        )

    def _rows(self, made: Sequence[TaskExample]) -> list[Row]:
        if not self.skip_truncated:
            return self._tokenized(made)
        rows = []
        for example in made:
            try:
                rows += self._tokenized([example])
            except InputError:  # no answer token: skipped
                continue
        return rows

    def _tokenized(self, made: Sequence[TaskExample]) -> list[Row]:
        return task_rows(
            self.tokenizer,
            [as_turns(example) for example in made] if self.chat else made,
            max_length=self.max_length,
            special_tokens=self.special_tokens,
            append_eos=self.append_eos,
        )[0]


def example_name(task: OnlineTask, item: int) -> str:
    """How messages and logs call an example: "online:count/17"."""
    return f"{task.name}/{item}"


class OnlineRows:
    """Endless rows by number. Asking for one has the next units made ahead, so read them in about their order."""

    def __init__(self, workers: Workers[Unit, list[Row]], part: int, task: OnlineTask) -> None:
        self.task = task
        self._workers, self._part = workers, part
        self._ahead = 2 * workers.count
        self._units: OrderedDict[int, Future[list[Row]]] = OrderedDict()
        self._lock = Lock()

    def __getitem__(self, item: int) -> Row:
        """The row; waits for it where it is not there yet.

        Raises:
            InputError: see `RowMaker`.
            WorkerDiedError: if making it kills every worker that tries.
        """
        number, place = divmod(item, UNIT)
        with self._lock:
            for wanted in range(number, number + self._ahead + 1):
                if wanted not in self._units:
                    self._units[wanted] = self._workers.submit(Unit(self._part, wanted), later=wanted - number)
            wanted_unit = self._units[number]
            self._units.move_to_end(number)
            while len(self._units) > self._ahead + 1 + _KEPT:
                self._units.popitem(last=False)
        return wanted_unit.result()[place]


@contextmanager
def online_rows(maker: RowMaker, *, workers: int) -> Iterator[list[OnlineRows]]:
    """The rows of each task of `maker`, made by so many processes (0: in this one) until the context is left."""
    with Workers(maker, workers if maker.tasks else 0) as pool:
        yield [OnlineRows(pool, part, task) for part, (_, task) in enumerate(maker.tasks)]
