"""Parts of a comparison side by side: a process for each worker, with devices or cores of its own.

A worker is ``python -m e2wm_jax.compare.workers OUT``: it reads the plan from OUT/comparison.json, a job per line from
stdin, and answers each with a line.  It keeps what it has compiled from job to job.  A run computes the same whoever
does it; only where XLA splits one sum over the cores of a CPU may their number show in the last digits.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from e2wm_jax.errors import InputError
from e2wm_jax.running.progress import say


def shares(count: int) -> list[dict[str, str]]:
    """The environment of each of `count` workers: a GPU of its own, or on a CPU a share of the cores.

    Raises:
        InputError: if there are fewer GPUs than workers.
    """
    gpus = visible_gpus()
    if gpus is None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        return [{"E2WM_CORES": ",".join(map(str, cores[n::count] or cores))} for n in range(count)]
    if count > len(gpus):
        raise InputError(f"--workers {count}: there are {len(gpus)} GPUs, and each worker needs one; give at most that")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[n::count])} for n in range(count)]


def visible_gpus() -> list[str] | None:
    """Names of the GPUs that this process may use, found without starting one; None where JAX computes on the CPU."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return None
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    if named is not None and found:
        found = [name.strip() for name in named.split(",") if name.strip()]
    return found or None


@contextmanager
def started(out: Path, count: int) -> Iterator[list["subprocess.Popen[str]"]]:
    """Worker processes of the comparison in `out`; left by an exception, they save what they do and end.

    Raises:
        InputError: if there are fewer GPUs than workers.
    """
    processes = [_start(out, share) for share in shares(count)]
    try:
        yield processes
    except BaseException:
        for process in processes:
            process.send_signal(signal.SIGTERM)  # a run saves its last step before it ends
        raise
    finally:
        for process in processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in processes:
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def do_all(
    processes: Sequence["subprocess.Popen[str]"], jobs: Sequence[Sequence[object]], finished: Callable[[], None]
) -> None:
    """Do the jobs in these processes; `finished` is called in this thread after each.

    Raises:
        InputError: as the job's own, or if a worker's process ended while it had a job.
    """
    idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def do(job: Sequence[object]) -> str | None:
        process = idle.get()
        try:
            return _exchange(process, job)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(len(processes))
    try:
        for done in as_completed([threads.submit(do, job) for job in jobs]):
            if error := done.result():
                raise InputError(error)
            finished()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)  # those that wait for an answer end with their process


def _start(out: Path, share: dict[str, str]) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "e2wm_jax.compare.workers", str(out)]
    # A session of its own: Ctrl-C is for the main process, which passes it on.
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **share},
        start_new_session=True,
    )


def _exchange(process: "subprocess.Popen[str]", job: Sequence[object]) -> str | None:
    """None when the job is done, otherwise what went wrong."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except (OSError, ValueError):  # ValueError: the caller has given up and closed the pipes
        line = ""
    if line:
        return json.loads(line)["error"]
    return (
        f"a worker process ended with code {process.wait()} in {' '.join(map(str, job))}; --resume goes on from there"
    )


def main(out: Path) -> None:
    """A worker's life: it ends with its stdin."""
    if cores := os.environ.get("E2WM_CORES"):
        os.sched_setaffinity(0, set(map(int, cores.split(","))))  # before XLA counts them
    from e2wm_jax.compare.jobs import CompareJob, do
    from e2wm_jax.compare.record import read_plan

    answer_to, sys.stdout = sys.stdout, sys.stderr  # whatever is printed is no answer
    plan = read_plan(out)
    for line in sys.stdin:
        error = None
        try:
            do(plan, CompareJob(*json.loads(line)))
        except KeyboardInterrupt:
            say("interrupted; what was done is kept")
            return
        except InputError as problem:
            error = str(problem)
        print(json.dumps({"error": error}), file=answer_to, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
