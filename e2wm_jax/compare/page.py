"""`report.html` of a comparison: what was learned against what was forgotten, by arm, set and corpus."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from e2wm_jax.compare.plan import fisher_name
from e2wm_jax.compare.record import read_record
from e2wm_jax.compare.verdict import error_bars, for_readers, verdict
from e2wm_jax.evaluate.page.evaluations import StoredEvaluation
from e2wm_jax.evaluate.page.examples import written
from e2wm_jax.evaluate.results import headline, majority_of
from e2wm_jax.fisher.command.page import summary_pictures
from e2wm_jax.report import (
    Point,
    Section,
    bar_chart,
    details,
    key_values,
    line_chart,
    page,
    paragraph,
    scatter_chart,
    table,
    write,
)
from e2wm_jax.storage.metrics import read_metrics
from e2wm_jax.storage.model_files import model_name
from e2wm_jax.train.loop import METRICS_FILE

REPORT_FILE = "report.html"
_EXAMPLES = 2  # of each set that asks for text
Record = Mapping[str, Any]


def write_page(folder: Path) -> None:
    """Draw a directory of `e2wm compare` into its report.html; of an unfinished one, what is there.

    Raises:
        InputError: if the directory holds no comparison.
    """
    record = for_readers(read_record(folder))
    standings = record["trade_off"]
    sections = [Section("Result", _result(record, standings))]
    if standings:
        sections += [
            Section("Set by set", _sets(record, standings)),
            Section("Retention by corpus", _corpora(record, standings)),
            Section("What was written", _written(record, folder)),
            Section("Losses", _losses(record, folder)),
        ]
    sections.append(Section("Fisher by layer", list(_fishers(record, folder))))
    sections.append(Section("How it was made", _made(record)))
    arms, seeds = len(record["arms"]), len(record["config"]["seeds"])
    model = model_name(record["config"]["model"])
    lead = f"{arms} ways to finetune {model}, each with {seeds} seed{'s' * (seeds != 1)}."
    write(folder / REPORT_FILE, page("Comparison", sections, lead=lead))


def trade_off_chart(standings: Sequence[Record]) -> str:
    """Skill against forgetting; strengths of one regularizer are joined, arms of the Pareto front marked by a star."""
    sizes = {one["series"]: sum(other["series"] == one["series"] for other in standings) for one in standings}
    points = [
        Point(
            _label(one),
            one["forgetting"]["mean"],
            one["skill"]["mean"],
            x_error=_spread(one["forgetting"]),
            y_error=_spread(one["skill"]),
            series=one["series"] if sizes[one["series"]] > 1 else None,
        )
        for one in standings
    ]
    return scatter_chart(
        points,
        title="Skill against forgetting",
        x_label="general text, nats per token above the base",
        y_label="skill, mean over sets",
        better=("lower", "higher"),
        base=_label(standings[0]),
    )


def skill_chart(record: Record) -> str:
    """Each set's score by arm, with the score of always giving the most frequent answer."""
    standings, base = record["trade_off"], record["base"]["sets"]
    names = [one["name"] for one in record["config"]["sets"]]
    return bar_chart(
        {name: {one["arm"]: one["sets"][name]["mean"] for one in standings} for name in names},
        title="Score of each set",
        x_label="accuracy, ROUGE-L, list overlap, or bAbI's mean accuracy",
        baselines={name: majority_of(base[name]) for name in names},
        errors={name: {one["arm"]: _set_error(record, one, name) for one in standings} for name in names},
        order=_names(standings),
    )


def _set_error(record: Record, one: Record, name: str) -> float | tuple[float, float] | None:
    """Of a set's score: the standard error over seeds, or of a single run the ends of its interval over examples."""
    if one["sets"][name]["error"] is not None:
        return one["sets"][name]["error"]
    runs = [run for arm in record["arms"] if arm["name"] == one["arm"] for run in arm["runs"] if run["sets"]]
    scores = (runs[0] if runs else record["base"])["sets"][name]
    metric = headline(scores)
    ends = scores.get("intervals", {}).get(metric)
    return ends and (scores[metric] - ends[0], ends[1] - scores[metric])


def _result(record: Record, standings: Sequence[Record]) -> list[str]:
    planned = len(record["arms"]) * len(record["config"]["seeds"])
    done = sum(len(arm["runs"]) for arm in record["arms"])
    blocks = [paragraph(f"{done} of {planned} runs are done.")] if done < planned else []
    blocks += [
        paragraph(f"{arm['name']}, seed {run['seed']}, failed: {run['failed']}")
        for arm in record["arms"]
        for run in arm["runs"]
        if "failed" in run
    ]
    if not standings:
        return [*blocks, paragraph("The base is not evaluated yet.")]
    rows = [
        [one["arm"], _cell(one["skill"]), _cell(one["forgetting"]), one["runs"], "yes" if one["front"] else "no"]
        for one in standings
    ]
    caption = f"Error bars: {error_bars(standings)}. A star marks the Pareto front."
    return [
        *blocks,
        *map(paragraph, verdict(standings)),
        trade_off_chart(standings),
        table(["arm", "skill", "nats above the base", "runs", "front"], rows, caption=caption),
        paragraph(
            "Beyond chance: the 95 % interval of the difference on the same examples (bootstrap) excludes 0, and all "
            "seeds agree. The front holds the arms to which no other is at least equal in both and better in one."
        ),
    ]


def _sets(record: Record, standings: Sequence[Record]) -> list[str]:
    base = record["base"]["sets"]
    rows = [
        [one["name"], headline(base[one["name"]]), *(s["sets"][one["name"]]["mean"] for s in standings)]
        for one in record["config"]["sets"]
    ]
    blocks = [skill_chart(record), details("Numbers", table(["set", "score", *_names(standings)], rows))]
    for one in record["config"]["sets"]:
        blocks += [paragraph(f"{one['name']}: {defect}") for defect in base[one["name"]].get("defects", ())]
    return blocks


def _corpora(record: Record, standings: Sequence[Record]) -> list[str]:
    base = record["base"]["sets"]
    names = [one["name"] for one in record["config"]["texts"]]
    chart = bar_chart(
        {name: {one["arm"]: one["sets"][name]["mean"] for one in standings[1:]} for name in names},
        title="Forgetting by corpus",
        x_label="nats per token above the base",
        errors={name: {one["arm"]: one["sets"][name]["error"] for one in standings[1:]} for name in names},
        order=_names(standings),
    )
    rows = [[name, base[name]["nats"], *(s["sets"][name]["mean"] for s in standings[1:])] for name in names]
    return [chart, details("Numbers", table(["corpus", "base, nats", *_names(standings[1:])], rows))]


def _written(record: Record, folder: Path) -> list[str]:
    """Some answers of the base and of the first run of each arm."""
    runs = {record["trade_off"][0]["arm"]: record["base"]}
    runs |= {arm["name"]: run for arm in record["arms"] for run in arm["runs"][:1] if run["sets"]}
    sources = tuple(one["path"] for one in record["config"]["sets"])
    shown = []
    for label, run in runs.items():
        files = sorted((folder / run["folder"] / "evaluation/predictions").glob("*.jsonl"))
        shown.append(
            StoredEvaluation(label, predictions={path.name.split(".")[0]: path for path in files}, data=sources)
        )
    return list(written(shown, _EXAMPLES))


def _fishers(record: Record, folder: Path) -> Iterator[str]:
    """Each Fisher, with the arms that it holds."""
    arms: dict[Path, list[str]] = {}
    for arm in record["arms"]:
        if arm["fisher"]:
            arms.setdefault(folder / "fishers" / fisher_name(arm["fisher"]), []).append(arm["name"])
        elif given := arm["train"].get("fisher"):
            arms.setdefault(Path(given), []).append(arm["name"])
    for place, held in arms.items():
        if charts := summary_pictures(place):
            yield details(f"Fisher of {', '.join(held)}", "".join(charts))


def _losses(record: Record, folder: Path) -> list[str]:
    """The first run of each arm."""
    logs = {}
    for arm in record["arms"]:
        path = folder / arm["runs"][0]["folder"] / METRICS_FILE if arm["runs"] else None
        if path is not None and path.is_file():
            logs[arm["name"]] = read_metrics(path)
    loss = {name: [(row["step"], row["task_loss"]) for row in log] for name, log in logs.items()}
    if not loss:
        return []
    order = _names(record["trade_off"])
    return [
        line_chart(loss, title="Task loss", x_label="step", y_label="nats per answer token", smooth=True, order=order)
    ]


def _made(record: Record) -> list[str]:
    config = record["config"]
    facts = {"model": config["model"], "seeds": ", ".join(map(str, config["seeds"])), **config["evaluation"]}
    rows = [
        [arm["name"], run["seed"], run["summary"].get("steps"), run["seconds"]]
        for arm in record["arms"]
        for run in arm["runs"]
    ]
    blocks = [key_values(facts)]
    blocks += [key_values(machine) for machine in record["machines"]]
    if rows:
        blocks.append(details("Runs", table(["arm", "seed", "steps", "seconds with evaluation"], rows)))
    for arm in record["arms"]:
        settings = {f"train.{key}": _plain(value) for key, value in arm["train"].items()}
        settings |= {f"fisher.{key}": _plain(value) for key, value in (arm["fisher"] or {}).items()}
        blocks.append(details(arm["name"], key_values(settings)))
    return blocks


def _label(one: Record) -> str:
    return f"{one['arm']} ★" if one["front"] else one["arm"]


def _names(standings: Sequence[Record]) -> list[str]:
    return [one["arm"] for one in standings]


def _spread(score: Record) -> tuple[float, float] | None:
    if score["low"] is None or score["low"] == score["high"]:
        return None
    return score["mean"] - score["low"], score["high"] - score["mean"]


def _cell(score: Record) -> str:
    if score["low"] is None or score["low"] == score["high"]:
        return f"{score['mean']:.3f}"
    return f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else value
