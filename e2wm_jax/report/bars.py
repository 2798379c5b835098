"""Grouped bars: one group per task, one bar per model, a tick where a constant guess would stand."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from e2wm_jax.report.charts import Spread, extent, indices, name_axes
from e2wm_jax.report.figure import COLOR, axes_of, drawn, empty, finish, key, look, name, shorten
from e2wm_jax.report.numbers import finite, fixed, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMES = 165.0  # the width of what a task is called
Scores = Mapping[str, float | None]
Errors = Mapping[str, Mapping[str, Spread | None]]


@drawn
def bar_chart(
    values: Mapping[str, Scores],
    *,
    title: str,
    x_label: str,
    baselines: Scores | None = None,
    errors: Errors | None = None,
    order: Sequence[str] = (),
) -> str:
    """Lying bars of ``values[task][model]``, with the value written beside each and an error bar where one is given.

    ``baselines[task]`` draws a tick across the bars of that task. A value that is not finite is written as a dash.
    Values that are all of type int are counts: they and the ticks below are written without decimals.
    """
    if not any(values.values()):
        return empty(title)
    index = indices((model for scores in values.values() for model in scores), order)
    numbers = [value for scores in values.values() for value in scores.values()]
    whole = all(isinstance(value, int) for value in numbers)
    largest = max((abs(value) for value in map(finite, numbers) if value is not None), default=0.0)
    names = [_wrap(task) for task in values]
    rows = [max(len(scores), 1.15 * len(lines)) for scores, lines in zip(values.values(), names, strict=True)]
    axes, at = axes_of(17 * (sum(rows) + 0.6 * len(rows)) + 60), 0.0
    handles: dict[str, Any] = {}
    ticks: dict[float, str] = {}
    for (task, scores), lines, tall in zip(values.items(), names, rows, strict=True):
        ticks |= {at + 1.15 * n: line for n, line in enumerate(lines)}
        for n, (model, value) in enumerate(scores.items()):
            text = f"{value:,}".replace("-", "\u2212") if whole else _written(value, largest)
            error = (errors or {}).get(task, {}).get(model)
            handles[model] = _bar(axes, at + n, value, error, text, look(index[model]) | {"ls": ""})
        if (known := finite((baselines or {}).get(task))) is not None:
            ends = [at - 0.7, at + len(scores) - 0.3]
            handles["majority"] = axes.plot([known] * 2, ends, color=COLOR["ink"], ls=(0, (3, 2)))[0]
            name(handles["majority"], "tick")
        at += tall + 0.6
    name_axes(axes, x_label, whole_x=whole)
    axes.set_yticks(list(ticks), ticks.values())
    axes.tick_params(axis="y", pad=18)
    axes.set_ylim(at - 0.9, -0.9)
    axes.grid(axis="x")
    axes.spines.bottom.set_visible(False)
    axes.axvline(0, color=COLOR["soft"], lw=0.8)
    key(axes, {model: handles[model] for model in [*index, "majority"] if model in handles})
    return finish(axes, title, _describe_bars(values, baselines or {}, x_label))


def _written(value: float | None, largest: float) -> str:
    return "\u2013" if value is None or finite(value) is None else fixed(value, largest, 3)


def _bar(
    axes: "Axes", y: float, value: float | None, spread: Spread | None, text: str, style: dict[str, Any]
) -> tuple[Any, ...]:
    """A bar with its marker before it, its error and its value behind it; returned is what stands in the legend."""
    known = finite(value)
    length = 0.0 if known is None else known
    low, high = extent(length, spread)
    bar = axes.barh(y, length, 0.8, color=style["color"], alpha=0.85)
    name(bar[0], "nothing" if known is None else "bar")
    if known is not None and spread is not None:
        name(axes.plot([low, high], [y, y], color=COLOR["ink"], lw=1)[0], "whisker")
    end = (max(length, 0.0 if spread is None else high, 0.0), y)
    said = axes.annotate(text, end, (5, -4.5), textcoords="offset points", color=COLOR["ink"])
    name(said, "name")
    marker = axes.plot(-0.02, y, transform=axes.get_yaxis_transform(), **style)[0]
    name(marker, "marker")
    return bar[0], marker


def _wrap(task: str, most: int = 3) -> list[str]:
    """The name of a task on few short lines, broken at spaces and after underscores, slashes and hyphens."""
    lines = [""]
    for part in re.findall(r"\s+|[^\s_/-]*[_/-]|[^\s_/-]+", task):
        if len((lines[-1] + part).strip()) > 19 and lines[-1]:
            lines.append("")
        lines[-1] = (lines[-1] + part).lstrip()
    if len(lines) > most:
        lines = [*lines[: most - 1], "".join(lines[most - 1 :])]
    return [shorten(text, _NAMES) for text in lines]


def _describe_bars(values: Mapping[str, Scores], baselines: Scores, x_label: str) -> str:
    parts = [f"Bars of {x_label}."]
    for task, scores in values.items():
        said = [f"{model} {'nothing' if finite(v) is None else number(v or 0.0)}" for model, v in scores.items()]
        if (known := finite(baselines.get(task))) is not None:
            said.append(f"baseline {number(known)}")
        parts.append(f"{task}: {', '.join(said)}.")
    return " ".join(parts)
