"""The name of the machine that a benchmark ran on."""

import os
import platform
from pathlib import Path


def processor() -> str:
    """The CPU's name and the cores that may be used, such as "AMD EPYC 7B13, 2 cores"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # elsewhere than on Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, "") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{name}, {cores} core{'s' * (cores != 1)}"
