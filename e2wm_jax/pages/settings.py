"""The settings of `e2wm report`."""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class ReportSettings:
    """Draw a run of train, a Fisher, an evaluation, comparison, sequence, demo, benchmark or experiences as a page."""

    path: tyro.conf.Positional[Path]
    """The directory that the command wrote, or a file of predictions."""
    out: Path | None = None
    """The page; by default report.html in the directory."""
    before: Path | None = None
    """Of a run or an evaluation: an evaluation of the model before, the --out of eval all or a file of predictions. Of
    a benchmark: an earlier one, to stand beside it."""
    after: Path | None = None
    """Of a run: an evaluation of what it made, where none lies in its directory."""
    examples: int = 4
    """How many trajectories are drawn, and answers of each set shown."""
