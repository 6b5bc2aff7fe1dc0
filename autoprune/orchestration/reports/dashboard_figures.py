"""The dashboard's main figure: the front, with every trial, the limits and the baseline."""

from collections.abc import Iterable

from autoprune.domain.objective import Constraint, Direction
from autoprune.domain.trial import Observation
from autoprune.orchestration.reports.dashboard_marks import LOOKS, points
from autoprune.orchestration.reports.figure import Figure, escape, layout
from autoprune.orchestration.reports.pareto import metrics_of
from autoprune.orchestration.view import SweepView

BASELINE_COLOR = "#111827"
LIMIT_COLOR = "#D55E00"
EDGE_COLOR = "#6b7280"

Range = list[list[float]]


def front_figure(view: SweepView) -> Figure:
    """The main metric against the measured speedup, with intervals, every trial by its place.

    Where trials far off would squeeze the front, ``zooms`` names the ranges [x, y] to choose from.
    """
    main = view.goal.main
    traces = [_step_line(view)] if is_plane(view) else []
    for place, look in LOOKS.items():
        traces.append(points(view, place, look, x="speedup", y=main.metric))
    traces.append(
        _mark([1.0], [view.baseline[main.metric]], "baseline", f"baseline: {main.metric}")
    )
    better = "higher" if main.direction is Direction.MAX else "lower"
    figure = layout(
        "Measured speedup over the baseline (x)", f"{escape(main.metric)} ({better} is better)"
    )
    figure["shapes"], figure["annotations"] = _limits(view)
    everything, focus = _ranges(view)
    figure["xaxis"]["range"], figure["yaxis"]["range"] = focus
    figure["legend"] = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure["margin"]["t"] = 56
    zooms = {"worth having": focus, f"all {len(view.observations)} trials": everything}
    return {"data": traces, "layout": figure, "zooms": zooms if everything != focus else {}}


def is_plane(view: SweepView) -> bool:
    """Whether the figure's two axes are the goal's objectives: only then the front is a line."""
    return [o.metric for o in view.goal.objectives] == [view.goal.main.metric, "speedup"]


def _step_line(view: SweepView) -> Figure:
    """The best main metric that is to be had at a speedup at least as high."""
    points = sorted(
        (metrics_of(m)["speedup"], metrics_of(m)[view.goal.main.metric]) for m in view.front.members
    )
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in points],
        "y": [y for _, y in points],
        "line": {"shape": "vh", "color": LOOKS["front"].color, "width": 2},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _mark(x: list[float], y: list[float], name: str, hover: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": x,
        "y": y,
        "marker": {"symbol": "star", "size": 15, "color": BASELINE_COLOR},
        "hovertext": [f"{escape(hover)} {y[0]:.4g}, speedup 1"],
        "hoverinfo": "text",
    }


def _limits(view: SweepView) -> tuple[list[Figure], list[Figure]]:
    """The constraints on the two axes and the edge of what anyone would deploy, with labels."""
    shapes, notes = [], []
    main = view.goal.main.metric
    edge = ("y", view.goal.reference[0], f"edge of use: {view.goal.reference[0]:.4g}", EDGE_COLOR)
    found = [edge, *_constraint_lines(view.goal.constraints, main)]
    for axis, value, text, color in found:
        other = "x" if axis == "y" else "y"
        shapes.append(
            {
                "type": "line",
                f"{axis}0": value,
                f"{axis}1": value,
                f"{other}0": 0,
                f"{other}1": 1,
                f"{other}ref": "paper",
                "line": {"color": color, "width": 1.5, "dash": "dot"},
                "layer": "below",
            }
        )
        place = (
            {"x": 0, "xref": "paper", "xanchor": "left", "y": value, "yanchor": "bottom"}
            if axis == "y"
            else {"x": value, "xanchor": "left", "y": 0, "yref": "paper", "yanchor": "bottom"}
        )
        font = {"color": color, "size": 12}
        ground = {"showarrow": False, "bgcolor": "rgba(255,255,255,0.85)"}
        notes.append({**place, **ground, "text": escape(text), "font": font})
    return shapes, notes


def _constraint_lines(
    constraints: Iterable[Constraint], main: str
) -> list[tuple[str, float, str, str]]:
    axes = {"speedup": "x", main: "y"}
    return [
        (axes[c.metric], bound, f"{c.metric} {sign} {bound:g}", LIMIT_COLOR)
        for c in constraints
        if c.metric in axes
        for bound, sign in ((c.low, "≥"), (c.high, "≤"))
        if abs(bound) != float("inf")
    ]


def _ranges(view: SweepView) -> tuple[Range, Range]:
    """The ranges [x, y] that hold every trial, and those that hold what is worth having."""
    main, edge = view.goal.main.metric, view.goal.reference[0]
    sign = 1 if view.goal.maximise[0] else -1
    fixed = [(1.0, view.baseline[main]), (1.0, edge)]
    fixed += [
        (value, edge) if axis == "x" else (1.0, value)
        for axis, value, _, _ in _constraint_lines(view.goal.constraints, main)
    ]
    everything = fixed + [p for o in view.observations for p in _corners(o, main)]
    worth = [m for m in view.front.members if sign * (metrics_of(m)[main] - edge) >= 0]
    focus = _box(fixed + [p for m in worth for p in _corners(m, main)])
    whole = _box(everything)
    tall = whole[1][1] - whole[1][0] > 1.6 * (focus[1][1] - focus[1][0])
    return whole, focus if worth and tall else whole


def _corners(observation: Observation, main: str) -> list[tuple[float, float]]:
    """The ends of a trial's intervals on both axes, as opposite corners; none without values."""
    found = metrics_of(observation)
    if "speedup" not in found or main not in found:
        return []
    return [
        (found.get(f"speedup_{end}", found["speedup"]), found.get(f"{main}_{end}", found[main]))
        for end in ("low", "high")
    ]


def _box(points: list[tuple[float, float]]) -> Range:
    return [_padded([p[0] for p in points]), _padded([p[1] for p in points])]


def _padded(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return [low - pad, high + pad]
