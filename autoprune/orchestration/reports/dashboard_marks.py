"""What the dashboard's figures are made of: looks, marks with intervals, hover texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from autoprune.domain.trial import Observation
from autoprune.orchestration.reports.figure import Figure, error_bars, escape, shorten
from autoprune.orchestration.reports.pareto import metrics_of, place_of, rho, settled
from autoprune.orchestration.view import SweepView

HOVER_GROUPS = 18
HOVER_NAME = 28
QUIET_BARS = 80


@dataclass(frozen=True, slots=True)
class Look:
    """How trials of one place are drawn. Colours are Okabe and Ito's, safe for the colour-blind."""

    label: str
    color: str
    symbol: str
    size: int


LOOKS = {
    "dominated": Look("dominated", "#8a94a3", "circle", 7),
    "infeasible": Look("breaks a constraint", "#E69F00", "triangle-down", 9),
    "stopped": Look("stopped early", "#CC79A7", "x-thin-open", 8),
    "paused": Look("paused on the ladder", "#009E73", "circle-open", 7),
    "front": Look("front", "#0072B2", "circle", 10),
}


def points(view: SweepView, place: str, look: Look, *, x: str, y: str) -> Figure:
    """The trials of one place as marks with intervals; those without both values are left out.

    `x` and `y` name metrics; ``macs_ratio`` is the baseline's MACs over the trial's. Off the
    front more than `QUIET_BARS` trials go without intervals, which would cover the front's.
    """
    drawn = []
    for observation in view.observations:
        found = metrics_of(observation)
        if "macs" in view.baseline and found.get("macs", 0) > 0:
            found["macs_ratio"] = view.baseline["macs"] / found["macs"]
        if x in found and y in found and place_of(view, observation) == place:
            drawn.append((observation, found))
    quiet = place != "front"
    bars = not quiet or len(drawn) <= QUIET_BARS
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{look.label} ({len(drawn)})",
        "x": [found[x] for _, found in drawn],
        "y": [found[y] for _, found in drawn],
        "error_x": _interval([found for _, found in drawn if bars], x, look, quiet),
        "error_y": _interval([found for _, found in drawn if bars], y, look, quiet),
        "marker": {
            "color": look.color,
            "symbol": [_symbol(look, observation) for observation, _ in drawn],
            "size": look.size,
            "opacity": 0.75 if quiet else 1,
            "line": {
                "color": [
                    look.color if _symbol(look, observation).endswith("open") else "#ffffff"
                    for observation, _ in drawn
                ],
                "width": 1.5,
            },
        },
        "hovertext": [_hover(view, observation, found) for observation, found in drawn],
        "hoverinfo": "text",
    }


def _symbol(look: Look, observation: Observation) -> str:
    """Hollow where the trial's speed did not settle."""
    hollow = not settled(observation) and not look.symbol.endswith("open")
    return f"{look.symbol}-open" if hollow else look.symbol


def _interval(found: Sequence[dict[str, float]], name: str, look: Look, quiet: bool) -> Figure:
    """Error bars from `<name>_low` to `<name>_high`; none where no bound is known."""
    high = [max(f.get(f"{name}_high", f[name]) - f[name], 0.0) for f in found]
    low = [max(f[name] - f.get(f"{name}_low", f[name]), 0.0) for f in found]
    if not any(high) and not any(low):
        return {"visible": False}
    color = f"{look.color}38" if quiet else f"{look.color}99"
    return error_bars(high, low, thickness=1 if quiet else 1.5) | {"color": color}


def _hover(view: SweepView, observation: Observation, found: dict[str, float]) -> str:
    main, spec = view.goal.main.metric, observation.trial.spec
    stopped = getattr(observation.outcome, "stopped_by", None)
    lines = [f"<b>trial {observation.trial.number}</b>"]
    lines += [f"stopped by {escape(stopped)}"] if stopped else []
    lines += [_with_bounds(name, found) for name in (main, "speedup") if name in found]
    lines += [] if settled(observation) else ["the speed did not settle"]
    lines += [f"{found['latency_ms']:.3g} ms"] if "latency_ms" in found else []
    if "macs_ratio" in found:
        realised = rho(view, found)
        of_it = "" if realised is None else f", rho {realised:.2f}"
        lines.append(f"{found['macs_ratio']:.2f}x fewer MACs{of_it}")
    lines += [spec.precision] if len(view.space.precisions) > 1 else []
    lines.append("<b>kept</b>")
    for group in view.space.groups[:HOVER_GROUPS]:
        name = escape(shorten(group.name, HOVER_NAME))
        lines.append(f"{name}: {spec.widths[group.name]} of {group.size}")
    more = len(view.space.groups) - HOVER_GROUPS
    return "<br>".join([*lines, *([f"and {more} more groups"] if more > 0 else [])])


def _with_bounds(name: str, found: dict[str, float]) -> str:
    low, high = found.get(f"{name}_low"), found.get(f"{name}_high")
    interval = "" if low is None or high is None else f" ({low:.4g} to {high:.4g})"
    return f"{escape(name)} {found[name]:.4g}{interval}"
