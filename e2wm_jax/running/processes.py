"""Worker processes that may die: the job that a killed process had in hand is done again by a new one.

Each process has a pipe and a thread of its own. The end of a pipe tells at once which process is gone and which job
was lost; with a queue shared by all, a process killed while it holds the queue's lock would stop the others.
`concurrent.futures` knows neither: one killed process breaks its pool, and every future of it.
"""

import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

from e2wm_jax.errors import InputError
from e2wm_jax.running.progress import say

Job = TypeVar("Job")
Result = TypeVar("Result")

ATTEMPTS = 3  # processes that one job may cost
# A worker computes on one core and leaves accelerators alone, whatever it happens to import.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class WorkerDiedError(RuntimeError):
    """A job lost every process that tried it."""


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    pipe: Connection


class Workers(Generic[Job, Result]):
    """A pure function, computed in `count` spawned processes; with none of them, in the caller's own.

    The function is pickled and must not remember anything that changes its results: a job may be done twice.
    Results come as futures, each exactly once. Use it as a context manager: on leaving, processes are ended and
    jobs not done are cancelled.
    """

    def __init__(self, function: Callable[[Job], Result], count: int) -> None:
        self._function = function
        self._payload = pickle.dumps(function) if count else b""
        self._jobs: queue.PriorityQueue[tuple[int, int, tuple[Job, Future[Result]] | None]] = queue.PriorityQueue()
        self._numbers = itertools.count()  # jobs of equal priority in the order in which they came
        self._lock = threading.Lock()  # guards _closing and _running
        self._closing = False
        self._running: set[_Worker] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Workers[Job, Result]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def count(self) -> int:
        """The number of processes."""
        return len(self._threads)

    @property
    def pids(self) -> list[int]:
        """Process ids of those running now; they start with their first job."""
        with self._lock:
            return [worker.process.pid for worker in self._running if worker.process.pid is not None]

    def submit(self, job: Job, *, later: int = 0) -> Future[Result]:
        """The result, in future; jobs with a smaller `later` go first.

        An InputError of the function is raised as it is, another exception as RuntimeError with its traceback,
        WorkerDiedError where `ATTEMPTS` processes died of the job.
        """
        future: Future[Result] = Future()
        with self._lock:
            if self._closing:
                future.cancel()
            elif self._threads:
                self._jobs.put((later, next(self._numbers), (job, future)))
        if not self._threads and future.set_running_or_notify_cancel():
            try:
                future.set_result(self._function(job))
            except Exception as error:
                future.set_exception(error)
        return future

    def close(self) -> None:
        """End the processes and cancel what is not done."""
        with self._lock:
            self._closing = True
            for worker in self._running:
                worker.process.kill()
        for _ in self._threads:
            self._jobs.put((-1, next(self._numbers), None))
        for thread in self._threads:
            thread.join()
        while not self._jobs.empty():
            if (entry := self._jobs.get()[-1]) is not None:
                entry[1].cancel()

    def _serve(self) -> None:
        """One thread's life: jobs to its process, results to their futures."""
        worker: _Worker | None = None
        while (entry := self._jobs.get()[-1]) is not None:
            job, future = entry
            if future.set_running_or_notify_cancel():
                try:
                    worker, result = self._exchange(worker, job)
                    future.set_result(result)
                except BaseException as error:  # whatever happens here is the caller's to know
                    if isinstance(error, WorkerDiedError | CancelledError):
                        worker = None
                    future.set_exception(error)
        if worker is not None:
            self._end(worker)

    def _exchange(self, worker: _Worker | None, job: Job) -> tuple[_Worker, Result]:
        """The result of a job, and the process that gave it."""
        code: int | None = None
        for _ in range(ATTEMPTS):
            worker = worker or self._start()
            try:
                worker.pipe.send(job)
                done, value = worker.pipe.recv()
            except (EOFError, OSError):
                code = self._end(worker)
                if self._closing:
                    raise CancelledError() from None
                say(f"a worker process {_fate(code)}; a new one does its work again")
                worker = None
                continue
            if not done:
                raise value
            return worker, value
        raise WorkerDiedError(f"{ATTEMPTS} worker processes died of one job, the last {_fate(code)}: {job}")

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        with self._lock:  # also: starting a process reaps finished ones, which is not thread-safe
            if self._closing:
                raise CancelledError()
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, self._payload), daemon=True)
            process.start()
            theirs.close()  # the child holds the only other end, so its death closes the pipe
            worker = _Worker(process, ours)
            self._running.add(worker)
            return worker

    def _end(self, worker: _Worker) -> int | None:
        """Make sure that the process is gone; its exit code."""
        worker.pipe.close()
        with self._lock:
            worker.process.kill()
            worker.process.join()
            self._running.discard(worker)
            return worker.process.exitcode


def _fate(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed ({signal.Signals(-code).name}; out of memory?)"
    return f"ended with exit code {code}"


def _work(pipe: Connection, payload: bytes) -> None:
    """A process's life; it ends with the pipe, so it does not outlive its parent either."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    os.environ.update(_ENVIRONMENT)
    function: Callable[[Any], Any] = pickle.loads(payload)
    try:
        while True:
            job = pipe.recv()
            try:
                reply: tuple[bool, Any] = (True, function(job))
            except InputError as error:
                reply = (False, error)
            except Exception:
                reply = (False, RuntimeError(f"in a worker process, on {job}:\n{traceback.format_exc()}"))
            pipe.send(reply)
    except (EOFError, OSError):
        return
