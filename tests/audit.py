"""The audit of a sweep that has ended: its journal against MLflow, both against what was asked."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from autoprune.cli.again import config_of, request_of
from autoprune.domain.trial import Failure, Observation
from autoprune.evaluation import example_outputs
from autoprune.orchestration.artifacts import MODEL_FOLDER, load, read_outputs
from autoprune.orchestration.folders import JOURNAL_FILE, trial_folder
from autoprune.orchestration.history import state_of
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.reports.pareto import metrics_of
from autoprune.orchestration.view import SweepView, view_of
from tests.tiny import told


@dataclass(frozen=True)
class Audit:
    """What is wrong with a sweep that has ended: nothing, where all of it is empty.

    `lost` trials were asked for and never came to an outcome, `twice` came to it or stand in MLflow
    more than once, `differs` is what MLflow says otherwise than the journal, and `networks` what is
    wrong with those of the front. `causes` counts by cause how often trials were run again,
    `failed` how many came to no measurement.
    """

    trials: int
    lost: tuple[int, ...]
    twice: tuple[int, ...]
    differs: tuple[str, ...]
    networks: tuple[str, ...]
    causes: dict[str, int]
    failed: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.twice or self.differs or self.networks)


def audit(folder: Path, uri: str, wanted: Sequence[int]) -> Audit:
    """The audit of a sweep that has ended."""
    record = read_journal(folder / JOURNAL_FILE)
    view = view_of(record)
    times = Counter(told(folder))
    client = MlflowClient(uri)
    runs = runs_of(client, view.sweep_id)
    children = Counter(int(run.data.tags["trial"]) for run in runs if "trial" in run.data.tags)
    twice = {number for number, count in (times | children).items() if count > 1}
    return Audit(
        trials=len(times),
        lost=tuple(sorted(set(wanted) - set(times))),
        twice=tuple(sorted(twice | (set(times) - set(wanted)))),
        differs=tuple(_differences(client, runs, view)),
        networks=tuple(_faults_of_networks(folder, view)),
        causes=dict(view.lost),
        failed=view.counts["failed"],
    )


def runs_of(client: MlflowClient, sweep_id: str) -> list[Run]:
    """A sweep's runs: its parent and one of every trial."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    condition = f"tags.`autoprune.sweep` = '{sweep_id}'"
    return list(client.search_runs(experiments, condition, max_results=5000))


def _differences(client: MlflowClient, runs: Sequence[Run], view: SweepView) -> Iterator[str]:
    parents = [run for run in runs if "trial" not in run.data.tags]
    children = {int(run.data.tags["trial"]): run for run in runs if "trial" in run.data.tags}
    if len(parents) != 1:
        yield f"{len(parents)} parents"
        return
    (parent,) = parents
    if parent.info.status != "FINISHED":
        yield f"the parent is {parent.info.status}"
    expected = {"hypervolume": view.hypervolume, "front_size": float(len(view.front))}
    expected["failed"] = float(view.counts["failed"])
    for name, value in expected.items():
        if parent.data.metrics.get(name) != value:
            yield f"the parent's {name} is {parent.data.metrics.get(name)}, not {value}"
    history = client.get_metric_history(parent.info.run_id, "hypervolume")
    steps = set(range(1, len(view.observations) + 1)) - {metric.step for metric in history}
    if steps:
        yield f"the parent has no metrics of steps {sorted(steps)}"
    for number in sorted(children.keys() ^ {o.trial.number for o in view.observations}):
        yield f"trial {number} stands in only one of them"
    for observation in view.observations:
        run = children.get(observation.trial.number)
        if run is not None:
            for what in _differing(run, observation, view):
                yield f"trial {observation.trial.number}: {what}"


def _differing(run: Run, observation: Observation, view: SweepView) -> Iterator[str]:
    failed = isinstance(observation.outcome, Failure)
    tags = {
        "state": state_of(observation),
        "pareto": str(observation.trial.number in view.front).lower(),
        "host": observation.host,
    }
    for name, value in tags.items():
        if run.data.tags.get(name) != value:
            yield f"{name} is {run.data.tags.get(name)!r}, not {value!r}"
    if run.info.status != ("FAILED" if failed else "FINISHED"):
        yield f"its run is {run.info.status}"
    if run.data.params.get("spec") != observation.trial.spec.digest:
        yield "another spec"
    metrics = {**metrics_of(observation), "seconds": observation.seconds}
    for name, value in metrics.items():
        if run.data.metrics.get(name) != value:
            yield f"{name} is {run.data.metrics.get(name)}, not {value}"


def _faults_of_networks(folder: Path, view: SweepView) -> Iterator[str]:
    """Members of the front whose network is not there, or gives other outputs than it did."""
    record = read_journal(folder / JOURNAL_FILE)
    task = request_of(folder, config_of(folder, record), record).task
    for member in view.front.members:
        number = member.trial.number
        place = trial_folder(folder, number) / MODEL_FOLDER
        try:
            (made,), (saved,) = example_outputs(load(place), task), read_outputs(place)
        except Exception as error:
            yield f"trial {number}: {error}"
            continue
        if not torch.allclose(made, saved, atol=1e-5):
            yield f"trial {number}: its outputs differ by {float((made - saved).abs().max())}"
