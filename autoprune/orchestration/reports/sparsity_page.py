"""The sparsity study as one HTML page that stands alone, like the dashboard."""

import html

from autoprune.domain.trial import Speedup
from autoprune.measurement.cost import MEGABYTE
from autoprune.orchestration.reports.page import html_page
from autoprune.orchestration.reports.sparsity import cells, header, notes
from autoprune.orchestration.reports.sparsity_figures import LOOKS, size_figure, speed_figures
from autoprune.orchestration.studies.records import KINDS, Kind, Row, SparsityStudy

DISCS = {"circle": "●", "square": "■", "diamond": "◆", "star": "★"}


def sparsity_html(study: SparsityStudy) -> str:
    """The page: speed on every runtime, size on disk, and the table."""
    speeds = speed_figures(study)
    panels = [(f"Speed on {runtime}", _SPEED, figure) for runtime, figure in speeds.items()]
    panels.append(("Size on disk", _SIZE, size_figure(study)))
    title = f"{study.name}: what sparsity buys"
    body = _BODY.format(
        title=html.escape(title),
        line=html.escape(_line(study)),
        legend=_legend(study),
        panels="".join(
            f"<section><h2>{html.escape(name)}</h2><p>{told}</p>"
            f'<div class="figure" id="figure{index}"></div></section>'
            for index, (name, told, _) in enumerate(panels)
        ),
        table=_table(study),
        notes="".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
            for name, text in notes(study)
        ),
    )
    figures = {f"figure{index}": figure for index, (*_, figure) in enumerate(panels)}
    return html_page(title, body, figures, style=_STYLE)


def _line(study: SparsityStudy) -> str:
    unpruned = study.unpruned
    told = [f"{unpruned.params:,} parameters", f"{unpruned.size.bytes / MEGABYTE:.3g} MB"]
    for runtime, speed in unpruned.speeds.items():
        if isinstance(speed, Speedup):
            told.append(f"{speed.baseline_ms:.3g} ms on {runtime}")
    return " · ".join(["unpruned: " + told[0], *told[1:]])


def _legend(study: SparsityStudy) -> str:
    there = {row.kind for row in study.rows}
    return "".join(f"<span>{_mark(kind)} {kind}</span>" for kind in KINDS if kind in there)


def _mark(kind: Kind) -> str:
    if kind not in LOOKS:
        return ""
    return f'<b style="color:{LOOKS[kind].color}">{DISCS[LOOKS[kind].symbol]}</b>'


def _table(study: SparsityStudy) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header(study))
    levels = ("".join(_table_row(study, row) for row in level) for level in study.levels)
    body = "".join(f"<tbody>{rows}</tbody>" for rows in levels)
    return f"<thead><tr>{head}</tr></thead>{body}"


def _table_row(study: SparsityStudy, row: Row) -> str:
    kept, kind, *rest = map(html.escape, cells(study, row))
    others = "".join(f"<td>{cell}</td>" for cell in rest)
    return f"<tr><td>{kept}</td><td>{_mark(row.kind)} {kind}</td>{others}</tr>"


_SPEED = (
    "Solid: measured, with 95% intervals; hollow marks did not settle. Dotted: what the "
    "multiplications that remain promise."
)
_SIZE = "Solid: as safetensors. Dotted: the same file zipped."

_STYLE = """
.line{margin-bottom:4px}
.legend span{margin-right:18px;white-space:nowrap}.legend b{font-size:16px}
.figures{display:grid;gap:0 14px;
grid-template-columns:repeat(auto-fit,minmax(min(380px,100%),1fr))}
.figures section{display:flex;flex-direction:column}.figures p{flex:1}
.figure{height:380px}
.scroll{max-height:none}
th,td{white-space:nowrap;text-align:right;padding:5px 8px;font-variant-numeric:tabular-nums}
th:nth-child(2),td:nth-child(2){text-align:left}
tbody+tbody tr:first-child td{border-top:2px solid #cbd2dc}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:12px 0 0;
color:#4b5563;font-size:12px}dt{font-weight:600}dd{margin:0}
"""

_BODY = """<header><h1>{title}</h1><p class="line">{line}</p>
<div class="legend">{legend}</div></header>
<div class="figures">{panels}</div>
<section><h2>The same in figures</h2><div class="scroll"><table>{table}</table></div>
<dl>{notes}</dl></section>"""
