"""Networks made ready to be timed: checked, prepared once, and out of memory."""

import gc
import weakref

import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.prepared import prepared
from autoprune.measurement.quiet import NoGate
from autoprune.measurement.runtimes import OnnxRuntime, TorchRuntime
from tests.worlds import EXAMPLE, Timed, Watch, World, WorldRuntime


def test_the_baseline_is_prepared_once_for_a_runtime_and_shapes_and_let_go_with_it():
    runtime = WorldRuntime(World())
    baseline = Timed(0.002)
    for settings in (MeterSettings(), MeterSettings(seed=1), MeterSettings(batch_sizes=(2,))):
        meter = PairedMeter(runtime, NoGate(), settings, runtime.world.clock, Watch)
        meter.measure(Timed(0.001), baseline, EXAMPLE)
    baseline.grown = nn.Linear(1, 1)
    meter.measure(Timed(0.001), baseline, EXAMPLE)
    assert [seconds for seconds, _ in runtime.prepared].count(0.001) == 4
    assert [shape for seconds, shape in runtime.prepared if seconds == 0.002] == [
        (1, 2),
        (2, 2),
        (2, 2),
    ]
    gone = weakref.ref(baseline)
    del baseline
    gc.collect()
    assert gone() is None


def test_a_runtime_that_computes_something_else_is_not_timed():
    world = World()
    meter = PairedMeter(WorldRuntime(world, error=0.1), NoGate(), clock=world.clock, watch=Watch)
    message = r"outputs of runtime 'world' differ .* by 0.05 of the largest one; at most 0.001 is"
    for call in (
        lambda: meter.measure(Timed(0.001), Timed(0.002), EXAMPLE),
        lambda: meter.check(Timed(0.001), EXAMPLE),
    ):
        with pytest.raises(TrialError, match=message) as caught:
            call()
        assert caught.value.cause is Cause.RUNTIME
    assert len(world.calls) == 2


@pytest.mark.parametrize("runtime", [TorchRuntime(), OnnxRuntime()], ids=["eager", "onnx"])
def test_a_batch_that_does_not_fit_says_so(runtime):
    meter = PairedMeter(runtime, NoGate(), MeterSettings(batch_sizes=(1, 10**13)))
    message = r"^a batch of 10000000000000 does not fit in memory \(.*\); choose smaller batch"
    for call in (
        lambda: meter.check(nn.Linear(2, 2), EXAMPLE),
        lambda: meter.measure(nn.Linear(2, 2), nn.Linear(2, 2), EXAMPLE),
    ):
        with pytest.raises(TrialError, match=message) as caught:
            call()
        assert caught.value.cause is Cause.OUT_OF_MEMORY


def test_activations_that_do_not_fit_say_so_too():
    class Widening(nn.Module):
        def forward(self, x):
            return x[:, :, None, None].expand(-1, -1, 10**6, 10**6) + 1.0

    meter = PairedMeter(TorchRuntime(), NoGate())
    with pytest.raises(TrialError, match=r"^a batch of 1 does not fit in memory"):
        meter.check(Widening(), EXAMPLE)


def test_more_threads_than_cores_would_wait_for_each_other() -> None:
    with pytest.raises(AutopruneError, match=r"100000 threads and this process may use .* cores"):
        prepared(TorchRuntime(threads=100_000), nn.Linear(3, 2), torch.randn(1, 3))
