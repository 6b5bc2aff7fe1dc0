"""The sparsity study's figures: speed on a runtime, and size on disk, against what is kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoprune.domain.trial import Speedup
from autoprune.measurement.cost import MEGABYTE
from autoprune.orchestration.reports.figure import Figure, error_bars, escape, layout
from autoprune.orchestration.reports.sparsity import label, speed_text
from autoprune.orchestration.studies.records import KINDS, Kind, Row, SparsityStudy

HALF_DECADES = [m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)]
SPEED_TICKS = sorted([*HALF_DECADES, 3.0, 30.0])
NOT_SETTLED = "-open"


@dataclass(frozen=True, slots=True)
class KindLook:
    """How a kind is drawn."""

    color: str
    symbol: str
    size: int = 9


LOOKS = {
    Kind.STRUCTURED: KindLook("#0072B2", "circle"),
    Kind.MASKED: KindLook("#E69F00", "square"),
    Kind.CSR: KindLook("#009E73", "diamond", 10),
    Kind.TWO_OF_FOUR: KindLook("#CC79A7", "star", 13),
}
"""Colours are Okabe and Ito's, safe for the colour-blind."""


@dataclass(frozen=True, slots=True)
class _Line:
    """The rows of a kind that have a value, from the unpruned network on where it has none."""

    kind: Kind
    rows: tuple[Row, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]

    def trace(self, hover: Sequence[str]) -> Figure:
        """Marks on a line; none where it begins at the unpruned network."""
        look, begin = LOOKS[self.kind], len(self.x) - len(self.rows)
        return {
            "type": "scatter",
            "mode": "lines+markers",
            "name": str(self.kind),
            "x": list(self.x),
            "y": list(self.y),
            "line": {"color": look.color, "width": 2},
            "marker": {
                "color": look.color,
                "size": [0] * begin + [look.size] * len(self.rows),
                "opacity": 1,
                "symbol": look.symbol,
                "line": {"width": 0},
            },
            "hovertext": [""] * begin + list(hover),
            "hoverinfo": "text",
            "showlegend": False,
        }

    def dotted(self) -> Figure:
        """The same line without marks."""
        look = LOOKS[self.kind]
        return self.trace([]) | {
            "mode": "lines",
            "name": f"{self.kind}, dotted",
            "line": {"color": look.color, "width": 1.5, "dash": "dot"},
            "hoverinfo": "skip",
        }


def speed_figures(study: SparsityStudy) -> dict[str, Figure]:
    """For every runtime, by its name, `speed_figure`, on one scale."""
    figures = {runtime: speed_figure(study, runtime) for runtime in study.runtimes}
    axes = [figure["layout"]["yaxis"] for figure in figures.values()]
    ends = [min(axis["range"][0] for axis in axes), max(axis["range"][1] for axis in axes)]
    for axis in axes:
        axis["range"] = ends
    return figures


def speed_figure(study: SparsityStudy, runtime: str) -> Figure:
    """The measured speedup with its interval, and dotted the one that MACs promise."""
    traces, seen = [_across(1.0)], [1.0]
    for kind in KINDS:
        rows = [row for row in study.rows if row.kind is kind and row.macs]
        speeds = [speed for row in rows if isinstance(speed := row.speeds[runtime], Speedup)]
        if not rows or len(speeds) < len(rows):
            continue
        promised = _line(study, kind, rows, [study.unpruned.macs / row.macs for row in rows], 1.0)
        measured = _line(study, kind, rows, [speed.ratio for speed in speeds], 1.0)
        hover = [_speed_hover(study, row, runtime) for row in rows]
        traces += [promised.dotted(), _with_bars(measured.trace(hover), speeds)]
        seen += [*promised.y, *measured.y]
    figure = _layout(study, "Speedup over the unpruned network")
    figure["yaxis"] |= _log(min(seen) / 1.2, max(seen) * 1.2) | {
        "tickvals": SPEED_TICKS,
        "ticktext": [f"{tick:g}x" for tick in SPEED_TICKS],
    }
    return {"data": traces, "layout": figure}


def size_figure(study: SparsityStudy) -> Figure:
    """Megabytes on disk, and dotted those of the same file zipped."""
    whole, whole_zipped = (size / MEGABYTE for size in _sizes(study.unpruned))
    traces, seen = [_across(whole)], [whole]
    for kind in KINDS:
        rows = [row for row in study.rows if row.kind is kind]
        if not rows:
            continue
        plain = _line(study, kind, rows, [_sizes(r)[0] / MEGABYTE for r in rows], whole)
        zipped = _line(study, kind, rows, [_sizes(r)[1] / MEGABYTE for r in rows], whole_zipped)
        hover = [_size_hover(study, row) for row in rows]
        traces += [zipped.dotted(), plain.trace(hover)]
        seen += [*plain.y, *zipped.y]
    figure = _layout(study, "MB")
    figure["yaxis"] |= _log(min(seen) / 1.2, max(seen) * 1.2) | {
        "tickvals": HALF_DECADES,
        "ticktext": [f"{tick:g}" for tick in HALF_DECADES],
    }
    return {"data": traces, "layout": figure}


def _line(
    study: SparsityStudy, kind: Kind, rows: Sequence[Row], values: Sequence[float], begin: float
) -> _Line:
    """A line; it begins at the unpruned network's value unless the kind itself has a row there.

    The pattern 2:4 has one level, which makes no line.
    """
    x, y = [study.share(row) for row in rows], list(values)
    if rows[0].asked < 1.0 and kind is not Kind.TWO_OF_FOUR:
        x, y = [1.0, *x], [begin, *y]
    return _Line(kind, tuple(rows), tuple(x), tuple(y))


def _with_bars(trace: Figure, speeds: Sequence[Speedup]) -> Figure:
    """The intervals; hollow marks where a speed did not settle."""
    begin, symbol = len(trace["x"]) - len(speeds), trace["marker"]["symbol"]
    trace["marker"]["symbol"] = [symbol] * begin + [
        symbol if speed.settled else symbol + NOT_SETTLED for speed in speeds
    ]
    # plotly.js draws a hollow mark by its outline alone, and gives a full one a white one
    trace["marker"]["line"] = {"width": 2, "color": trace["marker"]["color"]}
    above = [0.0] * begin + [speed.high - speed.ratio for speed in speeds]
    below = [0.0] * begin + [speed.ratio - speed.low for speed in speeds]
    return trace | {"error_y": error_bars(above, below, thickness=1.5)}


def _speed_hover(study: SparsityStudy, row: Row, runtime: str) -> str:
    speed, rho = row.speeds[runtime], study.rho(row, runtime)
    told = [f"<b>{escape(label(row))}</b>, {study.share(row):.1%} of the parameters"]
    told += [speed_text(speed)]
    told += [f"{speed.candidate_ms:.3g} ms"] if isinstance(speed, Speedup) else []
    told += [] if rho is None else [f"rho {rho:.2f}"]
    return "<br>".join(told)


def _size_hover(study: SparsityStudy, row: Row) -> str:
    plain, zipped = (size / MEGABYTE for size in _sizes(row))
    return (
        f"<b>{escape(label(row))}</b>, {study.share(row):.1%} of the parameters"
        f"<br>{plain:.3g} MB, zipped {zipped:.3g} MB"
    )


def _sizes(row: Row) -> tuple[int, int]:
    return row.size.bytes, row.size.zipped_bytes


def _across(value: float) -> Figure:
    """A thin line across the figure at the unpruned network's value."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [1e-9, 10.0],
        "y": [value, value],
        "line": {"color": "#6b7280", "width": 1},
        "name": "unpruned",
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _layout(study: SparsityStudy, y: str) -> Figure:
    """Shares fall to the right, on a logarithmic axis with a tick at every level."""
    figure = layout("Parameters kept", y)
    levels = sorted({row.asked for row in study.rows})
    lowest = min(study.share(row) for row in study.rows)
    figure["xaxis"] |= _log(1.12, lowest / 1.12) | {
        "tickvals": levels,
        "ticktext": [f"{100 * level:.3g}%" for level in levels],
    }
    figure["margin"] |= {"t": 8}
    return figure


def _log(begin: float, end: float) -> Figure:
    return {"type": "log", "range": [math.log10(begin), math.log10(end)]}
