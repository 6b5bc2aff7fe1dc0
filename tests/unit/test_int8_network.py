"""Networks in 8 bits: that they can be called, judged, measured and sent like any other."""

import copy
import math
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import autoprune
from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.cost import costs
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.meter import PairedMeter
from autoprune.measurement.prepared import ready
from autoprune.measurement.programs import pack, unpack
from autoprune.measurement.quantise import quantise
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import Int8Network, OnnxRuntime, OpenVinoRuntime, TorchRuntime
from autoprune.measurement.runtimes.onnx_programs import CPU
from autoprune.measurement.runtimes.protocol import TOLERANCES, Runtime, precisions_of
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.recover import FitPlan, fit
from autoprune.tasks.protocol import forward, heard_inputs
from tests.contracts.test_runtime import DoublePrecision
from tests.pruning_tasks import Blobs, small_net
from tests.tiny import meter

TASK = Blobs()


class Nested(nn.Module):
    """Called by keywords; outputs in a dict with a tuple, and with what is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, Any]:
        mixed = self.left(left.flatten(1)) - self.right(right.flatten(1))
        return {"pair": (mixed, mixed.exp()), "state": None}


class Named(Blobs):
    """The inputs by name, in another order than the network's arguments."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return model(right=batch[0] / 2, left=batch[0])["pair"][0].sum()

    def example(self) -> Any:
        return {"right": self.x[:1] / 2, "left": self.x[:1]}


def trained(task: Blobs = TASK) -> nn.Module:
    network = small_net()
    for _ in fit(network, task, FitPlan(epochs=6, lr=0.05), seed=0):
        pass
    return network.eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def int8(network: nn.Module) -> Int8Network:
    return quantise(network, TASK, batches=2, seed=1).eval()


def test_it_computes_about_what_its_origin_does_on_batches_of_any_size(
    network: nn.Module, int8: Int8Network
) -> None:
    for size in (1, 3, 48):
        with torch.no_grad():
            found, expected = int8(TASK.x[:size]), network(TASK.x[:size])
        assert isinstance(found, torch.Tensor)
        assert 0 < relative_difference(found, expected) < TOLERANCES["int8"]
    assert evaluate(int8, TASK, "val")["accuracy"] > 0.9


def test_quantising_leaves_the_network_as_it_is_and_repeats() -> None:
    model = small_net().train()
    before = copy.deepcopy(model.state_dict())
    one, two = (quantise(model, TASK, batches=2, seed=1) for _ in range(2))
    assert one.program == two.program
    assert quantise(model, TASK, batches=1, seed=1).program != one.program
    assert quantise(model, TASK, batches=2, seed=2).program != one.program
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_ranges_are_those_of_the_batches_that_were_heard() -> None:
    heard = list(heard_inputs(small_net(), TASK, "train", seed=3))
    batches = [x for x, _ in TASK.batches("train", seed=3)]
    assert all(torch.equal(*inputs, batch) for inputs, batch in zip(heard, batches, strict=True))


@pytest.mark.parametrize("journey", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_computes_the_same(int8: Int8Network, journey: Any) -> None:
    with torch.no_grad():
        expected = int8(TASK.x)
        arrived = journey(int8)
        assert torch.equal(arrived(TASK.x), expected)
    assert arrived.program == int8.program
    assert not arrived.training


def test_outputs_are_nested_as_the_origin_nests_them() -> None:
    task, model = Named(), Nested().eval()
    int8 = quantise(model, task, batches=3, seed=0).eval()
    inputs = {"right": task.x[:5] / 2, "left": task.x[:5]}
    with torch.no_grad():
        found, expected = forward(int8, inputs), forward(model, inputs)
    assert set(found) == set(expected)
    assert found["state"] is None
    assert isinstance(found["pair"], tuple)
    assert relative_difference(found["pair"][0], expected["pair"][0]) < TOLERANCES["int8"]
    bare = Int8Network(int8.program).eval()
    with torch.no_grad():
        one, two = forward(bare, inputs)
    assert torch.equal(one, found["pair"][0])
    assert torch.equal(two, found["pair"][1])


def test_it_cannot_be_trained_and_says_what_can(int8: Int8Network) -> None:
    with pytest.raises(AutopruneError, match="int8 cannot be trained; train its `origin`, which"):
        next(fit(Int8Network(int8.program, small_net()), TASK, FitPlan(epochs=1), seed=0))


def test_it_costs_a_quarter_of_the_bytes_and_the_same_arithmetic() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 4)).eval()
    int8 = quantise(wide, TASK, batches=1, seed=0)
    plain, found = costs(wide, TASK.example()), costs(int8, TASK.example())
    assert {name: found[name] for name in ("macs", "params")} == {
        name: plain[name] for name in ("macs", "params")
    }
    assert 0.25 < found["size_mb"] / plain["size_mb"] < 0.6
    saved = plain["size_mb"] - found["size_mb"]
    assert found["peak_memory_mb"] == pytest.approx(plain["peak_memory_mb"] - saved)
    numbers = sum(parameter.numel() for parameter in wide.parameters())
    assert found["size_mb"] * 1e6 >= numbers


@pytest.mark.parametrize(
    ("runtime", "taken"),
    [
        (OnnxRuntime(), ("fp32", "int8")),
        (OnnxRuntime(precision="int8"), ("fp32",)),
        (OnnxRuntime(providers=("CUDAExecutionProvider", CPU)), ("fp32",)),
        (TorchRuntime(), ("fp32",)),
        (OpenVinoRuntime(), ("fp32",)),
        (DoublePrecision(), ("fp32",)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_runtime_says_which_networks_it_takes(runtime: Runtime, taken: tuple[str, ...]) -> None:
    assert precisions_of(runtime) == taken


@pytest.mark.parametrize("runtime", [TorchRuntime(), DoublePrecision(), OpenVinoRuntime()], ids=str)
def test_a_runtime_without_int8_does_not_time_it(runtime: Runtime, int8: Int8Network) -> None:
    message = f"the network is in int8, and runtime '{runtime.name}' takes networks in fp32 only; "
    with pytest.raises(TrialError, match=message) as caught:
        ready(runtime, int8, TASK.example())
    assert caught.value.cause is Cause.RUNTIME


def test_it_is_timed_against_a_baseline_as_that_is(network: nn.Module, int8: Int8Network) -> None:
    timed = PairedMeter(OnnxRuntime(), NoGate(), meter().settings)
    speedup = timed.measure(int8, network, TASK.example())
    assert speedup.runtime == "onnx"
    assert speedup.ratio > 0
    infer = OnnxRuntime().prepare(int8, TASK.example())
    with torch.no_grad():
        (found,), expected = infer(), int8(TASK.example())  # type: ignore[misc]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)


def test_it_travels_to_a_bench_as_its_program(int8: Int8Network) -> None:
    arrived = unpack(pack(int8, TASK.example()))
    assert isinstance(arrived, Int8Network)
    assert ready(OnnxRuntime(), arrived, TASK.example()).off_eager < 1e-6


def test_a_comparison_times_it_where_it_runs_and_says_where_it_does_not(
    network: nn.Module, int8: Int8Network
) -> None:
    found = autoprune.measure(int8, network, TASK.example(), runtimes=["eager", "onnxruntime"])
    (row,) = found.timed
    assert row.runtime == "onnxruntime"
    (refused,) = found.untimed
    assert "candidate: the network is in int8, and runtime 'eager' takes" in refused.reason
    assert 0 < found.difference < TOLERANCES["int8"]


def test_without_data_there_is_nothing_to_calibrate_with() -> None:
    class Wide(Blobs):
        def example(self) -> torch.Tensor:
            return torch.zeros(1, 1, 4, 6)

    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 4))
    message = r"train has no batch of inputs of shape \[\(1, 4, 6\)\] a sample"
    with pytest.raises(AutopruneError, match=message):
        quantise(pooled, Wide(), batches=2, seed=0)
    with pytest.raises(AutopruneError, match="needs data to calibrate with"):
        quantise(pooled, Blobs(samples=0), batches=2, seed=0)


def test_a_network_for_one_batch_size_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 16) if torch.compiler.is_exporting() else x.flatten(1)

    message = "cannot be exported to ONNX with the batch free: .*; let forward take batches of any"
    with pytest.raises(TrialError, match=message) as caught:
        quantise(Fixed(), TASK, batches=1, seed=0)
    assert caught.value.cause is Cause.RUNTIME


def test_without_the_extra_it_says_what_to_install(
    int8: Int8Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = int8.program
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for make in (
        lambda: Int8Network(program),
        lambda: quantise(small_net(), TASK, batches=1, seed=0),
    ):
        with pytest.raises(AutopruneError, match=r"pip install 'autoprune\[onnx\]'"):
            make()


def test_weights_of_every_channel_have_a_scale_of_their_own() -> None:
    import onnx

    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(24, 4)).eval()
    with torch.no_grad():
        network[0].weight[3] *= 100
    program = quantise(network, TASK, batches=2, seed=0).program
    graph = onnx.load_model_from_string(program).graph
    scales = [t for t in graph.initializer if t.name.endswith("_scale") and list(t.dims) == [6]]
    (scale,) = [s for s in map(onnx.numpy_helper.to_array, scales) if s.max() > 10 * np.median(s)][
        :1
    ]
    assert scale.argmax() == 3
    assert math.prod(scale.shape) == 6
