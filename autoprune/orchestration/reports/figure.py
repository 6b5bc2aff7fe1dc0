"""What the figures of all pages share: texts, axes, intervals.

Figures are plotly.js specifications as plain dicts, built without plotly's Python: its figure
classes validate every property, which costs more than everything else here, and the dashboard is
rewritten while the sweep runs. Text from users goes through `escape`, because plotly.js reads a
subset of HTML in its texts.
"""

import html
from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]

GRID_COLOR = "#e8ebf0"
TEXT_COLOR = "#1f2937"


def escape(text: object) -> str:
    """Text that plotly.js shows as it is written."""
    return html.escape(str(text), quote=False)


def shorten(name: str, most: int) -> str:
    """A group's name with its middle left out where it is longer than `most` characters."""
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def layout(x: str, y: str) -> Figure:
    """The layout that all figures share, with the titles of the two axes."""
    axis = {
        "gridcolor": GRID_COLOR,
        "linecolor": "#9aa4b2",
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
        "tickcolor": "#9aa4b2",
    }
    return {
        "xaxis": {**axis, "title": {"text": x, "standoff": 10}},
        "yaxis": {**axis, "title": {"text": y, "standoff": 10}},
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 13}
        | {"color": TEXT_COLOR},
        "margin": {"l": 64, "r": 24, "t": 20, "b": 56},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": "#9aa4b2", "align": "left"},
        "hovermode": "closest",
        "uirevision": "same",
    }


def error_bars(above: Sequence[float], below: Sequence[float], *, thickness: float) -> Figure:
    """Intervals that reach so far above and below their marks."""
    bars = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return bars | {"thickness": thickness, "width": 0}
