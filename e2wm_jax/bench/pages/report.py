"""The report of a benchmark, from its JSON alone: on stdout, as a page, and beside that of an earlier run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e2wm_jax.bench.harness import print_table
from e2wm_jax.bench.pages import fisher, train
from e2wm_jax.errors import InputError
from e2wm_jax.report import Section, details, key_values, page, paragraph, table, write
from e2wm_jax.storage.files import read_json, write_json

REPORT_FILE = "report.json"
# Each has lead, tables, sentences, sections and charts of a report, and HOW it was measured.
_TOPICS = {"bench fisher": fisher, "bench train": train}


def show(report: dict[str, Any]) -> None:
    """The report as tables on stdout."""
    topic = _TOPICS[report["command"]]
    print(topic.lead(report))
    tables = topic.tables(report)
    for title, (headers, rows) in tables.items():
        if len(tables) > 1:
            print(f"\n{title}")
        print_table(headers, rows)
    for sentence in topic.sentences(report):
        print(sentence)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write report.html and report.json into a new directory."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT_FILE, report)
    write(folder / "report.html", page_of(report["command"], report))


def page_of(name: str, report: dict[str, Any], more: Sequence[Section] = ()) -> str:
    """The page of a report of that command, with `more` sections behind the results."""
    topic = _TOPICS[name]
    how = [paragraph(topic.HOW), details("All settings", key_values(report["settings"]))]
    charts = Section("Charts", topic.charts(report))
    sections = [*topic.sections(report), *more, charts, Section("How it was measured", how)]
    footer = f"jax {report['jax']}, load of the machine {report['load']}"
    return page(f"e2wm {name}", sections, lead=topic.lead(report), footer=footer)


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
    write(path, page_of(name, report, more))


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / REPORT_FILE
    if not path.is_file():
        raise InputError(f"{folder}: holds no {REPORT_FILE}; give the --out of e2wm bench fisher or train")
    report = read_json(path)
    name = report.get("command") or ("bench train" if "steps" in report else "bench fisher")
    if name not in _TOPICS or not isinstance(report.get("settings"), Mapping):
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
