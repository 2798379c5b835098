"""How `e2wm bench fisher` shows its numbers: a table on stdout, and report.html with the same and charts."""

from typing import Any

from e2wm_jax.report import Section, bar_chart, details, key_values, paragraph, table
from e2wm_jax.storage.model_files import model_name

Report = dict[str, Any]
_SPREAD = {
    "seconds": "seconds",
    "over_textbook": "/ textbook",
    "over_plain": "/ plain",
    "over_fused": "/ fused",
    "times_official": "x official",
}
_PLAIN = {
    "examples_per_second": "examples/s",
    "extra_parameters": "memory / weights",
    "grown_parameters": "grown / weights",
}
_COLUMNS = ("seconds", "examples_per_second", *list(_SPREAD)[1:], "extra_parameters", "grown_parameters")
_MEANING = {
    "textbook": "jax.grad of the mean loss of the batch: no Fisher, but what a pass over the data costs anyway",
    "plain": "the fastest ordinary gradient found; no Fisher either",
    "vmap": "the Fisher by the book: a gradient per document, all at once",
    "scan": "the Fisher by the book: a gradient per document, one after another",
    "fused": "one backward pass that sums the documents' squares as it goes",
    "fused-qv": "the same, of the query and value maps only",
    "official": "the loop of the E2WM code in torch: one document at a time, squared on the host",
    "torch-func": "torch.func: vmap of grad over the documents",
    "backpack": "BackPACK's SumGradSquared",
    "opacus": "Opacus' GradSampleModule, then squared",
    "jax-privacy": "jax_privacy's clipped_fun of the squared gradient, clipped at infinity",
}
HOW = (
    "Everything in one run, in turn, after a pass that compiles. Times are medians over the rounds, in brackets "
    "the least and the greatest; a ratio is the median of the ratios within a round, of what was measured in "
    "turn. Peers other than the official loop run one at a time, each beside textbook and fused again; these "
    "measurements stand under theirs. Memory is what a compiled step holds at most by XLA's account beyond the "
    "parameters and its result (F, or the gradient); grown, for peers, what their process grew by beyond F; both "
    "over the memory of all parameters in float32. The error of F is the greatest of any tensor over that "
    "tensor's greatest F, against the gradient of each document by itself."
)


def sections(report: Report) -> list[Section]:
    """The result as the page has it."""
    blocks = [table(*found) for found in tables(report).values()]
    if report["settings"]["packed"]:
        return [Section("Result", blocks)]
    named = {row["method"]: _MEANING.get(row["method"], "a function of your own") for row in report["rows"]}
    more = details("What the rows are", key_values(named))
    return [Section("Result", [*map(paragraph, sentences(report)), *blocks, more])]


def lead(report: Report) -> str:
    """What was measured, and where."""
    rates = {"ours": report["gflops"]} | {row["method"]: row["gflops"] for row in report["rows"] if "gflops" in row}
    device = report["device"] if report["device"] != "cpu" else report.get("processor", "cpu")
    model, size = model_name(report["model"]), report["parameters"] / 1e6
    products = ", ".join(f"{rate:.0f} GFLOP/s ({name})" for name, rate in rates.items())
    return (
        f"{model}, {size:,.4g} M parameters, on {device}, jax {report['jax']}. A plain product of matrices runs at "
        f"{products}."
    )


def tables(report: Report) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Title -> headers and rows."""
    return {"Result": _layouts(report) if report["settings"]["packed"] else _methods(report)}


def _methods(report: Report) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows; a column in which nothing stands is left out."""
    shown = [key for key in _COLUMNS if any(_cell(row, key) is not None for row in report["rows"])]
    rows = []
    for row in report["rows"]:
        rows.append([row["method"], *(_cell(row, key) for key in shown), verdict(row)])
        for anchor, measured in row.get("beside", {}).items():
            cells = [_spread(measured) if key == "seconds" else None for key in shown]
            rows.append([f"{anchor}, beside {row['method']}", *cells, ""])
    rows += [[peer, *[None] * len(shown), f"not installed: {how}"] for peer, how in report["not_installed"].items()]
    return ["method", *((_SPREAD | _PLAIN)[key] for key in shown), "error of F"], rows


def _cell(row: Report, key: str) -> str | float | None:
    if key not in row or (key == "times_official" and "times_official_range" not in row and "rounds" in row):
        return None  # the latter goes through `textbook`, so two measurements are in it
    if key == "seconds":
        return _spread(row)
    low_high = row.get(f"{key}_range") if key == "over_textbook" else None  # of the others in the JSON: a desk's width
    return f"{row[key]:.2f} [{low_high[0]:.2f}, {low_high[1]:.2f}]" if low_high else f"{row[key]:.2f}"


def _spread(row: Report) -> str:
    rounds = row.get("rounds")
    return f"{row['seconds']:.4g} [{min(rounds):.4g}, {max(rounds):.4g}]" if rounds else f"{row['seconds']:.4g}"


def _layouts(report: Report) -> tuple[list[str], list[list[Any]]]:
    headers = ["layout", "documents", "tokens", "real", "seconds", "µs per real token", "/ full"]
    rows = [
        [
            *(row["layout"], row["documents"], row["tokens"], f"{row['real_share']:.0%}", _spread(row)),
            *(f"{row['microseconds_per_token']:.1f}", _cell(row, "over_full")),
        ]
        for row in report["rows"]
    ]
    return headers, rows


def charts(report: Report) -> list[str]:
    """Times, and what they cost in memory."""
    if report["settings"]["packed"]:
        values = {row["layout"]: {"fused": row["over_full"]} for row in report["rows"]}
        return [bar_chart(values, title="Time per real token", x_label="time / documents of full length")]
    time, memory = (
        {row["method"]: {_kind(row): row[key] for key in keys if key in row} for row in report["rows"]}
        for keys in (("over_textbook",), ("extra_parameters", "grown_parameters"))
    )
    order = ("ours", "peer", "own", "gradient")
    charts = (
        ("Time of a pass", time, "time / ordinary batch gradient by the book"),
        (
            "Memory of a pass; of peers, what their process grew by",
            memory,
            "extra memory / memory of the parameters in float32",
        ),
    )
    return [
        bar_chart(known, title=title, x_label=label, order=order)
        for title, values, label in charts
        if (known := {name: found for name, found in values.items() if found})
    ]


def _kind(row: Report) -> str:
    return "gradient" if row["method"] in ("textbook", "plain") else row["side"]


def sentences(report: Report) -> list[str]:
    """The fastest right F of all parameters that were chosen, in a sentence."""
    if report["settings"]["packed"]:
        return []
    right = [row for row in report["rows"] if row.get("error") is not None and not row["wrong"] and not row["missing"]]
    whole = max((row["tensors"] for row in right), default=0)
    right = [row for row in right if row["tensors"] == whole and "over_textbook" in row]
    if len(right) < 2:
        return []
    best, second = sorted(right, key=lambda row: row["over_textbook"])[:2]
    return [
        f"The fastest F of {whole} tensors is that of {best['method']}: a pass takes {_cell(best, 'over_textbook')} "
        f"times as long as an ordinary gradient; next comes {second['method']} with {_cell(second, 'over_textbook')}."
    ]


def verdict(row: Report) -> str:
    """What is said of a row's F: its error, what is missing or wrong; of an ordinary gradient, the way to it."""
    if "failed" in row:
        return f"failed: {row['failed']}"
    if "error" not in row:
        return f"no F, a gradient: {row['way']}" if row.get("way") else ""
    notes = [f"{row['error']:.1e}"]
    if row["wrong"]:
        notes.append(f"WRONG in {row['wrong']} of {row['tensors']} tensors, e.g. {row['first_wrong']}")
    if row["missing"]:
        notes.append(f"{row['missing']} tensors missing")
    return "; ".join(notes)
