"""Trials that fail, in whole sweeps: counted, shown and survived."""

from collections.abc import Iterable
from typing import Any

import pytest

from autoprune.domain.objective import Constraint
from autoprune.domain.trial import Cause, Failure, Measurement, Observation, Stage
from autoprune.evaluation import TrialLimits
from autoprune.orchestration.folders import JOURNAL_FILE
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.request import GoalRequest
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.trouble import SweepStoppedError
from autoprune.orchestration.view import view_of
from tests.faults import Faulty, Stranger
from tests.tiny import ray_slots, request, told

NOWHERE = Tracking()
pytestmark = pytest.mark.usefixtures("cluster")


def by_number(observations: Iterable[Observation]) -> list[Any]:
    return [o.outcome for o in sorted(observations, key=lambda o: o.trial.number)]


def test_a_sweep_counts_shows_and_survives_what_fails(tmp_path):
    faults = [float("nan"), MemoryError(), None, KeyError("x")]
    task = Faulty(tmp_path, faults)
    result = launch(request(tmp_path / "out", task=task, budget=Budget(trials=6)), NOWHERE).result
    assert result.complete
    assert result.view.counts == {"finished": 3, "paused": 0, "stopped": 0, "failed": 3}
    outcomes = by_number(result.view.observations)
    causes = [o.cause if isinstance(o, Failure) else None for o in outcomes]
    assert causes == [Cause.NAN_LOSS, Cause.OUT_OF_MEMORY, None, Cause.ERROR, None, None]
    assert {o.stage for o in outcomes if isinstance(o, Failure)} == {Stage.RECOVER}


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_three_failures_of_one_cause_at_the_start_stop_a_sweep(tmp_path, executor):
    task = Faulty(tmp_path, [float("nan")] * 9)
    slots = {} if executor == "inline" else {"executor": ray_slots(1)}
    asked = request(tmp_path / "out", task=task, budget=Budget(trials=9), **slots)
    with pytest.raises(SweepStoppedError, match=r"3 trials failed \(NaN loss\).*lower the"):
        launch(asked, NOWHERE)
    (folder,) = (path for path in (tmp_path / "out").iterdir() if (path / "pareto.json").exists())
    assert told(folder) == [0, 1, 2]


def test_a_trial_that_is_lost_with_its_worker_is_run_again(tmp_path):
    task = Faulty(tmp_path, [None, "kill once"])
    asked = request(tmp_path / "out", task=task, budget=Budget(trials=4), executor=ray_slots(1))
    result = launch(asked, NOWHERE).result
    assert result.complete
    assert result.view.counts == {"finished": 4, "paused": 0, "stopped": 0, "failed": 0}
    assert result.view.lost == {"worker lost": 1}
    assert view_of(read_journal(result.folder / JOURNAL_FILE)).lost == {"worker lost": 1}


def test_a_trial_that_hangs_is_ended_by_its_worker(tmp_path):
    task = Faulty(tmp_path, [None, "hang"])
    limits = TrialLimits(time_limit_s=15.0)
    asked = request(
        tmp_path / "out", task=task, budget=Budget(trials=3), executor=ray_slots(1), limits=limits
    )
    result = launch(asked, NOWHERE).result
    assert result.view.counts == {"finished": 2, "paused": 0, "stopped": 0, "failed": 1}
    hung = by_number(result.view.observations)[1]
    assert (hung.stage, hung.cause) == (Stage.RECOVER, Cause.TIME_LIMIT)
    assert "it hung: it was still in this stage" in hung.reason
    assert "budget.trial_limit_s is 15" in hung.reason


@pytest.mark.slow  # workers that start again and again
def test_a_worker_that_is_killed_again_and_again_costs_its_trial_only(tmp_path):
    task = Faulty(tmp_path, [None, "kill"])
    asked = request(tmp_path / "out", task=task, budget=Budget(trials=5), executor=ray_slots(1))
    result = launch(asked, NOWHERE).result
    assert result.complete
    assert result.view.counts == {"finished": 4, "paused": 0, "stopped": 0, "failed": 1}
    assert result.view.lost == {"worker lost": 2}
    lost = by_number(result.view.observations)[1]
    assert isinstance(lost, Failure)
    assert (lost.stage, lost.cause) == (Stage.RECOVER, Cause.WORKER_LOST)
    assert "the worker process of the trial died" in lost.reason
    assert all(o.seconds > 0 for o in result.view.observations)


def test_a_worker_that_cannot_begin_says_why(tmp_path):
    asked = request(
        tmp_path / "out", task=Stranger(), budget=Budget(trials=9), executor=ray_slots(1)
    )
    with pytest.raises(SweepStoppedError, match="ModuleNotFoundError: no module of the user's"):
        launch(asked, NOWHERE)


def test_a_broken_constraint_stops_trials_before_they_train(tmp_path):
    constraints = (Constraint("macs", high=900.0),)
    asked = request(
        tmp_path / "out",
        budget=Budget(trials=8),
        goal=GoalRequest(("main", "params"), constraints),
    )
    result = launch(asked, NOWHERE).result
    counts = result.view.counts
    assert counts["failed"] == 0
    assert counts["stopped"] >= 1
    for observation in result.view.observations:
        outcome = observation.outcome
        assert isinstance(outcome, Measurement)
        broken = outcome.metrics["macs"] > 900.0
        assert outcome.complete is not broken
        assert ("recover" in outcome.seconds) is not broken
        assert (outcome.stopped_by == "macs <= 900") is broken
        assert not (broken and observation.trial.number in result.view.front)
