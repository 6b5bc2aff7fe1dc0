"""What a trial asks for, and how many of them nodes hold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.executors.resources import Demand, Node, slots_of

SMALL = Node("small", {"CPU": 4.0, "memory": 8e9})
LARGE = Node(
    "large",
    {"CPU": 16.0, "GPU": 2.0, "memory": 64e9, "accelerator_type:A100": 1.0, "bench": 1.0},
    {"zone": "a"},
)


@pytest.mark.parametrize(
    ("demand", "small", "large"),
    [
        (Demand(), 4, 16),
        (Demand(cpus=3), 1, 5),
        (Demand(cpus=1, gpus=0.5), 0, 4),
        (Demand(cpus=1, gpus=0.1), 0, 16),
        (Demand(cpus=0, gpus=0.1), 0, 20),
        (Demand(cpus=1, gpus=2), 0, 1),
        (Demand(memory_gb=3), 2, 16),
        (Demand(resources={"bench": 1}), 0, 1),
        (Demand(accelerator="A100"), 0, 16),
        (Demand(accelerator="H100"), 0, 0),
        (Demand(labels={"zone": "a"}), 0, 16),
        (Demand(labels={"zone": "b"}), 0, 0),
    ],
)
def test_what_fits(demand: Demand, small: int, large: int) -> None:
    assert (demand.fits(SMALL), demand.fits(LARGE)) == (small, large)
    if small + large:
        assert slots_of(demand, [SMALL, LARGE]) == small + large
        assert slots_of(demand, [SMALL, LARGE], wanted=1) == 1


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 64))
def test_trials_never_ask_for_more_than_a_node_has(cpus: int, slices: int, cores: int) -> None:
    demand = Demand(cpus=cpus, gpus=1 / slices)
    node = Node("one", {"CPU": float(cores), "GPU": 1.0})
    count = demand.fits(node)
    assert count * cpus <= cores
    assert count <= slices
    assert (count + 1) * cpus > cores or count + 1 > slices, "one more would not fit"


def test_what_cannot_be_is_refused_with_what_there_is() -> None:
    with pytest.raises(
        AutopruneError,
        match=r"no node can hold a trial, which asks for 1 CPU, H100; there are small \(4 CPUs, "
        r"8 GB of memory\); large \(16 CPUs, 2 GPUs, A100, 1 bench, 64 GB of memory, zone=a\); ",
    ):
        slots_of(Demand(accelerator="H100"), [SMALL, LARGE])
    with pytest.raises(
        AutopruneError, match=r"9 trials at a time, each with 2 CPUs, do not fit: 2"
    ):
        slots_of(Demand(cpus=2), [SMALL], wanted=9)
    with pytest.raises(AutopruneError, match="there are no node; lower"):
        slots_of(Demand(), [])


def test_nodes_that_may_come_count() -> None:
    gpus = Node("gpu worker", {"CPU": 8.0, "GPU": 1.0}, most=3)
    assert slots_of(Demand(gpus=1), [SMALL], coming=[gpus]) == 3
    assert slots_of(Demand(gpus=1), [SMALL], coming=[gpus], wanted=2) == 2
    with pytest.raises(AutopruneError, match="4 trials at a time, each with 1 CPU, 1 GPU, do not"):
        slots_of(Demand(gpus=1), [SMALL], coming=[gpus], wanted=4)
    there = Node("a gpu worker", gpus.offers)
    assert slots_of(Demand(gpus=1), [there, there], coming=[gpus]) == 3, (
        "two of the three are there"
    )
    endless = Node("any number", {"CPU": 8.0}, most=math.inf)
    assert slots_of(Demand(), [SMALL], coming=[endless]) == 4
    assert slots_of(Demand(), [], coming=[endless]) == 1
    assert slots_of(Demand(), [], coming=[endless], wanted=500) == 500
    with pytest.raises(AutopruneError, match="no node can hold a trial"):
        slots_of(Demand(gpus=1), [], coming=[endless])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"cpus": -1}, "executor.cpus is -1; choose 0 or more"),
        ({"memory_gb": math.nan}, "executor.memory_gb is nan; choose 0 or more"),
        ({"resources": {"tpu": -2}}, "executor.resources.tpu is -2; choose 0 or more"),
        ({"gpus": 1.5}, "executor.gpus is 1.5; choose a part of one GPU or a whole number"),
        ({"cpus": 0}, "a trial asks for nothing; give executor.cpus, gpus or resources"),
        ({"resources": {"GPU": 1}}, "executor.resources.GPU is executor.gpus; set that"),
    ],
)
def test_what_nobody_can_ask_for(asked, message: str) -> None:
    with pytest.raises(AutopruneError, match=message):
        Demand(**asked)
