"""Measuring on other nodes: a real Ray cluster of several nodes on this machine."""

from dataclasses import replace

import pytest
import torch
from ray.cluster_utils import Cluster
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, Measurement, TrialError
from autoprune.orchestration.executors import bench
from autoprune.orchestration.executors.bench import BenchMeter
from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.sweep import Budget
from tests.runtimes import Refusing, Telling
from tests.tiny import REPOSITORY, meter, request

pytestmark = pytest.mark.slow  # workers that import torch on every node
EXAMPLE = torch.ones(1, 8)


@pytest.fixture(scope="module")
def nodes():
    """A head for two trials; benches come and go."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    yield made
    made.shutdown()


@pytest.fixture
def bench_node(nodes):
    node = nodes.add_node(num_cpus=0, resources={"bench": 1})
    nodes.wait_for_nodes()
    yield node
    if node in nodes.worker_nodes:
        nodes.remove_node(node)


def network(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4)).eval()


def bench_meter(nodes, runtime=None, **settings):
    paired = meter()
    paired = replace(
        paired,
        runtime=runtime or Telling(),
        settings=replace(paired.settings, **settings),
    )
    return BenchMeter(paired, nodes.address, (str(REPOSITORY),))


def test_every_trial_of_a_sweep_is_measured_on_the_bench(nodes, bench_node, tmp_path):
    asked = request(
        tmp_path,
        meter=bench_meter(nodes),
        executor=TuneExecutor(wanted_slots=2, address=nodes.address, code_paths=[str(REPOSITORY)]),
        budget=Budget(trials=4),
    )
    result = launch(asked, Tracking()).result
    assert result.view.counts == {"finished": 4, "paused": 0, "stopped": 0, "failed": 0}
    for observation in result.view.observations:
        assert isinstance(observation.outcome, Measurement)
        assert bench_node.node_id in observation.outcome.speedup.device


@pytest.mark.usefixtures("bench_node")
def test_one_baseline_is_measured_again_and_again(nodes):
    """Each measurement of a driver joins the cluster anew, where the former's objects are gone."""
    meter, baseline = bench_meter(nodes), network(64)
    for _ in range(2):
        assert meter.measure(network(8), baseline, EXAMPLE).samples > 0


@pytest.mark.usefixtures("bench_node")
def test_several_batch_sizes_travel_as_programs_of_their_own(nodes):
    found = bench_meter(nodes, batch_sizes=(1, 4)).measure(network(8), network(512), EXAMPLE)
    assert found.batch_size == 1
    assert [other.batch_size for other in found.further] == [4]
    assert found.ratio > 1


@pytest.mark.usefixtures("bench_node")
def test_a_fault_on_the_bench_comes_back_as_it_is(nodes):
    for call in (
        lambda meter: meter.check(network(8), EXAMPLE),
        lambda meter: meter.measure(network(8), network(8), EXAMPLE),
    ):
        with pytest.raises(TrialError, match=r"^operator 'cut' has no form here$") as caught:
            call(bench_meter(nodes, Refusing()))
        assert caught.value.cause is Cause.RUNTIME


def test_without_a_bench_nothing_is_started(nodes, tmp_path):
    with pytest.raises(AutopruneError, match=r"the cluster at .* has none; start one with `ray st"):
        launch(request(tmp_path, meter=bench_meter(nodes)), Tracking())
    assert not list(tmp_path.iterdir())


def test_a_bench_that_goes_fails_the_trial_and_says_so(nodes, monkeypatch):
    monkeypatch.setattr(bench, "PATIENCE_S", 1.0)
    monkeypatch.setattr(bench, "_ASK_S", 0.2)
    node = nodes.add_node(num_cpus=0, resources={"bench": 1})
    nodes.wait_for_nodes()
    asked = bench_meter(nodes)
    asked.check(network(8), EXAMPLE)
    offered = bench.offered

    def leaves():
        """The bench leaves after it was seen to be there."""
        seen = offered()
        if node in nodes.worker_nodes:
            nodes.remove_node(node)
        return seen

    monkeypatch.setattr(bench, "offered", leaves)
    with pytest.raises(TrialError, match="no node has offered the resource 'bench' for 1 s") as e:
        asked.measure(network(8), network(8), EXAMPLE)
    assert e.value.cause is Cause.WORKER_LOST
