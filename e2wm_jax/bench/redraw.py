"""The page of a benchmark drawn again from its report.json, alone or beside another run's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2wm_jax.bench import fisher_page, train_page
from e2wm_jax.errors import InputError
from e2wm_jax.files import read_json
from e2wm_jax.report import Section, paragraph, table, write

REPORT_FILE = "report.json"
_PAGES = {"bench fisher": fisher_page.page_of, "bench train": train_page.page_of}


def draw(path: Path, folder: Path, before: Path | None = None) -> None:
    """Draw `report.json` of a folder; with ``before``, that of the same command, what took how long in both.

    Raises:
        InputError: if a folder holds none, or the two are of different commands.
    """
    report, name = _read(folder)
    more = []
    if before is not None:
        earlier, other = _read(before)
        if other != name:
            raise InputError(f"--before {before}: holds e2wm {other}, and {folder} e2wm {name}; give two of a kind")
        more = [Section(f"Beside {before}", _beside(earlier, report))]
    write(path, _PAGES[name](report, more))


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / REPORT_FILE
    if not path.is_file():
        raise InputError(f"{folder}: holds no {REPORT_FILE}; give the --out of e2wm bench fisher or train")
    report = read_json(path)
    name = report.get("command") or ("bench train" if "steps" in report else "bench fisher")
    if name not in _PAGES or not isinstance(report.get("settings"), Mapping):
        raise InputError(f"{path}: not what e2wm bench fisher or train wrote")
    return report, name


def _beside(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    earlier, now = _seconds(before), _seconds(after)
    rows = [
        [name, earlier.get(name), now.get(name), now[name] / earlier[name] if name in earlier and name in now else None]
        for name in dict.fromkeys([*earlier, *now])
    ]
    settings = (before["settings"], after["settings"])
    unlike = [key for key in settings[1] if key != "out" and settings[0].get(key) != settings[1][key]]
    said = "; ".join(f"{key}: {settings[0].get(key)}, now {settings[1][key]}" for key in unlike)
    machines = [f"{one['device']}, {one.get('processor', 'processor not named')}" for one in (before, after)]
    notes = [f"Settings that differ: {said}." if unlike else "Both ran with the same settings."]
    if machines[0] != machines[1]:
        notes.append(f"The machines differ: {machines[0]}; now {machines[1]}.")
    return [table(["", "seconds before", "seconds now", "now / before"], rows), *map(paragraph, notes)]


def _seconds(report: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of what was measured, by name."""
    if "rows" in report:
        names = [(row.get("method") or row.get("layout"), row) for row in report["rows"]]
    else:
        names = [(f"{row['targets']}, {row['side']}", row) for row in report["steps"]]
        names += [(row["regularizer"], row) for row in report["regularizers"]]
    return {str(name): row["seconds"] for name, row in names if "seconds" in row}
