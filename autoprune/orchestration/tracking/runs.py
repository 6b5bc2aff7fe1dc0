"""A sweep's runs in MLflow: one parent, one child a trial. Every write may be repeated.

Runs are found by their tags before they are made, so that neither a repeated request nor a
resumed sweep makes one twice. Only `MlflowClient` is used: the fluent interface has one active
run a process, and takes over the run that MLFLOW_RUN_ID names.
"""

import getpass
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Failure, Measurement, Observation, Trial
from autoprune.orchestration.history import History, state_of
from autoprune.orchestration.reports.dashboard import dashboard_html
from autoprune.orchestration.reports.pareto import (
    live_metrics,
    metrics_of,
    note_markdown,
    pareto_csv,
    pareto_json,
)
from autoprune.orchestration.tracking.entries import Entries, flatten, log_entries, now_ms
from autoprune.orchestration.tracking.finding import (
    KIND,
    SWEEP,
    TRIAL,
    find_or_make_experiment,
    tagged,
)
from autoprune.orchestration.tracking.provenance import Provenance
from autoprune.orchestration.view import SweepView

STATE = "state"
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
        self._started_ms: dict[int, int] = {}
        self._described: set[int] = set()
        self._tried: set[int] = set()
        self._loaded = False
        self._written: dict[int, str] = {}
        self._pareto: set[int] = set()
        self.experiment_id = find_or_make_experiment(client, view.experiment, root)
        self.parent = self._parent(view)

    def _parent(self, view: SweepView) -> str:
        found = self._find("sweep")
        if found:
            run_id = str(found[0].info.run_id)
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {SWEEP: self.sweep_id, KIND: "sweep", **_origin("autoprune sweep")}
        started = now_ms() - round(view.search_s * 1000)
        return str(self._create(self.sweep_id, tags, started).info.run_id)

    def load_children(self) -> None:
        """Learn which children are there already and which of them are complete."""
        for run in self._find("trial"):
            number, tags = int(run.data.tags[TRIAL]), run.data.tags
            if self.children.get(number, run.info.run_id) != run.info.run_id:
                continue
            self._note(number, run)
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

    def write(self, trial: Trial, found: Sequence[Entries | Observation], view: SweepView) -> None:
        """What is new of a trial: what its stages and epochs found, and what it came to.

        With an outcome the `pareto` tags of all children are brought up to date with `view`.
        """
        run_id = self._child(trial, min(map(_began_ms, found)))
        entries = [self._told(one, view) if isinstance(one, Observation) else one for one in found]
        if trial.number not in self._described:
            entries = [_parameters(trial), *entries]
        log_entries(self.client, run_id, *entries)
        self._described.add(trial.number)
        outcomes = [one for one in found if isinstance(one, Observation)]
        if outcomes:
            self._end(run_id, outcomes[-1], view)

    def _end(self, run_id: str, last: Observation, view: SweepView) -> None:
        """Have the child of a trial end with the last that it came to."""
        number = last.trial.number
        if number not in self._written:
            self.client.log_text(run_id, _json(last.trial.spec.to_json()), "spec.json")
        status = "FAILED" if isinstance(last.outcome, Failure) else "FINISHED"
        self.client.set_terminated(run_id, status=status, end_time=self._ended_ms(last))
        self._written[number] = _state(last)
        self._pareto.discard(number)
        if number in view.front:
            self._pareto.add(number)
        self.retag(view)

    def _ended_ms(self, observation: Observation) -> int:
        """Follows from the run's start, so that a repeated write adds no metrics."""
        return self._started_ms[observation.trial.number] + round(observation.seconds * 1000)

    def _told(self, observation: Observation, view: SweepView) -> Entries:
        """What the child tells of an outcome."""
        tags = {
            "host": observation.host,
            "feasible": str(_feasible(view, observation)).lower(),
            "pareto": str(observation.trial.number in view.front).lower(),
            STATE: _state(observation),
        }
        metrics = {**metrics_of(observation), "seconds": observation.seconds}
        match observation.outcome:
            case Failure(stage=stage, cause=cause, reason=reason):
                tags |= {"failure.stage": str(stage), "failure.cause": str(cause)}
                tags["failure.reason"] = reason[:REASON_LENGTH]
            case Measurement(seconds=seconds, stopped_by=broken):
                metrics |= {f"seconds/{stage}": value for stage, value in seconds.items()}
                if broken is not None:
                    tags["stopped_by"] = broken
        return Entries(metrics, tags=tags, at_ms=self._ended_ms(observation))

    def retag(self, view: SweepView) -> None:
        """Write the `pareto` tag of the children for which it changed."""
        wanted = {member.trial.number for member in view.front.members} & self._written.keys()
        for number in wanted ^ (self._pareto & self._written.keys()):
            self.client.set_tag(self.children[number], "pareto", str(number in wanted).lower())
            self._pareto ^= {number}

    def live(self, looks: Sequence[tuple[SweepView, int]]) -> None:
        """The parent's metrics as of each look at the sweep and its time in milliseconds.

        The step is the number of trials that ended.
        """
        entries = [
            Entries(live_metrics(view), step=len(view.observations), at_ms=at_ms)
            for view, at_ms in looks
        ]
        log_entries(self.client, self.parent, *entries)

    def catch_up(self, view: SweepView) -> None:
        """The parent's metrics of every step that the store does not have yet."""
        known = self.client.get_metric_history(self.parent, "hypervolume")
        steps, at_ms = {metric.step for metric in known}, now_ms()
        history, looks = History(view.goal), []
        for step, observation in enumerate(view.observations, start=1):
            history.take(observation)
            if step not in steps:
                looks.append((replace(view, observations=history.now), at_ms))
        self.live(looks)

    def reports(self, view: SweepView) -> None:
        """The parent's front, dashboard and note."""
        view = replace(view, run_ids=dict(self.children))
        self.client.log_text(self.parent, _json(pareto_json(view)), "pareto.json")
        self.client.log_text(self.parent, pareto_csv(view), "pareto.csv")
        self.client.log_text(self.parent, dashboard_html(view), "dashboard/pareto.html")
        note = note_markdown(view, view.command("promote"))
        self.client.set_tag(self.parent, "mlflow.note.content", note[:NOTE_LENGTH])

    def settle(self, view: SweepView) -> None:
        """Have one child a trial, whose tags are those of `view`.

        A server that hung carries out what it was asked before: also where it was asked again,
        which makes a child twice, or was told something newer since.
        """
        ended = {o.trial.number: o for o in view.observations if o.trial.number in self._written}
        for run in self._find("trial"):
            number, run_id = int(run.data.tags[TRIAL]), str(run.info.run_id)
            if self.children.get(number) not in (None, run_id):
                self.client.delete_run(run_id)
            elif number in ended:
                tags = self._told(ended[number], view).tags
                other = {k: v for k, v in tags.items() if run.data.tags.get(k) != v}
                if other:
                    log_entries(self.client, run_id, Entries(tags=other))

    def close(self, status: str) -> None:
        """End the parent, and those children whose trial was given up."""
        for number, run_id in self.children.items():
            if number not in self._written:
                self.client.set_terminated(run_id, status="KILLED")
        self.client.set_terminated(self.parent, status=status)

    def _child(self, trial: Trial, started_ms: int) -> str:
        """The run of a trial; it is looked for only where it may be there unknown to us."""
        number = trial.number
        if number in self.children:
            return self.children[number]
        found: list[Run] = []
        if number in self._tried or not self._loaded:
            found = self._find("trial", number)
        if found:
            self._note(number, found[0])
        else:
            tags = {
                SWEEP: self.sweep_id,
                KIND: "trial",
                TRIAL: str(number),
                "mlflow.parentRunId": self.parent,
                **_origin("autoprune trial"),
            }
            self._tried.add(number)
            self._note(number, self._create(f"trial-{number:03d}", tags, started_ms))
        return self.children[number]

    def _note(self, number: int, run: Run) -> None:
        self.children[number] = str(run.info.run_id)
        self._started_ms[number] = int(run.info.start_time)

    def _create(self, name: str, tags: Mapping[str, str], started_ms: int) -> Run:
        return self.client.create_run(
            self.experiment_id, start_time=started_ms, tags=dict(tags), run_name=name
        )

    def _find(self, kind: str, number: int | None = None) -> list[Run]:
        """The sweep's runs of a kind, oldest first; of trial `number` alone where that is given."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                tagged(self.sweep_id, kind, number),
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                return runs


def _began_ms(found: Entries | Observation) -> int:
    """When the trial that told this had begun at the latest."""
    if isinstance(found, Observation):
        return now_ms() - round(found.seconds * 1000)
    return now_ms() if found.at_ms is None else found.at_ms


def _state(observation: Observation) -> str:
    """The state of a trial, with its rung where it paused on one."""
    state, rung = state_of(observation), observation.rung
    return state if rung is None else f"{state} on rung {rung}"


def _feasible(view: SweepView, observation: Observation) -> bool:
    outcome = observation.outcome
    return not isinstance(outcome, Failure) and view.goal.feasible(outcome)


def _parameters(trial: Trial) -> Entries:
    """The parameters that every trial's run has."""
    spec = trial.spec
    return Entries(
        params={
            "spec": spec.digest,
            "criterion": spec.criterion,
            "recovery": spec.recovery,
            "precision": spec.precision,
            "seed": str(trial.seed),
        }
    )


def _origin(name: str) -> dict[str, str]:
    """The tags from which MLflow's page shows who made a run, and with what."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = "unknown"
    return {"mlflow.user": user, "mlflow.source.name": name, "mlflow.source.type": "LOCAL"}


def _json(data: Any) -> str:
    return json.dumps(data, indent=2) + "\n"
