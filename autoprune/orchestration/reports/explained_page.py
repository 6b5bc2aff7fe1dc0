"""A network's groups, and what a front cut, as HTML pages that stand alone, like the dashboard."""

import html
from collections.abc import Iterator, Sequence

from autoprune.orchestration.reports.dashboard_panels import heat_figure
from autoprune.orchestration.reports.explained import (
    cells,
    fates,
    header,
    member_name,
    notes,
    together,
)
from autoprune.orchestration.reports.figure import Figure, escape, layout, shorten
from autoprune.orchestration.reports.page import html_page
from autoprune.orchestration.understanding.front import ExplainedFront
from autoprune.orchestration.understanding.network import ExplainedGroup, ExplainedNetwork
from autoprune.pruning.anatomy import Role

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6b7280")
"""Okabe and Ito's, safe for the colour-blind, one group after the other."""

SYMBOLS = {
    Role.MAKES: "circle",
    Role.FOLLOWS: "circle-open",
    Role.READS: "triangle-down",
    Role.UNIT: "square",
}
SIZES = {Role.MAKES: 11, Role.FOLLOWS: 9, Role.READS: 13, Role.UNIT: 11}
_NAME = 28
_COLUMN_PX, _ROW_PX = 24, 30


def network_html(found: ExplainedNetwork) -> str:
    """The page: the groups as a picture, and as a table with what hangs together in each."""
    figure = picture(found)
    title = f"{found.name}: what must be pruned together"
    body = _NETWORK.format(
        title=html.escape(title),
        line=html.escape(
            f"{len(found.groups)} groups of {len(found.layers)} layers, "
            f"{found.costs['params']:,.0f} parameters"
        ),
        width=320 + _COLUMN_PX * len(found.layers),
        height=figure["layout"]["height"],
        head=_row("th", [*header(found), "what hangs together"]),
        rows="".join(
            _row("td", [*cells(found, one), together(one, most=None)]) for one in found.groups
        ),
        refused="".join(
            f"<dt>{html.escape(one.name)}</dt><dd>not pruned: {html.escape(one.reason)}</dd>"
            for one in found.refused
        ),
        notes="".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>"
            for name, text in notes(found)
        ),
    )
    return html_page(title, body, {"groups": figure}, style=_STYLE)


def picture(found: ExplainedNetwork) -> Figure:
    """A row a group and a column a layer, both in forward order.

    A layer stands in the row of what it makes and in the rows of what it reads, with a line between
    them; a line along the row joins all that hangs together.
    """
    columns = {layer: at for at, layer in enumerate(found.layers)}
    traces = [_crossings(found, columns)]
    for row, explained in enumerate(found.groups):
        traces += _group_traces(explained, row, columns)
    traces += [_key(role, symbol) for role, symbol in SYMBOLS.items() if _has(found, role)]
    figure = layout("", "")
    names = [f"{escape(shorten(one.group.name, _NAME))} ({one.group.size})" for one in found.groups]
    figure["xaxis"] |= _ticks([escape(shorten(name, _NAME)) for name in found.layers]) | {
        "tickangle": -60,
        "range": [-0.7, len(columns) - 0.3],
    }
    figure["yaxis"] |= _ticks(names) | {"range": [len(names) - 0.4, -0.6]}
    figure["height"] = 230 + _ROW_PX * len(found.groups)
    figure["legend"] = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0}
    return {"data": traces, "layout": figure}


def _has(found: ExplainedNetwork, role: Role) -> bool:
    drawn = set(found.layers)
    return any(p.role is role and p.layer in drawn for one in found.groups for p in one.parts)


def _ticks(texts: Sequence[str]) -> Figure:
    return {
        "tickmode": "array",
        "tickvals": list(range(len(texts))),
        "ticktext": list(texts),
        "tickfont": {"size": 11},
        "zeroline": False,
    }


def _crossings(found: ExplainedNetwork, columns: dict[str, int]) -> Figure:
    """From the rows that a layer reads to those that it makes."""
    x: list[int | None] = []
    y: list[int | None] = []
    for layer, at in columns.items():
        rows = [
            row
            for row, one in enumerate(found.groups)
            if any(part.layer == layer and part.role is not Role.UNIT for part in one.parts)
        ]
        if len(rows) > 1:
            x += [at, at, None]
            y += [min(rows), max(rows), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "crossings",
        "x": x,
        "y": y,
        "line": {"color": "#9aa4b2", "width": 1.5},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _group_traces(explained: ExplainedGroup, row: int, columns: dict[str, int]) -> Iterator[Figure]:
    """The line that joins a group, and the marks of its layers."""
    parts = [part for part in explained.parts if part.layer in columns]
    at = [columns[part.layer] for part in parts]
    color = COLORS[row % len(COLORS)]
    name = escape(shorten(explained.group.name, _NAME))
    yield {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [min(at), max(at)],
        "y": [row, row],
        "line": {"color": color, "width": 3},
        "opacity": 0.45,
        "hoverinfo": "skip",
        "showlegend": False,
    }
    yield {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": at,
        "y": [row] * len(at),
        "marker": {
            "color": color,
            "size": [SIZES[part.role] for part in parts],
            "symbol": [SYMBOLS[part.role] for part in parts],
        },
        "hovertext": [
            f"<b>{escape(shorten(part.layer, 2 * _NAME))}</b><br>{part.role} {name}: "
            f"{explained.group.size} {escape(explained.group.kind)}"
            for part in parts
        ],
        "hoverinfo": "text",
        "showlegend": False,
    }


def _key(role: Role, symbol: str) -> Figure:
    """What a mark means, in the legend."""
    texts = {
        Role.MAKES: "makes the units",
        Role.FOLLOWS: "follows them",
        Role.READS: "reads them",
        Role.UNIT: "is a unit",
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": texts[role],
        "x": [None],
        "y": [None],
        "marker": {"color": "#4b5563", "size": 10, "symbol": symbol},
        "showlegend": True,
    }


def front_html(found: ExplainedFront) -> str:
    """The page: what every member keeps of every group, which named units are gone, and what went
    with them.
    """
    title = f"{found.view.sweep_id}: what the front cut"
    rows = [
        [member_name(member), group, text]
        for member in found.members
        for group, text in fates(member)
    ]
    named = _NAMED.format(
        head=_row("th", ["member", "group", "units"]),
        rows="".join(_row("td", row) for row in rows),
    )
    figure = heat_figure(found.view)
    body = _FRONT.format(
        title=html.escape(title),
        line=html.escape("; ".join(found.unnamed)),
        height=figure["layout"]["height"],
        named=named if rows else "",
    )
    return html_page(title, body, {"heat": figure}, style=_STYLE)


def _row(tag: str, texts: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in texts)}</tr>"


_STYLE = """
.wide{overflow-x:auto}.scroll{max-height:none}
td:nth-child(n+3):nth-child(-n+7){white-space:nowrap}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:12px 0 0;
color:#4b5563;font-size:12px}dt{font-weight:600}dd{margin:0}
"""

_NETWORK = """<header><h1>{title}</h1><p class="line">{line}</p></header>
<section><h2>Who makes what, and who reads it</h2><p>A row a group with its number of units, a
column a layer, both in forward order. All that is on one row loses the same units together; a
thin line leads from what a layer reads to what it makes.</p>
<div class="wide"><div id="groups" style="min-width:{width}px;height:{height}px"></div></div>
</section>
<section><h2>The same in figures</h2><div class="scroll"><table><thead>{head}</thead>
<tbody>{rows}</tbody></table></div><dl>{refused}{notes}</dl></section>"""

_FRONT = """<header><h1>{title}</h1><p class="line">{line}</p></header>
<section><h2>What every member keeps</h2><p>The share of the units of every group
by the trial's spec; what went with a block or a branch is told below.</p>
<div id="heat" style="height:{height}px"></div></section>{named}"""

_NAMED = """<section><h2>Heads, blocks, branches and connections, and what went with them</h2>
<div class="scroll"><table>
<thead>{head}</thead><tbody>{rows}</tbody></table></div></section>"""
