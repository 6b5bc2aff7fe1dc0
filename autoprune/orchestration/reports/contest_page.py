"""A contest of searchers as one HTML page that stands alone, like the dashboard."""

import html
from collections.abc import Mapping, Sequence

import numpy as np

from autoprune.domain.standings import RANDOM, Course, Standings, mean_course
from autoprune.orchestration.contest.records import Contest, Entry
from autoprune.orchestration.reports.figure import Figure, escape, layout
from autoprune.orchestration.reports.page import html_page

COLORS = (
    *("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed"),
    *("#0891b2", "#be185d", "#4d7c0f", "#6b7280", "#92400e"),
)
STEPS = 200
"""Points of a curve against time."""

Entries = Mapping[str, Sequence[Entry]]
Colors = Mapping[str, str]


def contest_html(contest: Contest) -> str:
    """The page: the standings, hypervolume against trials and against time, and the fronts.

    Of a contest that is under way it shows what has ended.
    """
    standings = contest.standings
    names = contest.searchers if standings is None else [s.searcher for s in standings.standings]
    colors = {name: COLORS[at % len(COLORS)] for at, name in enumerate(contest.searchers)}
    ended = {name: contest.of(name) for name in names if contest.of(name)}
    figures = {
        "trials": _against_trials(ended, colors),
        "seconds": _against_time(ended, colors),
        "fronts": _fronts(contest, ended, colors),
    }
    limits = ", ".join(f"{limit} {value}" for limit, value in contest.budget.items() if value)
    body = _BODY.format(
        title=html.escape(contest.name),
        statement=html.escape("" if standings is None else standings.statement),
        rows="" if standings is None else _rows(standings),
        random=RANDOM,
        timed=_TIMED if contest.timed_again else html.escape(contest.untimed),
        facts=html.escape(
            f"Each search: {limits}. {len(contest.entries)} of "
            f"{len(contest.searchers) * len(contest.seeds)} searches have ended, over "
            f"{len(contest.seeds)} seeds. Measured on {contest.device}."
        ),
    )
    return html_page(f"Contest {contest.name}", body, figures, style=".figure{height:440px}")


def _against_trials(ended: Entries, colors: Colors) -> Figure:
    figure = _curves_layout("Trials")
    traces: list[Figure] = []
    for name, entries in ended.items():
        courses = [entry.course for entry in entries]
        longest = max(len(course.hypervolume_T) for course in courses)
        traces += _curve(name, courses, range(1, longest + 1), colors[name])
    return {"data": traces, "layout": figure}


def _against_time(ended: Entries, colors: Colors) -> Figure:
    figure = _curves_layout("Seconds since a search began")
    traces: list[Figure] = []
    for name, entries in ended.items():
        courses = [entry.course for entry in entries]
        end_s = max(course.seconds for course in courses)
        times_s = [float(time) for time in np.linspace(0.0, end_s, STEPS)]
        timed = [course.by_clock(times_s) for course in courses]
        traces += _curve(name, timed, times_s, colors[name])
    return {"data": traces, "layout": figure}


def _curves_layout(x: str) -> Figure:
    figure = layout(x, "Hypervolume")
    figure["yaxis"]["rangemode"] = "tozero"
    return figure


def _curve(
    name: str, courses: Sequence[Course], x: Sequence[float], color: str
) -> tuple[Figure, Figure]:
    """The mean over seeds as a line, in a band of its 95% interval."""
    mean, low, high = (list(map(float, values)) for values in mean_course(courses))
    band = {
        "x": [*x, *reversed(x)],
        "y": [*high, *(max(value, 0.0) for value in reversed(low))],
        "mode": "lines",
        "fill": "toself",
        "fillcolor": color,
        "opacity": 0.15,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": name,
    }
    line = {
        "x": list(x),
        "y": mean,
        "mode": "lines",
        "name": escape(name),
        "legendgroup": name,
        "line": {"color": color, "width": 2},
        "hovertemplate": f"{escape(name)}<br>%{{x:.4~g}}: %{{y:.4f}}<extra></extra>",
    }
    return band, line


def _fronts(contest: Contest, ended: Entries, colors: Colors) -> Figure:
    """The members of every final front by the first two objectives, a mark a member."""
    names = [objective.metric for objective in contest.goal.objectives]
    figure = layout(escape(names[1 % len(names)]), escape(names[0]))
    traces = []
    for name, entries in ended.items():
        points = [(e.course.seed, *point) for e in entries for point in e.front_again or e.front]
        traces.append(
            {
                "x": [point[2 if len(names) > 1 else 1] for point in points],
                "y": [point[1] for point in points],
                "text": [f"{escape(name)}, seed {point[0]}" for point in points],
                "mode": "markers",
                "name": escape(name),
                "marker": {"color": colors[name], "size": 7, "opacity": 0.65},
                "hovertemplate": "%{text}<br>%{x:.3f}, %{y:.4f}<extra></extra>",
            }
        )
    return {"data": traces, "layout": figure}


def _rows(standings: Standings) -> str:
    p = {duel.other: duel.p for duel in standings.duels}
    rows = []
    for standing in standings.standings:
        interval, reached = standing.ci95, standing.trials_to_random_final
        found = p.get(standing.searcher)
        cells = (
            html.escape(standing.searcher),
            f"{standing.mean:.4f}",
            "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}",
            f"{sum(standing.told) / len(standing.told):.4f}",
            "" if reached is None else str(reached),
            "" if found is None else f"{found:.3f}",
            ", ".join(f"{value:.4f}" for value in standing.hypervolume),
        )
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "".join(rows)


_TIMED = (
    "At the end the networks of all final fronts were timed again, one after the other on one "
    "machine: the means and the fronts below are by those speeds. As told is what the searches "
    "themselves measured, at different times; the curves are by that."
)

_BODY = """
<h1>{title}</h1>
<div class="line">{facts}</div>
<section><h2>{statement}</h2>
<div class="scroll"><table><thead><tr>
<th>searcher</th><th>mean hypervolume</th><th>95% interval</th><th>as told</th>
<th>trials to what {random} ends with</th><th>p against the best</th><th>seed by seed</th>
</tr></thead>
<tbody>{rows}</tbody></table></div>
<p>{timed}</p></section>
<section><h2>Hypervolume against trials</h2>
<p>The mean over seeds, in the 95% interval of the mean.</p>
<div id="trials" class="figure"></div></section>
<section><h2>Hypervolume against time</h2>
<p>Seconds of the whole search, the searcher's own work and a profile that it reads among them.</p>
<div id="seconds" class="figure"></div></section>
<section><h2>Final fronts</h2>
<p>Every member of every search's front.</p>
<div id="fronts" class="figure"></div></section>
"""
