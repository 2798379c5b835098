"""Reports: plain data in, one self-contained HTML file out, with no script and nothing fetched from anywhere.

A report is a page of sections, a section is a list of blocks, and every block - text, table, chart - is a string of
HTML that one pure function made from plain data. All text given to these functions is escaped. Words go through
`page.html`, a jinja2 template, and pictures through matplotlib, which is imported with the first of them.
"""

from e2wm_jax.report.bars import bar_chart
from e2wm_jax.report.blocks import details, heading, key_values, paragraph, preformatted, table, texts, trajectory
from e2wm_jax.report.charts import Point, line_chart, scatter_chart
from e2wm_jax.report.heat import heat_map
from e2wm_jax.report.page import Section, page, standalone, write
from e2wm_jax.report.walk import Plan, Stop, Thing, walk_map

__all__ = [
    "Plan",
    "Point",
    "Section",
    "Stop",
    "Thing",
    "bar_chart",
    "details",
    "heading",
    "heat_map",
    "key_values",
    "line_chart",
    "page",
    "paragraph",
    "preformatted",
    "scatter_chart",
    "standalone",
    "table",
    "texts",
    "trajectory",
    "walk_map",
    "write",
]
