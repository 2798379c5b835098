"""A process that holds one side of a benchmark, a model perhaps, and is then asked to do this and that.

A request is one line of JSON on stdin, its answer one line on stdout.  So what is compared can be measured in turn, no
side sees the threads or the memory of another, and torch, which is optional, is imported in processes of its own only.
A module that has sides says so in ``SIDES``: name -> function of the case that returns the operations by name.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from types import TracebackType
from typing import Any, Self

from e2wm_jax.errors import InputError

Answer = dict[str, Any]
Operations = Mapping[str, Callable[..., Answer]]


class Peer:
    """A process of its own for one side of a module; ``case`` is what it is told, plain data or a dataclass of it.

    With ``cores`` in the case, it has so many; with ``devices``, so many CPU devices made out of nothing.
    """

    def __init__(self, side: str, case: Any, *, module: str) -> None:
        fields = asdict(case) if is_dataclass(case) and not isinstance(case, type) else case
        words = [sys.executable, "-m", __name__, module, side, json.dumps(fields, default=str)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._side = side

    def ask(self, operation: str, **arguments: Any) -> Answer:
        """Have it done; the answer has "seconds" and what the operation adds.

        Raises:
            InputError: if the side refuses the case.
            RuntimeError: if it cannot do it, or has ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench: the process of {self._side} ended with code {self._process.wait()}, see above")
        answer = dict(json.loads(line))
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "impossible" in answer:
            raise RuntimeError(answer["impossible"])
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        if error is not None:
            self._process.terminate()
        self._process.stdout.close()
        self._process.wait()


def _serve(module: str, side: str, case: dict[str, Any]) -> None:
    """Answer a `Peer`'s requests until it is closed."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what an operation or a library prints is no answer
    _take(case.get("cores", 0), case.get("devices", 0))
    refusal: Answer = {}
    operations: Operations = {}
    try:
        operations = importlib.import_module(module).SIDES[side](case)
    except InputError as error:
        refusal = {"refused": str(error)}
    except Exception as error:
        if side == "ours":
            raise
        refusal = {"impossible": f"{type(error).__name__}: {str(error)[:120]}"}  # the others go on
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("operation")
        started = time.perf_counter()
        answer = refusal or operations[name](**request)
        print(json.dumps({"seconds": time.perf_counter() - started, **answer}), file=answers, flush=True)


def _take(cores: int, devices: int) -> None:
    """Bind this process to so many cores, its threads to come too, and make CPU devices; 0: leave it."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(cores)
    if devices:
        os.environ["JAX_PLATFORMS"] = "cpu"
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others measure on the same accelerator
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
