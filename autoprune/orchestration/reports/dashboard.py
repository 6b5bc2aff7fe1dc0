"""The dashboard: one HTML page that stands alone, for MLflow's artifact viewer and any browser."""

import html

from autoprune.domain.trial import Failure, Measurement
from autoprune.orchestration.reports.console import short
from autoprune.orchestration.reports.dashboard_figures import front_figure
from autoprune.orchestration.reports.dashboard_panels import (
    heat_figure,
    hypervolume_figure,
    prediction_figure,
)
from autoprune.orchestration.reports.page import html_page
from autoprune.orchestration.reports.pareto import fastest_worth_having, metrics_of
from autoprune.orchestration.view import SweepView

FAILURES_SHOWN = 100


def dashboard_html(view: SweepView) -> str:
    """The page of a sweep as it stands: headline figures, four plots, and what went wrong."""
    figures = {
        "front": front_figure(view),
        "hypervolume": hypervolume_figure(view),
        "prediction": prediction_figure(view),
        "heat": heat_figure(view),
    }
    body = _BODY.format(
        header=_header(view),
        empty="" if view.front.members else _EMPTY,
        troubles=_troubles(view),
    )
    title = f"{view.sweep_id}: Pareto front"
    return html_page(title, body, figures, style=_STYLE, script=_SCRIPT)


def _header(view: SweepView) -> str:
    main, baseline = view.goal.main.metric, view.baseline
    counts = view.counts
    done = len(view.observations)
    progress = f"{done} of {view.trials} trials" if view.trials else f"{done} trials"
    told = [f"{n} {state}" for state, n in counts.items() if n or state == "finished"]
    told += [f"{view.slots} slots, {view.utilisation:.0%} used", _duration(view.search_s)]
    tiles = [("Baseline", f"{baseline[main]:.4g}", _baseline_detail(view)), *_best(view)]
    tiles.append(("Hypervolume", f"{view.hypervolume:.3g}", f"{len(view.front)} front members"))
    cells = "".join(
        f'<div class="tile"><div class="name">{html.escape(name)}</div>'
        f'<div class="value">{html.escape(value)}</div>'
        f'<div class="detail">{html.escape(detail)}</div></div>'
        for name, value, detail in tiles
    )
    line = html.escape(" · ".join([progress, *told]))
    return (
        f"<h1>{html.escape(view.sweep_id)}</h1>"
        f'<p class="line">{line}</p><div class="tiles">{cells}</div>'
    )


def _baseline_detail(view: SweepView) -> str:
    baseline = view.baseline
    parts = [view.goal.main.metric]
    parts += [f"{baseline['latency_ms']:.3g} ms"] if "latency_ms" in baseline else []
    parts += [f"{short(baseline['macs'])} MACs"] if "macs" in baseline else []
    return ", ".join(parts)


def _best(view: SweepView) -> list[tuple[str, str, str]]:
    """The two ends of the front that matter: the fastest worth having and the best by quality."""
    main, tiles = view.goal.main.metric, []
    fastest = fastest_worth_having(view)
    if fastest is not None:
        found = metrics_of(fastest)
        tiles.append(
            (
                "Fastest worth having",
                f"{found['speedup']:.2f}x",
                f"trial {fastest.trial.number}, {main} {found[main]:.4g}",
            )
        )
    if view.front.members:
        best = view.front.members[0]
        found = metrics_of(best)
        speed = f", {found['speedup']:.2f}x" if "speedup" in found else ""
        tiles.append((f"Best {main}", f"{found[main]:.4g}", f"trial {best.trial.number}{speed}"))
    return tiles


def _troubles(view: SweepView) -> str:
    """Failed trials with their reasons, and stopped ones with the constraint they broke."""
    rows = []
    for observation in view.observations:
        number = observation.trial.number
        match observation.outcome:
            case Failure(stage=stage, cause=cause, reason=reason):
                rows.append((str(number), "failed", f"{cause} in stage {stage}", reason))
            case Measurement(stopped_by=str(constraint)):
                found = metrics_of(observation)
                speed = f"speedup {found['speedup']:.2f}" if "speedup" in found else ""
                rows.append((str(number), "stopped", constraint, speed))
    if not rows:
        return ""
    rows.sort(key=lambda row: (row[1] != "failed", int(row[0])))
    cells = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows[:FAILURES_SHOWN]
    )
    more = len(rows) - FAILURES_SHOWN
    rest = f"<p>and {more} more in the runs of the sweep</p>" if more > 0 else ""
    return (
        "<section><h2>Failed and stopped trials</h2>"
        '<div class="scroll"><table><thead><tr><th>trial</th><th>state</th><th>why</th>'
        f"<th>what was known</th></tr></thead><tbody>{cells}</tbody></table></div>{rest}</section>"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


_EMPTY = '<p class="empty">No trial has joined the front yet.</p>'

_STYLE = """
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px}
.tile{padding:10px 14px;background:#fff;border:1px solid #e3e7ed;border-radius:8px}
.name{color:#4b5563;font-size:12px}
.value{font-size:24px;font-weight:600;font-variant-numeric:tabular-nums}
.detail{color:#4b5563;font-size:12px;overflow-wrap:anywhere}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:14px}
#front{height:500px}#hypervolume,#prediction{height:360px}
#zooms{display:flex;gap:6px;flex-wrap:wrap}
button{font:inherit;font-size:12px;padding:3px 10px;border:1px solid #cbd2dc;border-radius:6px;
background:#fff;color:inherit;cursor:pointer}
button[aria-pressed=true]{background:#e3eef7;border-color:#0072B2}
.empty{color:#4b5563}
@media(max-width:640px){.tiles{grid-template-columns:1fr 1fr}}
@media(max-width:900px){.pair{grid-template-columns:1fr;gap:0}}
"""

_BODY = """<header>{header}</header>
<section><h2>Pareto front</h2>
<p>Bars are 95% intervals; a hollow mark is a speed that did not settle; hover over a trial for
the units it keeps.</p>{empty}
<div id="zooms"></div>
<div id="front"></div></section>
<div class="pair">
<section><h2>Progress</h2><p>Hypervolume of the front after every trial.</p>
<div id="hypervolume"></div></section>
<section><h2>Are MACs speed?</h2>
<p>Below the dashed line a trial is slower than its MACs promise. Colours as above.</p>
<div id="prediction"></div></section>
</div>
<section><h2>What the front keeps</h2><p>Units kept of every group, by front member.</p>
<div id="heat"></div></section>
{troubles}"""

_SCRIPT = """const labelled = figures.heat.layout.xaxis;
const room = document.getElementById("heat").clientWidth - 260;
const step = Math.max(1, Math.ceil(labelled.tickvals.length * 44 / room));
for (const part of ["tickvals", "ticktext"])
  labelled[part] = labelled[part].filter((_, i) => i % step === 0);
const zooms = document.getElementById("zooms");
for (const [name, [x, y]] of Object.entries(figures.front.zooms)) {
  const button = document.createElement("button");
  button.textContent = name;
  button.ariaPressed = zooms.children.length === 0;
  button.onclick = () => {
    for (const other of zooms.children) other.ariaPressed = other === button;
    Plotly.relayout("front", {"xaxis.range": [...x], "yaxis.range": [...y]});
  };
  zooms.append(button);
}"""
