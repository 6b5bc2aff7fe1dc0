"""A sweep's runs in MLflow: one parent, one child a trial. Every write may be repeated.

Runs are found by their tags before they are made, so that neither a repeated request nor a
resumed sweep makes one twice. Only `MlflowClient` is used: the fluent interface has one active
run a process, and takes over the run that MLFLOW_RUN_ID names.
"""

import getpass
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Failure, Observation, Trial
from autoprune.orchestration.history import state_of
from autoprune.orchestration.reports.dashboard import dashboard_html
from autoprune.orchestration.reports.pareto import (
    live_metrics,
    metrics_of,
    note_markdown,
    pareto_csv,
    pareto_json,
)
from autoprune.orchestration.tracking.connection import check_in_place
from autoprune.orchestration.tracking.entries import Entries, flatten, log_entries, now_ms
from autoprune.orchestration.tracking.provenance import Provenance
from autoprune.orchestration.view import SweepView

SWEEP, KIND, TRIAL, STATE = "autoprune.sweep", "autoprune.kind", "trial", "state"
NOTE_LENGTH = 4000
REASON_LENGTH = 4000
PAGE = 1000


class SweepRuns:
    """The runs of one sweep on one store."""

    def __init__(self, client: MlflowClient, view: SweepView, *, root: str | None) -> None:
        """`root` is where a new experiment keeps artifacts; None leaves it to the server."""
        if "'" in view.sweep_id:
            raise AutopruneError(f"sweep id {view.sweep_id!r} holds a quote; leave it out")
        self.client, self.sweep_id = client, view.sweep_id
        self.children: dict[int, str] = {}
        self._written: dict[int, str] = {}
        self._pareto: set[int] = set()
        self._asked: set[int] = set()
        self._loaded = False
        self.experiment_id = find_or_make_experiment(client, view.experiment, root)
        self.parent = self._parent(view)

    def _parent(self, view: SweepView) -> str:
        found = self._find(f"tags.`{KIND}` = 'sweep'")
        if found:
            run_id = str(found[0].info.run_id)
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {SWEEP: self.sweep_id, KIND: "sweep", **_origin("autoprune sweep")}
        started = now_ms() - round(view.search_s * 1000)
        return self._create(self.sweep_id, tags, started)

    def load_children(self) -> None:
        """Learn which children are there already and which of them are complete."""
        for run in self._find(f"tags.`{KIND}` = 'trial'"):
            number, tags = int(run.data.tags[TRIAL]), run.data.tags
            if "spec" not in run.data.params:  # its driver ended before it was whole
                self._asked.add(number)
                continue
            if self.children.setdefault(number, run.info.run_id) != run.info.run_id:
                continue
            if tags.get("pareto") == "true":
                self._pareto.add(number)
            if STATE in tags and run.info.status in ("FINISHED", "FAILED"):
                self._written[number] = tags[STATE]
        self._loaded = True

    def missing(self, view: SweepView) -> list[Observation]:
        """The observations whose child is not there, or told less."""
        return [o for o in view.observations if self._written.get(o.trial.number) != _state(o)]

    def describe(self, view: SweepView, provenance: Provenance) -> None:
        """The parent's parameters, tags and artifacts that stand from the start."""
        known = self.client.get_run(self.parent).data.params
        config = json.loads(json.dumps(provenance.config, default=str))
        params = {k: v for k, v in flatten(config).items() if k not in known}
        tags = {
            "mlflow.source.git.commit": provenance.commit,
            "git.dirty": str(bool(provenance.diff)).lower() if provenance.commit else "",
            "host": str(provenance.hardware.get("host", "")),
        }
        metrics = {f"baseline/{name}": value for name, value in view.baseline.items()}
        entries = Entries(metrics, params, {k: v for k, v in tags.items() if v})
        log_entries(self.client, self.parent, entries)
        texts = {
            "config.yaml": yaml.safe_dump(config, sort_keys=False),
            "git.diff": provenance.diff,
            "versions.json": _json(provenance.versions),
            "hardware.json": _json(provenance.hardware),
            "goal.json": _json(view.goal.to_json()),
        }
        for name, text in texts.items():
            self.client.log_text(self.parent, text, f"provenance/{name}")

    def stage(self, trial: Trial, metrics: Mapping[str, float], *, step: int, at_ms: int) -> None:
        """What a stage or an epoch of a trial found."""
        entries = Entries(metrics)
        log_entries(self.client, self._child(trial, at_ms), entries, step=step, at_ms=at_ms)

    def outcome(self, observation: Observation, view: SweepView) -> None:
        """Complete the trial's child and bring every child's `pareto` tag up to date.

        The time of the metrics follows from the run's start, so that a repeated write adds none.
        """
        trial, number = observation.trial, observation.trial.number
        run_id = self._child(trial, now_ms() - round(observation.seconds * 1000))
        started = self.client.get_run(run_id).info.start_time
        ended = started + round(observation.seconds * 1000)
        self.client.log_text(run_id, _json(trial.spec.to_json()), "spec.json")
        tags = {
            "host": observation.host,
            "feasible": str(_feasible(view, observation)).lower(),
            "pareto": str(number in view.front).lower(),
            STATE: _state(observation),
        }
        metrics = {**metrics_of(observation), "seconds": observation.seconds}
        match observation.outcome:
            case Failure(stage=stage, cause=cause, reason=reason):
                tags |= {"failure.stage": str(stage), "failure.cause": str(cause)}
                tags["failure.reason"] = reason[:REASON_LENGTH]
            case measurement:
                metrics |= {f"seconds/{s}": value for s, value in measurement.seconds.items()}
                tags |= {"stopped_by": s} if (s := measurement.stopped_by) else {}
        log_entries(self.client, run_id, Entries(metrics, tags=tags), at_ms=ended)
        status = "FAILED" if isinstance(observation.outcome, Failure) else "FINISHED"
        self.client.set_terminated(run_id, status=status, end_time=ended)
        self._written[number] = _state(observation)
        self._pareto.discard(number)
        if number in view.front:
            self._pareto.add(number)
        self.retag(view)

    def retag(self, view: SweepView) -> None:
        """Write the `pareto` tag of the children for which it changed."""
        wanted = {member.trial.number for member in view.front.members} & self._written.keys()
        for number in wanted ^ (self._pareto & self._written.keys()):
            self.client.set_tag(self.children[number], "pareto", str(number in wanted).lower())
            self._pareto ^= {number}

    def live(self, view: SweepView, *, at_ms: int) -> None:
        """The parent's metrics; the step is the number of trials that ended."""
        step = len(view.observations)
        log_entries(self.client, self.parent, Entries(live_metrics(view)), step=step, at_ms=at_ms)

    def catch_up(self, view: SweepView) -> None:
        """The parent's metrics of every step that the store does not have yet."""
        history = self.client.get_metric_history(self.parent, "hypervolume")
        steps = {metric.step for metric in history}
        for step in range(1, len(view.observations) + 1):
            if step not in steps:
                self.live(replace(view, observations=view.observations[:step]), at_ms=now_ms())

    def reports(self, view: SweepView) -> None:
        """The parent's front, dashboard and note."""
        view = replace(view, run_ids=dict(self.children))
        self.client.log_text(self.parent, _json(pareto_json(view)), "pareto.json")
        self.client.log_text(self.parent, pareto_csv(view), "pareto.csv")
        self.client.log_text(self.parent, dashboard_html(view), "dashboard/pareto.html")
        note = note_markdown(view, view.command("promote"))
        self.client.set_tag(self.parent, "mlflow.note.content", note[:NOTE_LENGTH])

    def drop_doubles(self) -> None:
        """Delete children of trials that have another one.

        A server that hung carries out what it was asked before, also where that was asked again.
        """
        for run in self._find(f"tags.`{KIND}` = 'trial'"):
            if self.children.get(int(run.data.tags[TRIAL])) not in (None, run.info.run_id):
                self.client.delete_run(run.info.run_id)

    def close(self, status: str) -> None:
        """End the parent, and those children whose trial was given up."""
        for number, run_id in self.children.items():
            if number not in self._written:
                self.client.set_terminated(run_id, status="KILLED")
        self.client.set_terminated(self.parent, status=status)

    def _child(self, trial: Trial, started_ms: int) -> str:
        number, spec = trial.number, trial.spec
        if number in self.children:
            return self.children[number]
        # all were found at the start; but whoever asked for one may not have heard of its making
        known = self._loaded and number not in self._asked
        self._asked.add(number)
        condition = f"tags.`{KIND}` = 'trial' and tags.`{TRIAL}` = '{number}'"
        found = [] if known else self._find(condition)
        if found:
            run_id = str(found[0].info.run_id)
        else:
            tags = {
                SWEEP: self.sweep_id,
                KIND: "trial",
                TRIAL: str(number),
                "mlflow.parentRunId": self.parent,
                **_origin("autoprune trial"),
            }
            run_id = self._create(f"trial-{number:03d}", tags, started_ms)
        params = {
            "spec": spec.digest,
            "criterion": spec.criterion,
            "recovery": spec.recovery,
            "seed": str(trial.seed),
        }
        log_entries(self.client, run_id, Entries(params=params))
        self.children[number] = run_id
        return run_id

    def _create(self, name: str, tags: Mapping[str, str], started_ms: int) -> str:
        run = self.client.create_run(
            self.experiment_id, start_time=started_ms, tags=dict(tags), run_name=name
        )
        return str(run.info.run_id)

    def _find(self, condition: str) -> list[Run]:
        """The sweep's runs that meet a condition, oldest first."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"tags.`{SWEEP}` = '{self.sweep_id}' and {condition}",
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                return runs


def find_or_make_experiment(client: MlflowClient, name: str, root: str | None) -> str:
    """The id of an experiment; a new one keeps artifacts below `root`, None leaves it to a server.

    Raises AutopruneError for one that was deleted, or whose artifacts were moved.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = None if root is None else f"{root}/{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            return str(client.create_experiment(name, artifact_location=folder))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    check_in_place(client.tracking_uri, str(found.artifact_location))
    if found.lifecycle_stage != "active":
        raise AutopruneError(
            f"MLflow experiment {name!r} was deleted; restore it or choose another name"
        )
    return str(found.experiment_id)


def find_run(client: MlflowClient, view: SweepView, number: int) -> str:
    """The run of a trial. Raises AutopruneError where the store has none, or was moved."""
    experiment = client.get_experiment_by_name(view.experiment)
    if experiment is not None:
        check_in_place(client.tracking_uri, str(experiment.artifact_location))
    condition = (
        f"tags.`{SWEEP}` = '{view.sweep_id}' and tags.`{KIND}` = 'trial' "
        f"and tags.`{TRIAL}` = '{number}'"
    )
    ids = [] if experiment is None else [experiment.experiment_id]
    found = client.search_runs(ids, condition, max_results=1) if ids else []
    if not found:
        raise AutopruneError(
            f"trial {number} of {view.sweep_id} has no run in MLflow; "
            f"{view.command('resume')} writes what is missing"
        )
    return str(found[0].info.run_id)


def find_sweep_run(client: MlflowClient, experiment: str, sweep_id: str) -> Run | None:
    """The parent run of a sweep, None where the store has none."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    condition = f"tags.`{SWEEP}` = '{sweep_id}' and tags.`{KIND}` = 'sweep'"
    runs = client.search_runs([found.experiment_id], condition, max_results=1)
    return runs[0] if runs else None


def _state(observation: Observation) -> str:
    """The state of a trial, with its rung where it paused on one."""
    state, rung = state_of(observation), observation.rung
    return state if rung is None else f"{state} on rung {rung}"


def _feasible(view: SweepView, observation: Observation) -> bool:
    outcome = observation.outcome
    return not isinstance(outcome, Failure) and view.goal.feasible(outcome)


def _origin(name: str) -> dict[str, str]:
    """The tags from which MLflow's page shows who made a run, and with what."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": name, "mlflow.source.type": "LOCAL"}


def _json(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"
