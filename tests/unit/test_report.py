"""The plain-data reports of a sweep."""

import csv
import io
import json
from dataclasses import replace

import pytest

from autoprune.domain.objective import Direction, Goal, Objective
from autoprune.domain.trial import Measurement
from autoprune.orchestration.reports.pareto import (
    NOTE_ROWS,
    fastest_worth_having,
    live_metrics,
    metrics_of,
    note_markdown,
    pareto_csv,
    pareto_json,
    place_of,
)
from tests.sweeps import ACCURACY, PERPLEXITY, Quality, make_goal, make_sweep


@pytest.mark.parametrize("quality", [ACCURACY, PERPLEXITY], ids=lambda q: q.name)
def test_the_front_stands_under_the_metrics_own_name(quality: Quality) -> None:
    view = replace(make_sweep(30, quality=quality), run_ids={4: "run-of-4"})
    found = json.loads(json.dumps(pareto_json(view), allow_nan=False))
    assert list(found) == [
        "sweep_id",
        "baseline",
        "front",
        "hypervolume",
        "counts",
        "search_s",
        "utilisation",
    ]
    assert list(found["baseline"])[:4] == [quality.name, "latency_ms", "macs", "params"]
    assert found["counts"] == view.counts
    assert found["hypervolume"] == view.hypervolume > 0
    values = [row[quality.name] for row in found["front"]]
    assert values == sorted(values, reverse=quality.direction is Direction.MAX)
    for row, member in zip(found["front"], view.front.members, strict=True):
        assert set(row) == {
            "trial",
            "run_id",
            quality.name,
            f"{quality.name}_low",
            f"{quality.name}_high",
            "speedup",
            "speedup_low",
            "speedup_high",
            "latency_ms",
            "macs",
            "params",
            "speedup_settled",
            "rho",
            "precision",
            "widths",
        }
        assert row["precision"] == member.trial.spec.precision
        assert row["trial"] == member.trial.number
        assert row["run_id"] == ("run-of-4" if row["trial"] == 4 else None)
        assert row["widths"] == member.trial.spec.widths
        assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
        assert isinstance(row["macs"], int)
        promised = view.baseline["macs"] / row["macs"]
        assert row["rho"] == pytest.approx(row["speedup"] / promised)


def test_the_same_view_gives_the_same_report() -> None:
    view = make_sweep(30)
    backwards = replace(view, observations=view.observations[::-1])
    assert json.dumps(pareto_json(view)) == json.dumps(pareto_json(backwards))
    assert pareto_csv(view) == pareto_csv(backwards)


def test_a_sweep_without_a_front_is_reported() -> None:
    view = make_sweep(0)
    assert pareto_json(view)["front"] == []
    assert pareto_csv(view).count("\n") == 1
    assert "The front is empty so far." in note_markdown(view, "autoprune promote")
    assert fastest_worth_having(view) is None
    assert live_metrics(view) == {"hypervolume": 0.0, "front_size": 0.0, "failed": 0.0}


def test_a_speed_that_was_not_measured_is_none() -> None:
    view = make_sweep(12)
    goal = Goal((Objective("accuracy", Direction.MAX),), (0.9,))
    bare = tuple(
        replace(o, outcome=Measurement({"accuracy": 0.95}))
        for o in view.observations
        if isinstance(o.outcome, Measurement)
    )
    view = replace(view, goal=goal, observations=bare)
    (row,) = pareto_json(view)["front"]
    assert row["speedup"] is None
    assert "accuracy_low" not in row
    assert "not measured" in note_markdown(view, "autoprune promote")


def test_the_csv_has_a_column_for_every_group() -> None:
    view = make_sweep(30)
    rows = list(csv.DictReader(io.StringIO(pareto_csv(view))))
    members = view.front.members
    assert [int(row["trial"]) for row in rows] == [m.trial.number for m in members]
    for row, member in zip(rows, members, strict=True):
        widths = member.trial.spec.widths
        assert {f"kept:{name}": str(kept) for name, kept in widths.items()}.items() <= row.items()
        assert float(row["speedup"]) == metrics_of(member)["speedup"]


def test_the_note_shows_both_ends_of_a_long_front_and_the_command() -> None:
    view = make_sweep(200)
    members = view.front.members
    assert len(members) > NOTE_ROWS
    note = note_markdown(view, "autoprune promote sweep=x")
    rows = [line for line in note.splitlines() if line.startswith("| ") and "trial" not in line]
    assert len(rows) == NOTE_ROWS
    assert rows[0].startswith(f"| {members[0].trial.number} |")
    assert rows[-1].startswith(f"| {members[-1].trial.number} |")
    assert f"{len(members) - NOTE_ROWS} more members" in note
    assert "```\nautoprune promote sweep=x\n```" in note


@pytest.mark.parametrize("quality", [ACCURACY, PERPLEXITY], ids=lambda q: q.name)
def test_the_fastest_worth_having_is_within_the_reference(quality: Quality) -> None:
    view = make_sweep(60, quality=quality)
    best = fastest_worth_having(view)
    assert best is not None
    sign = 1 if quality.direction is Direction.MAX else -1
    assert sign * metrics_of(best)[quality.name] >= sign * quality.edge
    for member in view.front.members:
        if metrics_of(member)["speedup"] > metrics_of(best)["speedup"]:
            assert sign * metrics_of(member)[quality.name] < sign * quality.edge
    assert live_metrics(view)["best_speedup_at_budget"] == metrics_of(best)["speedup"]


def test_every_trial_has_a_place() -> None:
    view = make_sweep(60, goal=make_goal(min_speedup=1.3))
    places = {place_of(view, o) for o in view.observations}
    assert places == {"front", "dominated", "stopped", "failed"}
    harder = replace(view, goal=make_goal(min_speedup=3.0))
    assert "infeasible" in {place_of(harder, o) for o in harder.observations}
