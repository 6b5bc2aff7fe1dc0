"""The dashboard's page and figures as data; tests/browser looks at what a browser makes of them."""

import html
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from autoprune.domain.trial import Cause, Failure, Measurement, Stage
from autoprune.orchestration.reports.dashboard import dashboard_html
from autoprune.orchestration.reports.dashboard_figures import front_figure
from autoprune.orchestration.reports.dashboard_panels import (
    heat_figure,
    hypervolume_figure,
    prediction_figure,
)
from autoprune.orchestration.reports.pareto import metrics_of, place_of
from tests.sweeps import ACCURACY, PERPLEXITY, Quality, make_goal, make_space, make_sweep, unsettled

HOSTILE = "</script><img src=x onerror=alert(1)><b>&amp;"


def figures_of(page: str) -> dict[str, Any]:
    found = re.search(r"const figures = (.*);\nconst config", page)
    assert found is not None
    return dict(json.loads(found.group(1)))


def trace(figure: dict[str, Any], name: str) -> dict[str, Any]:
    return next(t for t in figure["data"] if t.get("name", "").startswith(name))


@pytest.mark.parametrize("quality", [ACCURACY, PERPLEXITY], ids=lambda q: q.name)
def test_every_measured_trial_is_a_mark_in_the_front_figure(quality: Quality) -> None:
    view = make_sweep(60, quality=quality, goal=make_goal(quality, min_speedup=1.4))
    drawn = {t["name"]: len(t["x"]) for t in front_figure(view)["data"] if t.get("name")}
    places = [place_of(view, o) for o in view.observations]
    assert drawn[f"front ({places.count('front')})"] == len(view.front)
    assert drawn["baseline"] == 1
    assert sum(drawn.values()) == 1 + sum(place != "failed" for place in places)


def test_intervals_stand_on_both_axes() -> None:
    view = make_sweep(30)
    front = trace(front_figure(view), "front")
    found = [metrics_of(o) for o in view.observations if o.trial.number in view.front]
    lows = [m["speedup"] - m["speedup_low"] for m in found]
    highs = [m["accuracy_high"] - m["accuracy"] for m in found]
    assert front["error_x"]["arrayminus"] == pytest.approx(lows)
    assert front["error_y"]["array"] == pytest.approx(highs)


def test_a_speed_that_did_not_settle_is_a_hollow_mark() -> None:
    view = make_sweep(30)
    number = view.front.members[0].trial.number
    marked = [unsettled(o) if o.trial.number == number else o for o in view.observations]
    front = trace(front_figure(replace(view, observations=tuple(marked))), "front")
    hollow = [
        text
        for text, s in zip(front["hovertext"], front["marker"]["symbol"], strict=True)
        if s == "circle-open"
    ]
    assert len(hollow) == 1
    assert f"trial {number}<" in hollow[0]
    assert "the speed did not settle" in hollow[0]


def test_the_step_line_never_promises_more_than_a_member_has() -> None:
    line = next(t for t in front_figure(make_sweep(60))["data"] if t["mode"] == "lines")
    assert line["x"] == sorted(line["x"])
    assert line["y"] == sorted(line["y"], reverse=True)
    assert line["line"]["shape"] == "vh"


def test_constraints_and_the_edge_of_use_are_lines_with_labels() -> None:
    layout = front_figure(make_sweep(30, goal=make_goal(min_speedup=1.5)))["layout"]
    assert [note["text"] for note in layout["annotations"]] == [
        "edge of use: 0.9361",
        "speedup ≥ 1.5",
    ]
    assert [shape.get("x0") for shape in layout["shapes"]] == [0, 1.5]


def test_the_heat_map_has_a_row_a_group_and_a_column_a_member() -> None:
    view = make_sweep(30)
    (heat,) = heat_figure(view)["data"]
    assert len(heat["z"]) == len(view.space.groups)
    assert {len(row) for row in heat["z"]} == {len(view.front)}
    assert all(0 < ratio <= 1 for row in heat["z"] for ratio in row)


def test_the_hypervolume_never_falls_and_ends_at_the_sweeps() -> None:
    view = make_sweep(40)
    values = hypervolume_figure(view)["data"][0]["y"]
    assert len(values) == 40
    assert values == sorted(values)
    assert values[-1] == view.hypervolume


def test_predictions_are_ratios_of_macs() -> None:
    view = make_sweep(30)
    front = trace(prediction_figure(view), "front")
    found = [metrics_of(o) for o in view.observations if o.trial.number in view.front]
    assert front["x"] == pytest.approx([view.baseline["macs"] / m["macs"] for m in found])
    assert front["y"] == [m["speedup"] for m in found]


def test_the_page_stands_alone_and_says_what_counts() -> None:
    view = make_sweep(40)
    page = dashboard_html(view)
    assert page.count("plotly.js v") == 1
    (policy,) = re.findall(r"<meta http-equiv=[^>]*>", page)
    assert "default-src 'none'" in policy
    own = page.replace(get_plotlyjs(), "").replace(policy, "")
    assert len(own) < 150_000
    assert not re.search(r"\b(src|href|url|import|fetch)\b", own)
    assert f"<h1>{view.sweep_id}</h1>" in page
    counts = view.counts
    assert f"{counts['stopped']} stopped · {counts['failed']} failed" in page
    assert len(page) < 5.5e6


def test_text_from_users_is_escaped() -> None:
    space = make_space({HOSTILE: 32, "plain": 64})
    view = make_sweep(12, space=space, sweep_id=HOSTILE)
    failure = Failure(Stage.PRUNE, Cause.GRAPH, HOSTILE)
    failed = replace(view.observations[0], outcome=failure)
    view = replace(view, observations=(failed, *view.observations[1:]))
    page = dashboard_html(view)
    body = page[page.rindex("<header>") :]
    assert "<img" not in body
    assert html.escape(HOSTILE) in body
    hovers = figures_of(page)["heat"]["data"][0]["hovertext"]
    assert "&lt;img src=x" in hovers[0][0]


def test_a_sweep_without_a_front_has_a_page() -> None:
    for trials in (0, 1):
        view = make_sweep(trials, goal=make_goal(min_speedup=90.0))
        page = dashboard_html(view)
        assert "No trial has joined the front yet." in page
        assert figures_of(page)["heat"]["data"][0]["x"] == []


def test_trials_stopped_before_any_accuracy_are_listed() -> None:
    view = make_sweep(3)
    early = Measurement({"macs": 9e9}, stopped_by="macs <= 1e+06")
    first = replace(view.observations[0], outcome=early)
    page = dashboard_html(replace(view, observations=(first, *view.observations[1:])))
    assert "<td>stopped</td><td>macs &lt;= 1e+06</td>" in page
