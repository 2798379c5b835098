"""Progress bars on stderr: shown on a terminal, a line now and then in a log."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(name: str, total: int | None, unit: str) -> Any:
    """A tqdm bar; in a log file it prints at most every ten seconds."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total, desc=name, unit=unit, file=sys.stderr, mininterval=interval, maxinterval=interval, ncols=100
    )


def say(message: str) -> None:
    """One line for the user on stderr; stdout is for results."""
    print(message, file=sys.stderr, flush=True)
