"""The profile as one HTML page that stands alone, like the dashboard."""

import html
from collections.abc import Callable, Sequence

from plotly.colors import sample_colorscale

from autoprune.domain.latency import ALIGNMENT
from autoprune.domain.objective import Objective
from autoprune.domain.profile import Profile, ProfilePoint
from autoprune.domain.space import Group
from autoprune.orchestration.profiling import Profiled
from autoprune.orchestration.reports.figure import Figure, error_bars, escape, layout, shorten
from autoprune.orchestration.reports.page import html_page
from autoprune.orchestration.reports.profile import model_lines

LEGEND_GROUPS = 24
_NAME = 28

Value = Callable[[ProfilePoint], tuple[float, float, float]]
"""What a figure shows of a point, with its lower and its upper end."""


def profile_html(profiled: Profiled, main: Objective, *, title: str) -> str:
    """The page: what each group saves alone, what it costs, and how well the model predicts."""
    profile = profiled.profile
    figures = {
        "time": _time_figure(profile),
        "metric": _metric_figure(profile, main),
        "model": _model_figure(profiled),
    }
    body = _BODY.format(
        title=html.escape(title),
        metric=html.escape(main.metric),
        model="<br>".join(html.escape(line.strip()) for line in model_lines(profiled)),
        alignment=ALIGNMENT,
    )
    return html_page(title, body, figures, style=".figure{height:420px}")


def _time_figure(profile: Profile) -> Figure:
    def time(point: ProfilePoint) -> tuple[float, float, float]:
        speed = point.speedup
        return 1.0 / speed.ratio, 1.0 / speed.high, 1.0 / speed.low

    figure = layout("Kept share of the group's units", "Time of the network (share of baseline)")
    figure["yaxis"]["rangemode"] = "tozero"
    return _by_group(profile, figure, time, whole=1.0, block=ALIGNMENT)


def _metric_figure(profile: Profile, main: Objective) -> Figure:
    def value(point: ProfilePoint) -> tuple[float, float, float]:
        found = point.metrics[main.metric]
        return found, found, found

    figure = layout("Kept share of the group's units", f"{escape(main.metric)} on val")
    return _by_group(profile, figure, value, whole=profile.baseline[main.metric], block=1)


def _by_group(
    profile: Profile, figure: Figure, value: Value, *, whole: float, block: int
) -> Figure:
    """A line a group through the widths that are multiples of `block`, hollow marks for others.

    From dark at the input to light at the output.
    """
    groups = [group for group in profile.groups if profile.of(group.name)]
    colors = _colors(len(groups))
    figure["showlegend"] = len(groups) <= LEGEND_GROUPS
    traces = []
    for group, color in zip(groups, colors, strict=True):
        points = profile.of(group.name)
        even = [p for p in points if p.widths[group.name] % block == 0] or points
        odd = [p for p in points if p not in even]
        traces.append(_trace(group, even, value, color, whole=whole))
        traces.append(_trace(group, odd, value, color, whole=None))
    return {"data": traces, "layout": figure}


def _trace(
    group: Group, points: Sequence[ProfilePoint], value: Value, color: str, *, whole: float | None
) -> Figure:
    """Marks, joined by a line from the unpruned network on where its value `whole` is given."""
    found = [value(point) for point in points]
    lined = whole is not None
    return {
        "type": "scatter",
        "mode": "lines+markers" if lined else "markers",
        "name": escape(shorten(group.name, _NAME)),
        "legendgroup": group.name,
        "showlegend": lined,
        "x": [1.0] * lined + [point.widths[group.name] / group.size for point in points],
        "y": ([] if whole is None else [whole]) + [v for v, _, _ in found],
        "error_y": error_bars(
            [0.0] * lined + [high - v for v, _, high in found],
            [0.0] * lined + [v - low for v, low, _ in found],
            thickness=1,
        ),
        "line": {"color": color, "width": 2},
        "marker": {"color": color, "size": 7, "symbol": "circle" if lined else "circle-open"},
        "hovertext": ["unpruned"] * lined + [_hover(group, point) for point in points],
        "hoverinfo": "text",
    }


def _hover(group: Group, point: ProfilePoint) -> str:
    speed = point.speedup
    return (
        f"<b>{escape(shorten(group.name, _NAME))}</b><br>{point.widths[group.name]} of "
        f"{group.size} {escape(group.kind)}<br>speedup {speed.ratio:.3f} ({speed.low:.3f} to "
        f"{speed.high:.3f})" + ("" if speed.settled else "<br>did not settle")
    )


def _model_figure(profiled: Profiled) -> Figure:
    model, checks = profiled.profile.model, profiled.profile.checks
    measured = [check.speedup.ratio for check in checks]
    predicted = [model.speedup(check.widths) for check in checks]
    end = max([1.0, *measured, *predicted]) * 1.05
    figure = layout("Measured speedup (x)", "Predicted speedup (x)")
    figure["showlegend"] = False
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines",
                "x": [0, end],
                "y": [0, end],
                "line": {"color": "#9aa4b2", "dash": "dot", "width": 1.5},
                "hoverinfo": "skip",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "x": measured,
                "y": predicted,
                "marker": {"color": "#0072B2", "size": 9},
                "hovertext": [
                    f"measured {a:.2f}, predicted {b:.2f}"
                    for a, b in zip(measured, predicted, strict=True)
                ],
                "hoverinfo": "text",
            },
        ],
        "layout": figure,
    }


def _colors(count: int) -> list[str]:
    ends = [0.0] if count == 1 else [0.9 * at / (count - 1) for at in range(count)]
    return [str(color) for color in sample_colorscale("Viridis", ends)]


_BODY = """<header><h1>{title}</h1><p class="line">Each group cut alone, from the input (dark) to
the output (light).</p></header>
<section><h2>What a group saves</h2><p>Time of the whole network, measured, with 95% intervals;
hollow marks are widths that are no multiple of {alignment}.</p>
<div class="figure" id="time"></div></section>
<section><h2>What it costs</h2><p>{metric} without fine-tuning, after batch norm was
recalibrated.</p><div class="figure" id="metric"></div></section>
<section><h2>What the latency model makes of it</h2><p>Random specs that it
has not seen, predicted from single groups alone.<br>
{model}</p><div class="figure" id="model"></div></section>"""
