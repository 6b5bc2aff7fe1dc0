"""Trials of a real Ray cluster that save in object storage, and nodes that do not see where."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from ray._private.node import Node
from ray.cluster_utils import Cluster
from rich.console import Console

import autoprune
from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Stage, Trial
from autoprune.orchestration.artifacts import read_outputs
from autoprune.orchestration.executors.cluster import cluster
from autoprune.orchestration.executors.resources import Demand
from autoprune.orchestration.executors.seeing import blind_nodes
from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.launch import Listeners, Tracking, launch
from autoprune.orchestration.reports.console import ConsoleWatcher
from autoprune.orchestration.store import Store
from autoprune.orchestration.sweep import Budget
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from tests.faults import Sleepy
from tests.servers import S3Server
from tests.tiny import REPOSITORY, events, request

pytestmark = pytest.mark.slow  # workers that import torch on every node


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head for no trial."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


def executor(nodes: Cluster) -> TuneExecutor:
    return TuneExecutor(1, address=nodes.address, code_paths=[str(REPOSITORY)])


OWN = Path("/proc/self/cwd")
"""Leads to another place on each node, as a disk does that is not shared."""


@pytest.fixture
def apart(nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two nodes one sees what this process has in `OWN`, and the other one does not."""
    for place in ("here", "there"):
        (tmp_path / place / "disk").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        nodes.add_node(num_cpus=1, resources={place: 1})
    nodes.wait_for_nodes()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_nodes_that_do_not_see_where_trials_save_are_refused_by_name(
    nodes: Cluster, apart: Path
) -> None:
    name, reason = os.uname().nodename, "does not see what this process writes there"
    disk = Store(str(OWN / "disk"))
    with cluster(nodes.address):
        assert blind_nodes(disk, Demand(resources={"here": 1})) == {}
        assert blind_nodes(disk, Demand(resources={"there": 1})) == {name: reason}
        assert blind_nodes(Store(str(apart)), Demand()) == {}
    for place, changes in ((disk, {"storage": disk}), (OWN / "out", {})):
        asked = request(OWN / "out", executor=executor(nodes), **changes)
        message = f"trials save at {place}, and node {name} {reason}; mount that folder"
        with pytest.raises(AutopruneError, match=message):
            launch(asked, Tracking())
    assert not [path for path in apart.rglob("*") if path.is_file()]
    assert not (OWN / "out").exists()


class Losing(ConsoleWatcher):
    """Kills the node that the first trial runs on, once it has saved an epoch."""

    def __init__(self, nodes: Cluster) -> None:
        super().__init__(Console(quiet=True))
        self.nodes, self.epochs = nodes, list[int]()

    def on_progress(self, trial: Trial, stage: Stage, metrics: object, *, epoch: int) -> None:
        if trial.number != 0 or stage is not Stage.RECOVER:
            return
        self.epochs.append(epoch)
        if epoch == 2 and len(self.nodes.worker_nodes) == 2:
            (busy,) = filter(runs_a_trial, self.nodes.worker_nodes)
            self.nodes.remove_node(busy, allow_graceful=False)


def runs_a_trial(node: Node) -> bool:
    (raylet,) = node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid).children(recursive=True)
    return any("TrialActor" in " ".join(worker.cmdline()) for worker in workers)


def test_a_trial_goes_on_from_object_storage_where_its_node_was_lost(
    tmp_path: Path, s3: S3Server, nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the output folder is the driver's alone."""
    for place in ("there", "here"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "there")
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    monkeypatch.chdir(tmp_path / "here")
    losing = Losing(nodes)
    asked = request(
        OWN / "out",
        executor=executor(nodes),
        storage=Store(f"s3://{s3.bucket}/cluster"),
        budget=Budget(trials=2),
        recoveries={"finetune": Recovery(FitPlan(epochs=6))},
        task=Sleepy(),
    )
    launched = launch(asked, Tracking(), listeners=Listeners(watchers=(losing,)))
    result = launched.result
    assert launched.warnings == ()
    assert result.view.counts["finished"] == 2
    assert [event["trial"] for event in events(result.folder, "lost")] == [0]
    assert losing.epochs[:2] == [1, 2]
    assert losing.epochs.count(1) == 1, "it was not begun anew"
    assert losing.epochs[-1] == 6
    for member in result.view.front.members:
        place = trial_folder(result.folder, member.trial.number)
        network = autoprune.load(place, model=asked.model)
        (expected,) = read_outputs(place / "model")
        assert torch.equal(network(asked.task.example()), expected)
    assert asked.storage is not None
    assert asked.storage.names("") == []
    assert not list((tmp_path / "there").iterdir())
