"""Grouped bars: one group per task, one bar per model, a tick where a constant guess would stand."""

import re
from collections.abc import Mapping, Sequence

from e2wm_jax.report.drawing import (
    LINE,
    WIDTH,
    Axis,
    Spread,
    color,
    element,
    empty,
    extent,
    figure,
    finite,
    fit,
    fixed,
    indices,
    legend,
    line,
    marker,
    number,
    shorten,
    tick_labels,
    width_of,
    words,
)

_BAR, _NAMES, _VALUES = 14.0, 150.0, 60.0
Scores = Mapping[str, float | None]
Errors = Mapping[str, Mapping[str, Spread | None]]


def bar_chart(
    values: Mapping[str, Scores],
    *,
    title: str,
    x_label: str,
    baselines: Scores | None = None,
    errors: Errors | None = None,
    baseline_label: str = "majority",
    order: Sequence[str] = (),
) -> str:
    """Lying bars of ``values[task][model]``, with the value written beside each and an error bar where one is given.

    ``baselines[task]`` draws a tick across the bars of that task. A value that is not finite is written as a dash.
    Values that are all of type int are counts: they and the ticks below are written without decimals.
    """
    if not any(values.values()):
        return empty(title)
    baselines, errors = baselines or {}, errors or {}
    index = indices((model for scores in values.values() for model in scores), order)
    keys = [(_key(index[name]), name) for name in index if any(name in scores for scores in values.values())]
    if any(finite(baselines.get(task)) is not None for task in values):
        keys.append((line(0.0, -7.0, 0.0, 7.0, "tick"), baseline_label))
    head, used = legend(keys, 13.0)
    left = min(max((width_of(task) for task in values), default=0.0), _NAMES) + 22
    axis = fit(_ends(values, baselines, errors), left, WIDTH - _VALUES, pad=0.0)
    counts = all(isinstance(value, int) for scores in values.values() for value in scores.values())
    known = [abs(value) for scores in values.values() for value in map(finite, scores.values()) if value is not None]
    rows, top = [], used + 8
    for task, scores in values.items():
        lines = _wrap(task, left - 22)
        rows += [words(0.0, top + 12 + n * LINE, text) for n, text in enumerate(lines)]
        bars, written = [], []
        for n, (model, value) in enumerate(scores.items()):
            bar, end = _bar(axis, index[model], top + _BAR * n, value, errors.get(task, {}).get(model))
            text = f"{value:,}" if counts else _shown(value, max(known, default=0.0))
            bars.append(bar)
            written.append(words(end + 5, top + _BAR * (n + 0.5) + 4, text, class_="value"))
        # The tick lies over the bars and under the text.
        rows += [*bars, _tick(axis, baselines.get(task), top, _BAR * len(scores)), *written]
        top += max(_BAR * len(scores), LINE * len(lines)) + 12
    body = head + _scale(axis, used + 4, top - 4, x_label, whole=counts) + "".join(rows)
    return figure(title, _describe(values, baselines, x_label), top + 2 * LINE + 6, body)


def _ends(values: Mapping[str, Scores], baselines: Scores, errors: Errors) -> list[float]:
    ends = [0.0]
    for task, scores in values.items():
        for model, value in scores.items():
            if (known := finite(value)) is not None:
                ends += extent(known, errors.get(task, {}).get(model))
        if (known := finite(baselines.get(task))) is not None:
            ends.append(known)
    return ends if any(ends) else [0.0, 1.0]


def _key(index: int) -> str:
    box = element("rect", x=0.0, y=-5.0, width=12.0, height=10.0, class_=f"bar {color(index)}")
    return box + marker(index, -7.0, 0.0)


def _tick(axis: Axis, baseline: float | None, top: float, height: float) -> str:
    known = finite(baseline)
    at = axis.place(0.0 if known is None else known)
    return "" if known is None else line(at, top - 3, at, top + height + 1, "tick")


def _bar(axis: Axis, index: int, top: float, value: float | None, spread: Spread | None) -> tuple[str, float]:
    """Marker, bar and error bar; and where they end."""
    middle, known, zero = top + _BAR / 2, finite(value), axis.place(0.0)
    parts = [marker(index, axis.start - 9, middle)]
    if known is None:
        return parts[0], zero
    start, end = sorted((zero, axis.place(known)))
    fill = f"bar {color(index)}"
    parts.append(element("rect", x=start, y=top + 1.5, width=end - start, height=_BAR - 3, class_=fill))
    if spread is not None:
        low, high = map(axis.place, extent(known, spread))
        parts.append(line(low, middle, high, middle, "whisker"))
        end = max(end, high)
    return "".join(parts), end


def _shown(value: float | None, largest: float) -> str:
    return "\u2013" if finite(value) is None else fixed(value or 0.0, largest, 3)


def _wrap(task: str, width: float, most: int = 3) -> list[str]:
    """The name of a task on few short lines, broken at spaces and after underscores, slashes and hyphens."""
    lines = [""]
    for part in re.findall(r"\s+|[^\s_/-]*[_/-]|[^\s_/-]+", task):
        if width_of((lines[-1] + part).strip()) > width + 0.01 and lines[-1]:
            lines.append("")
        lines[-1] = (lines[-1] + part).lstrip()
    if len(lines) > most:
        lines = [*lines[: most - 1], "".join(lines[most - 1 :])]
    return [shorten(text.strip(), width) for text in lines]


def _scale(axis: Axis, top: float, bottom: float, x_label: str, *, whole: bool) -> str:
    ticks, count = axis.ticks(5, whole=whole), 5
    while count > 3 and sum(map(width_of, tick_labels(axis, ticks))) > (axis.end - axis.start) * 0.7:
        count -= 1
        ticks = axis.ticks(count, whole=whole)
    parts = [line(axis.place(tick), top, axis.place(tick), bottom, "grid") for tick in ticks]
    parts.append(line(axis.place(0.0), top, axis.place(0.0), bottom, "axis"))
    for tick, name in zip(ticks, tick_labels(axis, ticks), strict=True):
        parts.append(words(axis.place(tick), bottom + LINE - 2, name, "middle"))
    return "".join([*parts, words(WIDTH, bottom + 2 * LINE, x_label, "end")])


def _describe(values: Mapping[str, Scores], baselines: Scores, x_label: str) -> str:
    parts = [f"Bars of {x_label}."]
    for task, scores in values.items():
        said = [f"{model} {_said(value)}" for model, value in scores.items()]
        if (known := finite(baselines.get(task))) is not None:
            said.append(f"baseline {number(known)}")
        parts.append(f"{task}: {', '.join(said)}.")
    return " ".join(parts)


def _said(value: float | None) -> str:
    return "nothing" if finite(value) is None else number(value or 0.0)
