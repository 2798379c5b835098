"""The one plot style: matplotlib draws, and its SVG goes into the page in the page's own colors, light and dark.

Figures are WIDTH units wide and scale with the page. Text is set larger on a phone than on a desk (see `page.html`):
while matplotlib measures, it has the larger size, of about GLYPH units a letter.
"""

import functools
import io
import itertools
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, cast

import numpy as np

from e2wm_jax.report.blocks import block, clean

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, GLYPH, LINE = 480.0, 8.4, 19.0
SERIES, SHADES = 6, 11
_NAMES = ["paper", "ink", "soft", "faint", "tint", "failed"]
_NAMES += [*(f"c{n}" for n in range(SERIES)), *(f"h{n}" for n in range(SHADES))]
COLOR = {name: f"#fe{n:02x}01" for n, name in enumerate(_NAMES)}  # while matplotlib draws: those of page.mplstyle too
_DASHES = ((), (7, 3), (2, 3), (9, 3, 2, 3), (5, 5), (12, 4))
_MARKERS = "os^DvP"
Place = tuple[float, float]
Box = tuple[float, float, float, float]  # left, low, right, high
Parameters = ParamSpec("Parameters")


def drawn(chart: Callable[Parameters, str]) -> Callable[Parameters, str]:
    """A function that draws a chart, in the style of the page."""

    @functools.wraps(chart)
    def styled(*args: Parameters.args, **named: Parameters.kwargs) -> str:
        from matplotlib import style

        page_style = style.context(Path(__file__).with_name("page.mplstyle"), after_reset=True)  # no matplotlibrc
        with page_style, warnings.catch_warnings():
            # The browser has fonts for what the one that measures lacks.
            warnings.filterwarnings("ignore", "Glyph .* missing")
            return chart(*args, **named)

    return styled


def axes_of(height: float, **layout: Any) -> "Axes":
    """The axes of a new figure."""
    from matplotlib.figure import Figure

    return Figure((WIDTH / 72, height / 72), **layout).add_subplot()


def sheet(height: float) -> "Axes":
    """The axes of a figure that is drawn by hand, in its units, y downwards."""
    axes = axes_of(height, layout="none")
    axes.set(position=(0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    return axes


def figure_of(axes: "Axes") -> "Figure":
    """The figure of axes; none here is of a part of one."""
    return cast("Figure", axes.figure)


def look(index: int, line: int = 0) -> dict[str, Any]:
    """Color, marker and dash of a series; the marker shifts when colors start over, so that no pair comes twice."""
    marker = _MARKERS[(index + index // SERIES) % len(_MARKERS)]
    return {"color": COLOR[f"c{index % SERIES}"], "marker": marker, "ls": (0, _DASHES[line % len(_DASHES)] or None)}


def name(artist: "Artist", class_: str, tooltip: str = "") -> None:
    """Give what an artist draws a class, and a text that shows where a pointer rests on it."""
    artist.set_gid(f"{class_}|{clean(tooltip)}")


def width_of(text: str) -> float:
    """An estimate, on the large side, of how wide ``text`` is drawn."""
    return GLYPH * sum(1.0 if letter < "\u0500" else 1.8 for letter in text)


def shorten(text: str, width: float) -> str:
    """``text`` on one line, cut with an ellipsis where it is wider than ``width``."""
    text = " ".join(clean(text).split())
    if width_of(text) <= width + 0.01:
        return text
    kept = itertools.accumulate(map(width_of, text))
    return text[: sum(end <= width - GLYPH for end in kept)].rstrip() + "…"


def key(axes: "Axes", keys: Mapping[str, Any]) -> None:
    """The legend, above everything, in as many columns as fit; the figure grows by its rows."""
    if not keys:
        return
    names = [shorten(name, WIDTH - 50) for name in keys]
    columns = max(n for n in range(1, len(names) + 1) if n == 1 or _key_width(names, n) <= WIDTH)
    figure, above = figure_of(axes), math.ceil(len(names) / columns) * (LINE + 2) + 4
    height = figure.get_figheight() + above / 72
    outside = "outside " if figure.get_layout_engine() else ""
    if not outside:
        axes.set_position((0, 0, 1, figure.get_figheight() / height))
    figure.set_figheight(height)
    figure.legend(list(keys.values()), names, ncols=columns, loc=cast(Any, f"{outside}upper left"))


def _key_width(names: Sequence[str], columns: int) -> float:
    return sum(max(map(width_of, column)) + 56 for column in np.array_split(names, columns))


def finish(axes: "Axes", title: str, description: str) -> str:
    """The chart: a caption over an SVG drawing that has a name and a description for those who listen."""
    import matplotlib

    file, figure = io.StringIO(), figure_of(axes)
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    for artist in figure.findobj():
        artist.set_clip_on(False)  # nothing stands outside, and a clip would need a url()
    # The salt makes names within the drawing those of no other on its page.
    with matplotlib.rc_context({"svg.hashsalt": clean(f"{title} {description}")}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    parts = [ET.tostring(part, encoding="unicode") for part in ET.fromstring(file.getvalue()) if _adapt(part)]
    return block("chart", title, description, f"{72 * figure.get_figheight():.0f}", "".join(parts))


def _adapt(node: ET.Element) -> bool:
    """Change matplotlib's SVG into that of the page; and whether anything is left of it."""
    node.tag, node.tail = node.tag.rpartition("}")[2], None
    node.text = node.text if node.tag == "text" else None
    node[:] = [child for child in node if _adapt(child)]
    attributes = {key.rpartition("}")[2]: value for key, value in node.attrib.items()}
    node.attrib.clear()
    class_, named, tooltip = attributes.pop("id", "").partition("|") if node.tag == "g" else ("", "", "")
    if named:
        node.set("class", class_)
    if tooltip:
        node.insert(0, ET.Element("title"))
        node[0].text = tooltip
    for key, value in attributes.items():
        value = value if key in ("id", "href") else re.sub(r"(\.\d\d)\d+", r"\1", value)
        value = re.sub(r"#fe(..)01", lambda found: f"var(--{_NAMES[int(found[1], 16)]})", value)
        if not value.startswith("rotate(-0"):
            node.set(key, re.sub(r"font-(size|family): [^;]*;? *", "", value))
    drawn = {"path": "d" in attributes, "g": len(node) > 0, "defs": len(node) > 0}
    return drawn.get(node.tag, node.tag not in ("metadata", "style"))


def empty(title: str) -> str:
    """A chart without anything to draw says so."""
    axes = sheet(LINE + 8)
    axes.text(0, LINE - 2, "nothing to draw")
    return finish(axes, title, "There is nothing to draw.")


def arrow(axes: "Axes", start: Place, end: Place, style: str, shrink: Place, **look: Any) -> None:
    """An arrow between two points of the data, that begins and ends a little away from them."""
    from matplotlib.patches import FancyArrowPatch

    (a, b), size = shrink, 10
    line = FancyArrowPatch(start, end, arrowstyle=style, shrinkA=a, shrinkB=b, mutation_scale=size, zorder=1, **look)
    name(axes.add_patch(line), "arrow")


def boxes_along(start: Sequence[float], end: Sequence[float]) -> Iterator[Box]:
    """Small boxes that cover a line, for `place_names` to keep clear of."""
    count = max(int(math.dist(start, end) / 8), 1)
    for step in range(count + 1):
        x, y = (a + (b - a) * step / count for a, b in zip(start, end, strict=True))
        yield (x - 2, y - 2, x + 2, y + 2)


def place_names(axes: "Axes", names: Sequence[tuple[str, Place]], taken: Sequence[Box], bounds: Box) -> None:
    """Write each name beside its point, at the first place around it that covers nothing, else where least.

    All places are units of the figure, y upwards.
    """
    from matplotlib.transforms import IdentityTransform

    taken = list(taken)
    for text, at in names:
        text = shorten(text, (bounds[2] - bounds[0]) * 0.6)
        best = min(_around(at, width_of(text), bounds), key=lambda box: sum(_overlap(box, other) for other in taken))
        taken.append(best)
        # Set from the side of the point, so that letters of other widths keep their distance.
        side = "left" if best[0] > at[0] else "right" if best[2] < at[0] else "center"
        x = {"left": best[0], "center": (best[0] + best[2]) / 2, "right": best[2]}[side]
        written = figure_of(axes).text(x, best[1] + 4, text, ha=side, color=COLOR["ink"], transform=IdentityTransform())
        name(written, "name")


def _overlap(a: Box, b: Box) -> float:
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


def _around(at: Place, width: float, bounds: Box) -> Iterator[Box]:
    """Boxes of the width of a name, one line high, nearest first; the last may cover the point itself."""
    directions = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7))
    for away in (9, 14, 22, 32, 44, 58, 74, 92, 112):
        for direction in directions:
            # A name begins where it is seen from the point; straight up or sideways it is centered.
            left, low = (
                point + away * d - size * (0.5 if d == 0 else float(d < 0))
                for point, d, size in zip(at, direction, (width, LINE - 1), strict=True)
            )
            if left >= bounds[0] and left + width <= bounds[2] and low >= bounds[1] and low + LINE - 1 <= bounds[3]:
                yield (left, low, left + width, low + LINE - 1)
    left, low = min(max(at[0], bounds[0]), bounds[2] - width), min(max(at[1], bounds[1]), bounds[3] - LINE + 1)
    yield (left, low, left + width, low + LINE - 1)
