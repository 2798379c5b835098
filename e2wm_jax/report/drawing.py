"""What the charts are drawn with: number formats, axes, SVG elements, markers, legends and the frame of a plot.

Coordinates are units of a drawing that is WIDTH wide and scales with the page. Text is set larger on a phone than on
a desk (see ``report.STYLE``), so every layout reserves room for the larger size: LINE high, GLYPH wide per letter.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, LINE, GLYPH = 480.0, 17.0, 7.6
COLORS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 5", "12 4")
SHAPES = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z",
    "M-3.6,-3.6h7.2v7.2h-7.2z",
    "M0,-4.8L4.6,3.4H-4.6z",
    "M0,-5L5,0L0,5L-5,0z",
    "M0,4.8L4.6,-3.4H-4.6z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
)
Spread = float | tuple[float, float]
# Characters that no XML file may hold, and lone surrogates, which no UTF-8 file may hold.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """A scale from numbers to drawing units; ``low`` and ``high`` are decimal logarithms where ``log`` is set."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where ``value`` stands in the drawing; values outside the range stand at its ends."""
        share = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def ticks(self, count: int = 6, *, whole: bool = False) -> list[float]:
        """Round numbers (1, 2 or 5 times a power of ten) inside the range, about ``count`` of them.

        With ``whole``, for counts, all of them are whole numbers.
        """
        if not self.log:
            ticks = _round_numbers(self.low, self.high, count)
            return [tick for tick in ticks if float(tick).is_integer()] if whole else ticks
        decades = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
        if self.high - self.low < 1:
            return [tick for tick in _round_numbers(10**self.low, 10**self.high, count) if tick > 0]
        if len(decades) > 3:
            return [10.0**decade for decade in decades[:: math.ceil(len(decades) / (count + 1))]]
        ticks = [size * 10.0**decade for decade in range(decades[0] - 1, decades[-1] + 1) for size in (1, 2, 5)]
        return [tick for tick in ticks if self.low - 1e-9 <= math.log10(tick) <= self.high + 1e-9]


def _round_numbers(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= raw * (1 - 1e-9))
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def finite(value: float | None) -> float | None:
    """``value`` as a number that can be drawn, or None: beyond 1e250 counts as infinite, below 1e-250 as zero."""
    if value is None or not abs(value) <= 1e250:
        return None
    return float(value) if abs(value) >= 1e-250 else 0.0


def fit(values: Iterable[float], start: float, end: float, *, log: bool = False, pad: float = 0.04) -> Axis:
    """The axis that shows all ``values`` between drawing units ``start`` and ``end``, with a little room around."""
    shown = [math.log10(value) if log else value for value in values]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = 0.3 if log else abs(low) * 0.1 or 1.0
        low, high = low - half, high + half
    room = (high - low) * pad
    return Axis(low - room, high + room, start, end, log)


def number(value: float, digits: int = 4) -> str:
    """``value`` to ``digits`` significant digits as people write it: 1,234, 0.05, or a power of ten where needed."""
    if not math.isfinite(value):
        return str(float(value))
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    exponent = int(power)
    if value == 0 or -4 <= exponent < 6:
        return _plain(f"{value:,.{max(digits - 1 - exponent, 0)}f}")
    return _scientific(mantissa, power)


def fixed(value: float, largest: float, digits: int) -> str:
    """``value`` to as many decimals as give ``largest`` its ``digits`` significant ones, so that columns line up."""
    if not 1e-4 <= largest < 1e6:
        return number(value, digits)
    return f"{value:z,.{max(digits - 1 - math.floor(math.log10(largest)), 0)}f}".replace("-", "\u2212")


def _scientific(mantissa: str, power: str) -> str:
    return f"{_plain(mantissa)}\u00d710{str(int(power)).translate(_SUPERSCRIPT)}"


def _plain(text: str) -> str:
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "\u2212")


def tick_labels(axis: Axis, ticks: Sequence[float]) -> list[str]:
    """The ticks in words: enough digits to tell neighbors apart, and no more."""
    if axis.log and (axis.low < -3.01 or axis.high > 4.01):
        return [_scientific(*f"{tick:.0e}".split("e")).removeprefix("1\u00d7") for tick in ticks]
    if axis.log or len(ticks) < 2:
        return [number(tick) for tick in ticks]
    last = math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)
    return [number(tick, max(math.floor(math.log10(abs(tick)) + 1e-9) - last, 0) + 1 if tick else 1) for tick in ticks]


def escape(text: object) -> str:
    """``text`` made safe to stand inside an element or an attribute."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(text)))


def element(name: str, content: str = "", **attributes: object) -> str:
    """One element around trusted ``content``; ``class_`` becomes class, other underscores become hyphens."""
    pairs = []
    for key, value in attributes.items():
        text = f"{value:.1f}" if isinstance(value, float) else escape(value)
        pairs.append(f' {key.rstrip("_").replace("_", "-")}="{text}"')
    return f"<{name}{''.join(pairs)}>{content}</{name}>"


def width_of(text: str) -> float:
    """An estimate, on the large side, of how wide ``text`` is drawn."""
    return GLYPH * len(text)


def shorten(text: str, width: float) -> str:
    """``text``, cut with an ellipsis where it is wider than ``width``."""
    room = max(int(width / GLYPH + 0.01), 1)
    return text if len(text) <= room else text[: room - 1].rstrip() + "…"


def words(x: float, y: float, text: str, anchor: str = "start", class_: str = "label") -> str:
    """Text at a baseline, moved sideways where it would leave the drawing."""
    text = shorten(text, WIDTH)
    before = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width_of(text)
    x = max(min(x, WIDTH - width_of(text) + before), before)
    return element("text", escape(text), x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str, dash: str = "") -> str:
    """A straight line."""
    more = {"stroke_dasharray": dash} if dash else {}
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_, **more)


def indices(names: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    """The number of each series: its place in ``order``, or after it."""
    return {name: index for index, name in enumerate(dict.fromkeys([*order, *names]))}


def extent(value: float, spread: Spread | None) -> tuple[float, float]:
    """The two ends of an error bar; a half-width that is not finite counts as none."""
    below, above = spread if isinstance(spread, tuple) else (spread, spread)
    low, high = finite(value - abs(finite(below) or 0.0)), finite(value + abs(finite(above) or 0.0))
    return (value if low is None else low, value if high is None else high)


def color(index: int) -> str:
    """The class that gives series number ``index`` its color."""
    return f"c{index % COLORS}"


def shape(index: int) -> int:
    """The number of its marker and dash; shifted each time the colors start over, so that no pair comes twice soon."""
    return (index + index // COLORS) % len(SHAPES)


def marker(index: int, x: float, y: float) -> str:
    """The marker of series number ``index``."""
    path = SHAPES[shape(index)]
    return element("path", d=path, transform=f"translate({x:.1f},{y:.1f})", class_=f"marker {color(index)}")


def legend(entries: Sequence[tuple[str, str]], y: float) -> tuple[str, float]:
    """Rows of (key drawn around 0,0 within 30 units, text) from baseline ``y`` on; and the height they take."""
    parts, x, row = [], 0.0, 0
    for key, text in entries:
        text = shorten(text, WIDTH - 38)
        if x and x + 38 + width_of(text) > WIDTH:
            x, row = 0.0, row + 1
        base = y + row * LINE
        parts.append(element("g", key, transform=f"translate({x + 15:.1f},{base - 4:.1f})"))
        parts.append(words(x + 36, base, text))
        x += 36 + width_of(text) + 12
    return "".join(parts), (row + 1) * LINE + 4 if entries else 0.0


def figure(title: str, description: str, height: float, body: str) -> str:
    """The finished chart: a caption over an SVG drawing that has a name and a description for those who listen."""
    names = element("title", escape(title)) + element("desc", escape(description))
    drawing = element("svg", names + body, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img")
    return element("figure", element("figcaption", escape(title)) + drawing, class_="chart")


def empty(title: str) -> str:
    """A chart without anything to draw says so."""
    return figure(title, "There is nothing to draw.", LINE + 8, words(0.0, LINE - 2, "nothing to draw"))


@dataclass(frozen=True)
class Frame:
    """The frame of a plot with two axes: the drawing so far, the two axes and the height of the whole."""

    body: str
    x: Axis
    y: Axis
    height: float


def frame(
    xs: Sequence[float],
    ys: Sequence[float],
    labels: tuple[str, str],
    entries: Sequence[tuple[str, str]],
    *,
    note: str = "",
    log_y: bool = False,
    pad: float = 0.04,
    plot_height: float = 230.0,
    whole_x: bool = False,
) -> Frame:
    """Legend, axes, grid and axis labels for points at ``xs``, ``ys``; ``note`` stands at the top right.

    With ``whole_x``, where x counts something, its ticks are whole numbers.
    The label of the y axis lies above it and that of the x axis at the right below: both read without a turned head.
    """
    keys, used = legend(entries, 13.0)
    top = used + LINE + 8
    y = fit(ys, top + plot_height, top + 4, log=log_y, pad=pad)
    y_ticks = y.ticks()
    names = tick_labels(y, y_ticks)
    left = min(max((width_of(name) for name in names), default=0.0) + 8, 150.0)
    x = fit(xs, left, WIDTH - 8, pad=pad)
    body = [keys, words(0.0, used + 13, shorten(labels[1], WIDTH - width_of(note) - 12))]
    body.append(words(WIDTH, used + 13, note, "end", "note") if note else "")
    for tick, name in zip(y_ticks, names, strict=True):
        body.append(line(left, y.place(tick), WIDTH - 8, y.place(tick), "grid"))
        body.append(words(left - 8, y.place(tick) + 4, name, "end"))
    bottom, count = y.start, 6
    while count > 3 and sum(map(width_of, tick_labels(x, x.ticks(count, whole=whole_x)))) > (WIDTH - left) * 0.7:
        count -= 1
    ticks = x.ticks(count, whole=whole_x)
    body.append(line(left, bottom, WIDTH - 8, bottom, "axis"))
    for tick, name in zip(ticks, tick_labels(x, ticks), strict=True):
        body.append(line(x.place(tick), bottom, x.place(tick), bottom + 4, "axis"))
        body.append(words(x.place(tick), bottom + LINE, name, "middle"))
    body.append(words(WIDTH, bottom + 2 * LINE + 2, labels[0], "end"))
    return Frame("".join(body), x, y, bottom + 2 * LINE + 8)
