"""Where trials run on a real Ray cluster of several nodes, and what is refused before any does."""

import time
from itertools import accumulate
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from rich.console import Console

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Observation
from autoprune.orchestration.executors import cluster
from autoprune.orchestration.executors.resources import Demand
from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.folders import JOURNAL_FILE
from autoprune.orchestration.launch import Listeners, Tracking, launch
from autoprune.orchestration.record import Asked, read_journal
from autoprune.orchestration.reports.console import ConsoleWatcher
from autoprune.orchestration.store import Store
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.view import SweepView
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from tests.faults import Sleepy
from tests.tiny import REPOSITORY, request

pytestmark = pytest.mark.slow  # workers that import torch on every node


@pytest.fixture(scope="module")
def nodes():
    """A head for no trial, and a worker that is labelled and has something of its own."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=2, resources={"probe": 1}, labels={"zone": "a"})
    made.wait_for_nodes()
    yield made
    made.shutdown()


def executor(nodes: Cluster, demand: Demand | None = None, slots: int | None = None):
    return TuneExecutor(
        slots, demand or Demand(), address=nodes.address, code_paths=[str(REPOSITORY)]
    )


def test_a_cluster_is_filled_as_far_as_its_nodes_hold_trials(nodes: Cluster) -> None:
    assert executor(nodes).slots == 2
    assert executor(nodes, Demand(cpus=2)).slots == 1
    assert executor(nodes, Demand(resources={"probe": 1}, labels={"zone": "a"})).slots == 1


@pytest.mark.parametrize(
    ("demand", "slots", "message"),
    [
        (Demand(labels={"zone": "b"}), None, r"asks for 1 CPU, zone=b; there are .*zone=a"),
        (Demand(accelerator="A100"), None, "asks for 1 CPU, A100; there are"),
        (Demand(cpus=3), None, r"asks for 3 CPUs; there are .*2 CPUs"),
        (Demand(), 3, "3 trials at a time, each with 1 CPU, do not fit: 2 do; there are"),
    ],
)
def test_what_no_node_can_hold_is_refused_at_once(
    nodes: Cluster, tmp_path: Path, demand: Demand, slots: int | None, message: str
) -> None:
    began = time.perf_counter()
    with pytest.raises(AutopruneError, match=message):
        launch(request(tmp_path, executor=executor(nodes, demand, slots)), Tracking())
    assert time.perf_counter() - began < 60
    assert not list(tmp_path.iterdir())


def test_trials_run_where_their_labels_and_resources_are(nodes: Cluster, tmp_path: Path) -> None:
    demand = Demand(resources={"probe": 0.5}, labels={"zone": "a"})
    asked = request(tmp_path, executor=executor(nodes, demand), budget=Budget(trials=4))
    result = launch(asked, Tracking()).result
    assert result.view.slots == 2
    assert result.view.counts["finished"] == 4


def test_other_versions_on_a_node_are_told_with_both(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cluster.installed()
    monkeypatch.setattr(cluster, "version", lambda name: "1.0" if name == "torch" else own[name])
    with pytest.raises(AutopruneError, match=r"does not have .*: torch 2\.\S+ there, 1\.0 here; "):
        executor(nodes).check(Store(str(tmp_path)))


class Joining(ConsoleWatcher):
    """Starts another node when the first trial has come to its outcome."""

    def __init__(self, nodes: Cluster) -> None:
        super().__init__(Console(quiet=True))
        self.nodes, self.joined = nodes, []

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        if not self.joined:
            self.joined.append(self.nodes.add_node(num_cpus=2))


def test_a_node_that_joins_late_is_filled_too(nodes: Cluster, tmp_path: Path) -> None:
    """As many trials are proposed and not told of as there are slots."""
    joining = Joining(nodes)
    asked = request(
        tmp_path,
        executor=executor(nodes, Demand(cpus=2)),
        budget=Budget(trials=10),
        recoveries={"finetune": Recovery(FitPlan(epochs=3))},
        task=Sleepy(),
    )
    result = launch(asked, Tracking(), listeners=Listeners(watchers=(joining,))).result
    nodes.remove_node(joining.joined[0])
    assert result.view.counts["finished"] == 10
    assert result.view.slots == 1
    journal = read_journal(result.folder / JOURNAL_FILE)
    changes = (1 if isinstance(event, Asked) else -1 for event in journal.events)
    assert max(accumulate(changes)) == 2
