"""A sweep as a study of Optuna's, read with Optuna's own classes as its dashboard reads it."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autoprune.domain.ladder import Ladder
from autoprune.domain.space import Axis, Group, SearchSpace
from autoprune.domain.trial import Failure, Measurement, Observation, Stage
from autoprune.orchestration.history import state_of
from autoprune.orchestration.launch import Listeners, Tracking, launch
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.tracking.optuna_study import distributions
from autoprune.orchestration.tracking.optuna_watcher import OPTUNA_FILE, OptunaWatcher
from autoprune.orchestration.view import SweepView
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from tests.sweeps import make_goal, make_space, make_sweep
from tests.tiny import request

VIEW = make_sweep(16, goal=make_goal(min_speedup=1.5))


def read(folder: Path, view: SweepView = VIEW) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder / OPTUNA_FILE)))
    return optuna.load_study(study_name=view.sweep_id, storage=storage)


def told(study: optuna.Study) -> list[dict[str, Any]]:
    """All that a study says of its trials, but when."""
    return [
        {
            "number": trial.number,
            "state": trial.state,
            "values": trial.values,
            "params": trial.params,
            "constraints": trial.constraints,
            "user_attrs": trial.user_attrs,
        }
        for trial in study.trials
    ]


def until(view: SweepView, count: int) -> SweepView:
    return replace(view, observations=view.observations[:count])


def write(folder: Path, view: SweepView, *, since: int = 0) -> OptunaWatcher:
    """A session that takes up a sweep of `since` trials and ends with all of `view`."""
    watcher = OptunaWatcher(folder)
    watcher.on_start(until(view, since))
    for count, observation in enumerate(view.observations[since:], since + 1):
        watcher.on_progress(observation.trial, Stage.PRUNE, {}, epoch=0)
        watcher.on_observation(observation, until(view, count))
    watcher.on_finish(view, complete=True)
    assert watcher.fault is None
    return watcher


def test_every_trial_is_one_of_optunas_own(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(tmp_path, VIEW)
    study = read(tmp_path)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MAXIMIZE"]
    assert study.metric_names == ["accuracy", "speedup"]
    assert study.user_attrs == {"baseline": VIEW.baseline, "constraints": ["speedup >= 1.5"]}
    assert {trial.state for trial in study.trials} == {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }
    for trial, observation in zip(study.trials, VIEW.observations, strict=True):
        assert trial.number == observation.trial.number
        assert trial.params == observation.trial.spec.widths
        assert trial.user_attrs["host"] == observation.host
        assert trial.user_attrs["seconds"] == observation.seconds
        match observation.outcome:
            case Measurement(stopped_by=None) as measurement:
                assert trial.state is TrialState.COMPLETE
                assert trial.values == list(VIEW.goal.values(measurement))
                assert trial.user_attrs["macs"] == measurement.metrics["macs"]
                assert list(trial.constraints.values()) == [0.0]
            case Measurement(metrics=metrics):
                assert trial.state is TrialState.PRUNED
                assert trial.user_attrs["stopped_by"] == "speedup >= 1.5"
                assert trial.user_attrs["speedup"] == metrics["speedup"]
                assert list(trial.constraints.values()) == [1.5 - metrics["speedup"]]
            case Failure(reason=reason):
                assert trial.state is TrialState.FAIL
                assert trial.user_attrs["reason"] == reason


def test_a_trial_runs_from_its_first_stage_on_and_keeps_its_number(tmp_path: Path) -> None:
    watcher, empty = OptunaWatcher(tmp_path, run_ids=lambda: {2: "run-of-2"}), until(VIEW, 0)
    watcher.on_start(empty)
    late, observation = VIEW.observations[1], VIEW.observations[2]
    watcher.on_progress(observation.trial, Stage.PRUNE, {}, epoch=0)
    running = read(tmp_path).trials
    assert [trial.state for trial in running] == 3 * [TrialState.RUNNING]
    assert [bool(trial.params) for trial in running] == [False, False, True]
    watcher.on_progress(late.trial, Stage.PRUNE, {}, epoch=0)
    watcher.on_observation(observation, replace(empty, observations=(observation,)))
    _, second, third = read(tmp_path).trials
    assert second.params == late.trial.spec.widths
    assert third.user_attrs["mlflow_run"] == "run-of-2"
    assert (second.state, third.state) == (TrialState.RUNNING, TrialState.COMPLETE)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_study_that_was_killed_anywhere_tells_after_a_resume_what_it_would_have(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(VIEW.observations[:9]))
    view = replace(VIEW, observations=tuple(order))
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    write(whole, view)
    journalled = data.draw(st.integers(0, 9))
    write(killed, until(view, journalled))
    written = (killed / OPTUNA_FILE).read_bytes()
    cut = data.draw(st.integers(0, len(written)))
    (killed / OPTUNA_FILE).write_bytes(written[:cut])
    write(killed, view, since=journalled)
    assert told(read(killed)) == told(read(whole))


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"{}\n", b'{"op_code": 4}\n', b"null\n"])
def test_a_damaged_study_is_written_anew(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, VIEW)
    sound = told(read(tmp_path))
    file = tmp_path / OPTUNA_FILE
    file.write_bytes(file.read_bytes() + damage + b'{"op_code": 4}\n')
    write(tmp_path, VIEW, since=16)
    assert told(read(tmp_path)) == sound


def test_a_study_of_other_outcomes_is_written_anew(tmp_path: Path) -> None:
    write(tmp_path, VIEW)
    last = VIEW.observations[-1]
    for other in (
        until(VIEW, 15),
        replace(VIEW, observations=(*VIEW.observations[:15], replace(last, host="elsewhere"))),
        replace(VIEW, sweep_id="another"),
    ):
        write(tmp_path, other, since=len(other.observations))
        study = read(tmp_path, other)
        assert len(study.trials) == len(other.observations)
        assert study.trials[-1].user_attrs["host"] == other.observations[-1].host


def test_what_is_told_at_a_higher_rung_takes_the_place_of_what_was_told_before(
    tmp_path: Path,
) -> None:
    finished = [o for o in VIEW.observations if state_of(o) == "finished"][:3]
    paused = [replace(o, trial=replace(o.trial, number=n), rung=0) for n, o in enumerate(finished)]
    up = [
        Observation(paused[0].trial, finished[1].outcome, rung=1),
        Observation(paused[0].trial, finished[2].outcome),
        Observation(paused[1].trial, VIEW.observations[7].outcome),
    ]
    view = replace(VIEW, observations=(*paused, *up))
    watcher = OptunaWatcher(tmp_path)
    watcher.on_start(until(view, 0))
    for count, observation in enumerate(view.observations, 1):
        watcher.on_observation(observation, until(view, count))
    assert [t.state.name for t in read(tmp_path).trials] == ["COMPLETE", "FAIL", "RUNNING"]
    watcher.on_finish(view, complete=True)
    assert watcher.fault is None
    climbed, _, left = read(tmp_path).trials
    main = [o.outcome.metrics["accuracy"] for o in finished if isinstance(o.outcome, Measurement)]
    assert climbed.intermediate_values == {0: main[0], 1: main[1]}
    assert climbed.values is not None
    assert climbed.values[0] == main[2]
    assert left.state is TrialState.PRUNED
    # with a larger budget the one that was left goes on
    more = Observation(paused[2].trial, finished[0].outcome)
    write(tmp_path, replace(view, observations=(*view.observations, more)), since=6)
    assert [t.state.name for t in read(tmp_path).trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_a_study_that_cannot_be_written_is_a_fault_until_it_can(tmp_path: Path) -> None:
    file = tmp_path / OPTUNA_FILE
    file.mkdir()
    watcher = OptunaWatcher(tmp_path)
    watcher.on_start(until(VIEW, 0))
    watcher.on_observation(VIEW.observations[0], until(VIEW, 1))
    assert watcher.fault is not None
    assert f"{file} is not up to date" in watcher.fault
    file.rmdir()
    watcher.on_observation(VIEW.observations[1], until(VIEW, 2))
    watcher.on_finish(until(VIEW, 2), complete=False)
    assert watcher.fault is None
    assert len(read(tmp_path).trials) == 2


def test_parameters_are_ranges_of_widths_where_those_are_one() -> None:
    space = SearchSpace(
        (
            Axis(Group("whole", "channels", 32, 8), 8, 32),
            Axis(Group("odd", "channels", 30, 8), 8, 30),
        ),
        criteria=("l1", "l2"),
        precisions=("fp32", "int8"),
    )
    expected: dict[str, BaseDistribution] = {
        "whole": IntDistribution(8, 32, step=8),
        "odd": CategoricalDistribution((8, 16, 24, 30)),
        "criterion": CategoricalDistribution(("l1", "l2")),
        "precision": CategoricalDistribution(("fp32", "int8")),
    }
    assert distributions(space) == expected
    assert list(distributions(make_space())) == [g.name for g in make_space().groups]


def test_a_sweep_keeps_a_study_unless_it_is_told_not_to(tmp_path: Path) -> None:
    result = launch(request(tmp_path), Tracking()).result
    study = read(result.folder, result.view)
    finished = [trial.values for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert finished
    assert finished == [
        list(result.view.goal.values(o.outcome))
        for o in result.view.observations
        if isinstance(o.outcome, Measurement) and state_of(o) == "finished"
    ]
    result = launch(request(tmp_path), Tracking(optuna=False)).result
    assert not (result.folder / OPTUNA_FILE).exists()


def test_what_waits_on_a_ladder_to_the_end_is_pruned(tmp_path: Path) -> None:
    asked = request(
        tmp_path,
        ladder=Ladder((0, 1), reduction=2.0),
        recoveries={"finetune": Recovery(FitPlan(epochs=2))},
        budget=Budget(trials=5),
    )
    result = launch(asked, Tracking()).result
    states = {trial.number: trial.state for trial in read(result.folder, result.view).trials}
    assert set(states.values()) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert states == {
        o.trial.number: TrialState.COMPLETE if o.rung is None else TrialState.PRUNED
        for o in result.view.observations
    }


class Squatter:
    """Takes the study's place as soon as the sweep's folder stands, and keeps it."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def on_start(self, view: SweepView) -> None:
        file = self.output / view.sweep_id / OPTUNA_FILE
        file.unlink()
        file.mkdir()

    def on_progress(self, *_: object, **__: object) -> None:
        pass

    def on_observation(self, *_: object) -> None:
        pass

    def on_finish(self, *_: object, **__: object) -> None:
        pass


def test_a_sweep_goes_on_without_its_study_and_tells_it_once(tmp_path: Path) -> None:
    listeners = Listeners(watchers=(Squatter(tmp_path),))
    launched = launch(request(tmp_path), Tracking(), listeners=listeners)
    assert launched.result.complete
    (lost,) = launched.warnings
    assert f"{OPTUNA_FILE} is not up to date" in lost
