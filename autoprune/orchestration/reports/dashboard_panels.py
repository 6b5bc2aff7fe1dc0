"""The dashboard's smaller figures: what the front keeps, progress, and MACs against speed."""

import math

from autoprune.domain.pareto import ParetoFront
from autoprune.orchestration.reports.dashboard_marks import LOOKS, points
from autoprune.orchestration.reports.figure import Figure, escape, layout, shorten
from autoprune.orchestration.reports.pareto import metrics_of
from autoprune.orchestration.view import SweepView

LABEL_NAME = 30
ROW_PX = 26


def heat_figure(view: SweepView) -> Figure:
    """The share of units that every group keeps in every member of the front, fastest last."""
    members = sorted(view.front.members, key=lambda o: metrics_of(o).get("speedup", 0.0))
    groups = view.space.groups
    kept = [[m.trial.spec.widths[g.name] for m in members] for g in groups]
    ratios = [[w / g.size for w in row] for g, row in zip(groups, kept, strict=True)]
    names = [escape(shorten(g.name, LABEL_NAME)) for g in groups]
    speeds = [metrics_of(m).get("speedup") for m in members]
    columns = [
        f"#{m.trial.number}" + ("" if s is None else f"<br>{s:.2f}x")
        for m, s in zip(members, speeds, strict=True)
    ]
    hover = [
        [
            f"<b>{escape(g.name)}</b><br>trial {m.trial.number} keeps {w} of {g.size} {g.kind}"
            for m, w in zip(members, row, strict=True)
        ]
        for g, row in zip(groups, kept, strict=True)
    ]
    trace = {
        "type": "heatmap",
        "z": ratios,
        "x": list(range(len(members))),
        "y": list(range(len(groups))),
        "hovertext": hover,
        "hoverinfo": "text",
        "zmin": 0,
        "zmax": 1,
        "colorscale": "Cividis",
        "xgap": 1,
        "ygap": 1,
        "colorbar": {
            "title": {"text": "kept", "side": "top"},
            "tickformat": ".0%",
            "thickness": 12,
            "len": 1,
            "outlinewidth": 0,
        },
    }
    if len(members) <= 16:
        trace |= {"text": kept, "texttemplate": "%{text}", "textfont": {"size": 11}}
    figure = layout("Front member, slowest to fastest", "")
    figure["xaxis"] |= _ticks(columns) | {"showgrid": False, "tickangle": 0}
    figure["yaxis"] |= _ticks(names) | {"autorange": "reversed", "showgrid": False}
    figure["height"] = 120 + ROW_PX * len(groups)
    return {"data": [trace], "layout": figure}


def hypervolume_figure(view: SweepView) -> Figure:
    """The hypervolume after every trial, in order of arrival."""
    front = ParetoFront(view.goal)
    values: list[float] = []
    for observation in view.observations:
        if front.add(observation) or not values:
            values.append(front.hypervolume())
        else:
            values.append(values[-1])
    trace = {
        "type": "scatter",
        "mode": "lines+markers" if len(values) <= 60 else "lines",
        "x": list(range(1, len(values) + 1)),
        "y": values,
        "line": {"shape": "hv", "color": LOOKS["front"].color, "width": 2},
        "marker": {"size": 5},
        "fill": "tozeroy",
        "fillcolor": "rgba(0,114,178,0.10)",
        "hovertemplate": "after %{x} trials: %{y:.4g}<extra></extra>",
        "showlegend": False,
    }
    figure = layout("Trials ended", "Hypervolume")
    figure["xaxis"] |= {"range": [0, max(len(values), view.trials or 0) + 0.5]}
    figure["yaxis"] |= {"rangemode": "tozero"}
    return {"data": [trace], "layout": figure}


def prediction_figure(view: SweepView) -> Figure:
    """What the count of MACs promises against what was measured, with the line where both agree."""
    traces = [
        points(view, place, look, x="macs_ratio", y="speedup") for place, look in LOOKS.items()
    ]
    for trace in traces:
        trace["showlegend"] = False
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "x": [0.01, 1000],
        "y": [0.01, 1000],
        "line": {"dash": "dash", "color": "#6b7280", "width": 1.5},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    figure = layout("Speedup that MACs predict (x)", "Measured speedup (x)")
    for key in ("x", "y"):
        figure[f"{key}axis"] |= _log_axis([v for trace in traces for v in trace[key]])
    return {"data": [diagonal, *traces], "layout": figure}


def _ticks(texts: list[str]) -> Figure:
    return {"tickmode": "array", "tickvals": list(range(len(texts))), "ticktext": texts}


def _log_axis(values: list[float]) -> Figure:
    """A logarithmic axis over `values` and 1, with ticks at round speedups."""
    low, high = min([*values, 1.0]) / 1.15, max([*values, 1.0]) * 1.15
    ticks = [2.0**n for n in range(-4, 11)]
    ticks += [1.5 * tick for tick in ticks] if high / low < 12 else []
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}x" for tick in ticks],
    }
