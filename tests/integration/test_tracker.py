"""The tracker on real stores: sqlite, and a server over HTTP that is killed in the middle."""

import json
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Failure, Stage
from autoprune.orchestration.history import History, state_of
from autoprune.orchestration.tracking import connection
from autoprune.orchestration.tracking.provenance import Provenance, gather
from autoprune.orchestration.tracking.tracker import MlflowTracker, Patience
from autoprune.orchestration.view import SweepView
from tests.servers import MlflowServer
from tests.sweeps import ACCURACY, make_goal, make_space, make_sweep, outcome_of

EAGER = Patience(refresh_s=0.0, drain_s=60.0)


def prefix(view: SweepView, trials: int) -> SweepView:
    return replace(view, observations=view.observations[:trials])


def drive(
    tracker: MlflowTracker, view: SweepView, *, first: int = 0, last: int | None = None
) -> None:
    """Play the observations `first` up to `last` of a finished sweep, as an executor would."""
    for n in range(first, len(view.observations) if last is None else last):
        observation = view.observations[n]
        for epoch in range(2):
            metrics = {"loss": 1.0 / (epoch + 1), "accuracy": 0.9}
            tracker.on_progress(observation.trial, Stage.RECOVER, metrics, epoch=epoch)
        tracker.on_observation(observation, prefix(view, n + 1))


def runs_of(uri: str, sweep_id: str, kind: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    condition = f"tags.`autoprune.sweep` = '{sweep_id}' and tags.`autoprune.kind` = '{kind}'"
    return list(client.search_runs(experiments, condition, max_results=1000))


def artifact(uri: str, run_id: str, path: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    client = MlflowClient(tracking_uri=uri)
    return Path(client.download_artifacts(run_id, path, str(folder))).read_text()


def assert_complete(uri: str, view: SweepView) -> None:
    """Every trial has one child that says what the observation says, and the parent agrees."""
    (parent,) = runs_of(uri, view.sweep_id, "sweep")
    children = {int(r.data.tags["trial"]): r for r in runs_of(uri, view.sweep_id, "trial")}
    assert len(runs_of(uri, view.sweep_id, "trial")) == len(children)
    assert sorted(children) == [o.trial.number for o in view.observations]
    for observation in view.observations:
        child = children[observation.trial.number]
        failed = isinstance(observation.outcome, Failure)
        assert child.info.status == ("FAILED" if failed else "FINISHED")
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["pareto"] == str(observation.trial.number in view.front).lower()
        assert child.data.tags["host"] == observation.host
        assert child.data.tags["state"] == state_of(observation)
        assert child.data.params["spec"] == observation.trial.spec.digest
    history = MlflowClient(tracking_uri=uri).get_metric_history(parent.info.run_id, "hypervolume")
    assert {m.step for m in history} >= set(range(1, len(view.observations) + 1))
    assert parent.data.metrics["hypervolume"] == pytest.approx(view.hypervolume)
    assert parent.data.metrics["front_size"] == len(view.front)
    assert parent.data.metrics["failed"] == view.counts["failed"]


def test_a_sweep_is_one_parent_and_one_child_a_trial(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(tracking_uri=sqlite_uri)
    other = client.create_run(client.create_experiment("other")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", other)
    view = make_sweep(14)
    config = {"space": {"exclude": ["head"]}, **{f"k{i}": i for i in range(230)}}
    provenance = gather(config, tmp_path)
    tracker = MlflowTracker(sqlite_uri, provenance=provenance, patience=EAGER)
    tracker.on_start(prefix(view, 0))
    drive(tracker, view)
    tracker.on_finish(view, complete=True)
    assert tracker.unwritten == ()
    assert tracker.summary() == ""
    assert_complete(sqlite_uri, view)

    parent = client.get_run(tracker.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["space.exclude"] == '["head"]'
    assert len(parent.data.params) == 231
    assert "autoprune promote sweep=" in parent.data.tags["mlflow.note.content"]
    best = parent.data.metrics["best_speedup_at_budget"]
    pareto = json.loads(artifact(sqlite_uri, parent.info.run_id, "pareto.json", tmp_path / "a"))
    assert best in [row["speedup"] for row in pareto["front"]]
    assert {row["run_id"] for row in pareto["front"]} <= set(tracker.run_ids.values())
    text = artifact(sqlite_uri, parent.info.run_id, "provenance/config.yaml", tmp_path / "a")
    assert yaml.safe_load(text) == config
    page = artifact(sqlite_uri, parent.info.run_id, "dashboard/pareto.html", tmp_path / "a")
    assert view.sweep_id in page

    child = client.get_run(tracker.run_ids[0])
    spec = json.loads(artifact(sqlite_uri, child.info.run_id, "spec.json", tmp_path / "a"))
    assert spec["kept"] == view.observations[0].trial.spec.widths
    losses = client.get_metric_history(child.info.run_id, "recover/loss")
    assert [(m.step, m.value) for m in losses] == [(0, 1.0), (1, 0.5)]
    assert client.get_run(other).data.metrics == {}
    assert client.get_run(other).info.status == "RUNNING"


def test_a_failure_shows_its_stage_cause_and_reason(sqlite_uri: str) -> None:
    view = make_sweep(8)
    failure = outcome_of(view, 7)
    assert isinstance(failure, Failure)
    tracker = MlflowTracker(sqlite_uri, patience=EAGER)
    tracker.on_start(prefix(view, 7))
    drive(tracker, view, first=7)
    tracker.on_finish(view, complete=True)
    child = MlflowClient(tracking_uri=sqlite_uri).get_run(tracker.run_ids[7])
    assert child.info.status == "FAILED"
    assert child.data.tags["failure.stage"] == failure.stage
    assert child.data.tags["failure.cause"] == failure.cause
    assert child.data.tags["failure.reason"] == failure.reason
    assert child.data.tags["feasible"] == "false"
    assert_complete(sqlite_uri, view)


def test_a_resume_completes_what_is_missing_and_makes_nothing_twice(sqlite_uri: str) -> None:
    view = make_sweep(12)
    first = MlflowTracker(sqlite_uri, provenance=Provenance({"trials": 12}), patience=EAGER)
    first.on_start(prefix(view, 0))
    drive(first, view, last=5)
    # trial 5 was under way; trials 6 to 8 ended but MLflow never heard of them
    first.on_progress(view.observations[5].trial, Stage.PRUNE, {"macs": 1.0}, epoch=0)
    first.on_finish(prefix(view, 5), complete=False)
    client = MlflowClient(tracking_uri=sqlite_uri)
    assert client.get_run(first.parent_run_id).info.status == "KILLED"
    assert client.get_run(first.run_ids[5]).info.status == "KILLED"

    second = MlflowTracker(sqlite_uri, provenance=Provenance({"trials": 99}), patience=EAGER)
    second.on_start(prefix(view, 9))
    drive(second, view, first=9)
    second.on_finish(view, complete=True)
    assert second.unwritten == ()
    assert second.parent_run_id == first.parent_run_id
    assert second.run_ids[5] == first.run_ids[5]
    assert client.get_run(first.parent_run_id).info.status == "FINISHED"
    assert_complete(sqlite_uri, view)

    before = client.get_metric_history(second.run_ids[3], "speedup")
    third = MlflowTracker(sqlite_uri, patience=EAGER)
    third.on_start(view)
    third.on_finish(view, complete=True)
    assert_complete(sqlite_uri, view)
    assert client.get_metric_history(second.run_ids[3], "speedup") == before


def test_what_waits_goes_out_in_few_requests(
    sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, trials = make_sweep(60), 60
    requests: Counter[str] = Counter()
    for name in ("create_run", "get_run", "log_batch", "set_tag", "update_run_info"):
        monkeypatch.setattr(SqlAlchemyStore, name, counted(name, requests))
    tracker = MlflowTracker(sqlite_uri, patience=EAGER)
    tracker.on_start(prefix(view, 0))
    drive(tracker, view)
    tracker.on_finish(view, complete=True)
    assert tracker.unwritten == ()
    assert_complete(sqlite_uri, view)
    assert requests["create_run"] == trials + 1
    # the first may go out alone, before the others wait
    assert requests["log_batch"] <= trials + 10
    assert requests["update_run_info"] <= trials + 10
    # one for the folder of each run's artifacts
    assert requests["get_run"] <= trials + 10


def counted(name: str, requests: Counter[str]) -> Callable[..., Any]:
    real = getattr(SqlAlchemyStore, name)

    def call(*arguments: Any, **named: Any) -> Any:
        requests[name] += 1
        return real(*arguments, **named)

    return call


def test_a_store_that_knows_nothing_of_a_sweep_catches_up_at_once(sqlite_uri: str) -> None:
    view = make_sweep(40)
    late = MlflowTracker(sqlite_uri, patience=EAGER)
    late.on_start(view)
    late.on_finish(view, complete=True)
    assert late.unwritten == ()
    assert_complete(sqlite_uri, view)
    client = MlflowClient(tracking_uri=sqlite_uri)
    history = client.get_metric_history(late.parent_run_id, "hypervolume")
    by_step = {metric.step: metric.value for metric in history}
    for step in (1, 7, 23, 40):
        assert by_step[step] == pytest.approx(prefix(view, step).hypervolume)


def test_a_server_killed_in_the_middle_loses_nothing(mlflow_server: MlflowServer) -> None:
    view = make_sweep(12, sweep_id="killed-server")
    patience = Patience(refresh_s=0.5, drain_s=120.0)
    tracker = MlflowTracker(mlflow_server.uri, patience=patience)
    tracker.on_start(prefix(view, 0))
    drive(tracker, view, last=4)
    mlflow_server.kill()
    drive(tracker, view, first=4, last=9)
    assert tracker.behind > 0
    mlflow_server.start()
    drive(tracker, view, first=9)
    tracker.on_finish(view, complete=True)
    assert tracker.unwritten == ()
    assert_complete(mlflow_server.uri, view)


def test_a_server_that_stays_away_is_told_at_the_end_and_a_resume_mends_it(
    mlflow_server: MlflowServer,
) -> None:
    view = make_sweep(6, sweep_id="gone-server")
    tracker = MlflowTracker(mlflow_server.uri, patience=Patience(refresh_s=0.0, drain_s=1.0))
    tracker.on_start(prefix(view, 0))
    drive(tracker, view, last=2)
    mlflow_server.kill()
    try:
        drive(tracker, view, first=2)
        tracker.on_finish(view, complete=True)
        assert any("trial 5" in what for what in tracker.unwritten)
        assert "a resume writes them" in tracker.summary()
        with pytest.raises(AutopruneError, match="no MLflow store answers at http://127"):
            MlflowTracker(mlflow_server.uri).on_start(view)
    finally:
        mlflow_server.start()
    again = MlflowTracker(mlflow_server.uri, patience=EAGER)
    again.on_start(view)
    again.on_finish(view, complete=True)
    assert again.unwritten == ()
    assert_complete(mlflow_server.uri, view)


def test_what_waits_for_a_server_takes_some_kilobytes_a_trial(mlflow_server: MlflowServer) -> None:
    view = make_sweep(400, sweep_id="long-gone-server")
    history = History(view.goal)
    tracker = MlflowTracker(mlflow_server.uri, patience=Patience(refresh_s=0.0, drain_s=0.1))
    tracker.on_start(prefix(view, 0))
    mlflow_server.kill()
    try:
        tracemalloc.start()
        for observation in view.observations:
            for epoch in range(10):
                metrics = {f"metric {n}": n / (epoch + 1) for n in range(10)}
                tracker.on_progress(observation.trial, Stage.RECOVER, metrics, epoch=epoch)
            history.take(observation)
            tracker.on_observation(observation, replace(view, observations=history.now))
        taken, _ = tracemalloc.get_traced_memory()
        tracker.on_finish(view, complete=True)
    finally:
        tracemalloc.stop()
        mlflow_server.start()
    assert tracker.unwritten
    assert taken / 400 < 20_000


@pytest.mark.parametrize("resumed", [False, True])
def test_a_child_that_was_made_twice_is_one_in_the_end(sqlite_uri: str, resumed: bool) -> None:
    """A server that hung carries out both requests of a client that asked again."""
    view = make_sweep(4)
    tracker = MlflowTracker(sqlite_uri, patience=EAGER)
    tracker.on_start(prefix(view, 0))
    drive(tracker, view, last=2)
    if resumed:
        tracker.on_finish(prefix(view, 2), complete=False)
    client = MlflowClient(tracking_uri=sqlite_uri)
    while len(children := runs_of(sqlite_uri, view.sweep_id, "trial")) < 2:
        time.sleep(0.05)
    client.create_run(children[0].info.experiment_id, tags=children[0].data.tags)
    if resumed:
        tracker = MlflowTracker(sqlite_uri, patience=EAGER)
        tracker.on_start(prefix(view, 2))
    drive(tracker, view, first=2)
    tracker.on_finish(view, complete=True)
    assert_complete(sqlite_uri, view)


def test_a_tag_that_a_server_wrote_late_is_put_right_in_the_end(sqlite_uri: str) -> None:
    """A server that hung carries out the older request after the newer one."""
    view = make_sweep(4)
    tracker = MlflowTracker(sqlite_uri, patience=EAGER)
    tracker.on_start(prefix(view, 0))
    drive(tracker, view)
    while tracker.behind:
        time.sleep(0.05)
    client = MlflowClient(tracking_uri=sqlite_uri)
    for run in runs_of(sqlite_uri, view.sweep_id, "trial"):
        other = {"true": "false", "false": "true"}[run.data.tags["pareto"]]
        client.set_tag(run.info.run_id, "pareto", other)
        client.set_tag(run.info.run_id, "state", "paused on rung 0")
    tracker.on_finish(view, complete=True)
    assert_complete(sqlite_uri, view)


def test_a_child_whose_making_was_cut_short_is_completed_by_a_resume(sqlite_uri: str) -> None:
    view = make_sweep(3)
    first = MlflowTracker(sqlite_uri, patience=EAGER)
    first.on_start(prefix(view, 0))
    drive(first, view, last=1)
    first.on_finish(prefix(view, 1), complete=False)
    client = MlflowClient(tracking_uri=sqlite_uri)
    (whole,) = runs_of(sqlite_uri, view.sweep_id, "trial")
    client.create_run(whole.info.experiment_id, tags={**whole.data.tags, "trial": "1"})
    second = MlflowTracker(sqlite_uri, patience=EAGER)
    second.on_start(prefix(view, 1))
    drive(second, view, first=1)
    second.on_finish(view, complete=True)
    assert_complete(sqlite_uri, view)


def test_no_run_of_the_fluent_interface_is_left_active(sqlite_uri: str) -> None:
    view = make_sweep(2)
    tracker = MlflowTracker(sqlite_uri, patience=EAGER)
    tracker.on_start(prefix(view, 0))
    drive(tracker, view)
    tracker.on_finish(view, complete=True)
    assert mlflow.active_run() is None
    assert not [t for t in threading.enumerate() if t.name == "autoprune-writer"]


def test_artifacts_of_sqlite_stand_beside_it(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    view = make_sweep(2)
    tracker = MlflowTracker(sqlite_uri, patience=EAGER)
    tracker.on_start(view)
    tracker.on_finish(view, complete=True)
    assert list((tmp_path / "mlartifacts").rglob("pareto.html"))
    assert not list(elsewhere.iterdir())


def test_a_quote_in_the_sweep_id_is_refused(sqlite_uri: str) -> None:
    view = make_sweep(1, goal=make_goal(ACCURACY), space=make_space(), sweep_id="it's")
    with pytest.raises(AutopruneError, match="holds a quote; leave it out"):
        MlflowTracker(sqlite_uri).on_start(view)


def test_a_deleted_experiment_is_refused(sqlite_uri: str) -> None:
    client = MlflowClient(tracking_uri=sqlite_uri)
    client.delete_experiment(client.create_experiment("digits_vgg"))
    with pytest.raises(AutopruneError, match="was deleted; restore it or choose another name"):
        MlflowTracker(sqlite_uri).on_start(make_sweep(1))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://somewhere/x", "is not a tracking server or database; use http"),
        ("mlruns", "is not a tracking server or database"),
        ("http://127.0.0.1:9", "no MLflow store answers at http://127.0.0.1:9"),
        ("http://me:secret@127.0.0.1:9", r"no MLflow store answers at http://me:\*\*\*@127"),
        ("http://127.0.0.1:notaport", "no MLflow store answers at"),
        ("postgresql://me:secret@127.0.0.1:9/x", r"at postgresql://me:\*\*\*@127.0.0.1:9/x"),
        ("sqlite:////proc/none/mlflow.db", "no MLflow store answers at sqlite:////proc"),
    ],
)
def test_a_store_that_does_not_answer_is_refused_at_once(uri: str, message: str) -> None:
    with pytest.raises(AutopruneError, match=message) as refused:
        connection.check(uri)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be read as one" * 9)
    with pytest.raises(AutopruneError, match="file is not a database"):
        connection.check(f"sqlite:///{tmp_path / 'mlflow.db'}")
