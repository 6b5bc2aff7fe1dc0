"""The dashboard: one HTML page that stands alone, for MLflow's artifact viewer and any browser.

MLflow 3.17 shows HTML artifacts in an iframe with ``sandbox="allow-scripts"``: no storage, no
sibling files, perhaps no internet. So plotly.js is part of the page, once (4.8 MB of its
4.9 MB), and the page uses nothing else.
"""

import html
import json
from functools import cache
from typing import Any

from plotly.offline import get_plotlyjs

from autoprune.domain.trial import Failure, Measurement
from autoprune.orchestration.reports.console import short
from autoprune.orchestration.reports.dashboard_figures import front_figure
from autoprune.orchestration.reports.dashboard_panels import (
    heat_figure,
    hypervolume_figure,
    prediction_figure,
)
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
    return _PAGE.format(
        title=html.escape(f"{view.sweep_id}: Pareto front"),
        style=_STYLE,
        plotly=_plotly(),
        header=_header(view),
        empty="" if view.front.members else _EMPTY,
        troubles=_troubles(view),
        figures=_script_json(figures),
    )


@cache
def _plotly() -> str:
    return str(get_plotlyjs())


def _script_json(data: Any) -> str:
    """JSON that can stand inside a script element whatever its texts say."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


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
*{box-sizing:border-box}
body{margin:0;padding:20px 24px 32px;background:#f5f6f8;color:#1f2937;
font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{margin:0;font-size:22px;overflow-wrap:anywhere}
h2{margin:0;font-size:16px}
.line{margin:2px 0 14px;color:#4b5563}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px}
.tile,section{background:#fff;border:1px solid #e3e7ed;border-radius:8px}
.tile{padding:10px 14px}
.name{color:#4b5563;font-size:12px}
.value{font-size:24px;font-weight:600;font-variant-numeric:tabular-nums}
.detail{color:#4b5563;font-size:12px;overflow-wrap:anywhere}
section{margin-top:14px;padding:14px 16px;min-width:0}
section p{margin:2px 0 6px;color:#4b5563;font-size:13px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:14px}
#front{height:500px}#hypervolume,#prediction{height:360px}
.scroll{overflow:auto;max-height:340px;margin-top:8px}
table{border-collapse:collapse;width:100%;font-size:13px}
th{position:sticky;top:0;background:#fff}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid #eceff3;vertical-align:top;
overflow-wrap:anywhere}
th,td:first-child,td:nth-child(2){white-space:nowrap}
#zooms{display:flex;gap:6px;flex-wrap:wrap}
button{font:inherit;font-size:12px;padding:3px 10px;border:1px solid #cbd2dc;border-radius:6px;
background:#fff;color:inherit;cursor:pointer}
button[aria-pressed=true]{background:#e3eef7;border-color:#0072B2}
.empty{color:#4b5563}
@media(max-width:640px){.tiles{grid-template-columns:1fr 1fr}}
@media(max-width:900px){.pair{grid-template-columns:1fr;gap:0}body{padding:14px}}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{title}</title><style>{style}</style>
<script>{plotly}</script></head><body>
<header>{header}</header>
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
{troubles}
<script>
const figures = {figures};
const config = {{responsive: true, displaylogo: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]}};
const labelled = figures.heat.layout.xaxis;
const room = document.getElementById("heat").clientWidth - 260;
const step = Math.max(1, Math.ceil(labelled.tickvals.length * 44 / room));
for (const part of ["tickvals", "ticktext"])
  labelled[part] = labelled[part].filter((_, i) => i % step === 0);
for (const [id, figure] of Object.entries(figures))
  Plotly.newPlot(id, figure.data, figure.layout, config);
const zooms = document.getElementById("zooms");
for (const [name, [x, y]] of Object.entries(figures.front.zooms)) {{
  const button = document.createElement("button");
  button.textContent = name;
  button.ariaPressed = zooms.children.length === 0;
  button.onclick = () => {{
    for (const other of zooms.children) other.ariaPressed = other === button;
    Plotly.relayout("front", {{"xaxis.range": [...x], "yaxis.range": [...y]}});
  }};
  zooms.append(button);
}}
</script></body></html>
"""
