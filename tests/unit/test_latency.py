import gc
import json
import os
import pickle
import subprocess
import sys
import time
import weakref
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, Speedup, TrialError
from autoprune.measurement.latency import MeterSettings, PairedMeter
from autoprune.measurement.load import NodeLoad, NodeWatch
from autoprune.measurement.quiet import NoGate, QuietNode
from autoprune.measurement.runtimes import TorchRuntime

EXAMPLE = torch.ones(1, 2)
IDLE = NodeLoad(others=0.0, steal=0.0, frequency_mhz=None)


class Timed(nn.Module):
    """A network that takes `seconds` for one inference."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        return 2.0 * x


class World:
    """A clock that moves only when a network runs, by its time and a disturbance."""

    def __init__(self, disturbance=lambda _: 1.0):
        self.now_s = 0.0
        self.disturbance = disturbance
        self.rng = np.random.default_rng(0)
        self.calls = []

    def clock(self):
        return self.now_s

    def run(self, seconds):
        self.calls.append(seconds)
        self.now_s += seconds * self.disturbance(self)


@dataclass
class WorldRuntime:
    """Runs networks in a world; remembers what it prepared."""

    world: World
    name: str = "world"
    library: str = "world 1"
    device: str = "cpu"
    threads: int = 1
    tolerance: float = 1e-3
    error: float = 0.0
    prepared: list = field(default_factory=list)

    def prepare(self, model, example):
        seconds, world, outputs = model.seconds, self.world, (2.0 + self.error) * example
        self.prepared.append((seconds, tuple(example.shape)))

        def infer():
            world.run(seconds)
            return outputs

        return infer


@dataclass
class Watch:
    """A node that is as busy as it is said to be."""

    load: NodeLoad = IDLE

    def read(self):
        return self.load


class WatchingGate:
    """Notes how long it was held at a stretch, and what ran inside it."""

    def __init__(self, world):
        self.world = world
        self.stretches_s = []
        self.prepared = 0

    @contextmanager
    def step(self):
        assert not self.stretches_s, "networks are prepared before anything is measured"
        yield
        self.prepared += 1

    @contextmanager
    def measuring(self):
        assert self.prepared, "networks are prepared as trainers work: while nobody measures"
        start = self.world.now_s
        calls = len(self.world.calls)
        yield
        assert len(self.world.calls) > calls
        self.stretches_s.append(self.world.now_s - start)


def measure(world, candidate_s, baseline_s=0.002, *, gate=None, **settings):
    meter = PairedMeter(
        WorldRuntime(world), gate or NoGate(), MeterSettings(**settings), world.clock, Watch
    )
    return meter.measure(Timed(candidate_s), Timed(baseline_s), EXAMPLE)


def noisy(sigma):
    return World(lambda world: world.rng.lognormal(sigma=sigma))


def test_without_noise_the_ratio_is_exact_and_the_fewest_pairs_settle_it():
    found = measure(World(), 0.0005, slice_s=0.0001, min_pairs=20)
    assert found.ratio == pytest.approx(4.0)
    assert (found.low, found.high) == (pytest.approx(4.0), pytest.approx(4.0))
    assert found.baseline_ms == pytest.approx(2.0)
    assert found.candidate_ms == pytest.approx(0.5)
    assert found.settled
    assert found.samples == 20
    assert (found.runtime, found.batch_size, found.threads) == ("world", 1, 1)
    assert found.device.endswith("world 1")


def test_more_noise_takes_more_pairs():
    quiet, loud = (measure(noisy(s), 0.001, max_s=60.0, max_pairs=5000) for s in (0.02, 0.2))
    assert quiet.settled
    assert loud.settled
    assert quiet.samples < loud.samples
    assert loud.noise > quiet.noise
    for found in (quiet, loud):
        assert found.high - found.low <= 2 * 0.02 * found.ratio
        assert found.low <= 2.0 * 1.02
        assert found.high >= 2.0 * 0.98


def test_a_disturbance_that_lasts_hits_both_and_leaves_the_ratio():
    slow_half = World(lambda world: 3.0 if world.now_s > 0.3 else 1.0)
    found = measure(slow_half, 0.001, min_pairs=200)
    assert found.ratio == pytest.approx(2.0, rel=1e-6)
    assert found.settled


def test_a_trend_does_not_favour_the_one_that_runs_second():
    slowing = World(lambda world: 1.0 + 20 * world.now_s)
    found = measure(slowing, 0.002, min_pairs=200, max_s=10.0)
    assert found.low <= 1.0 <= found.high


def test_what_cannot_be_settled_in_time_says_so():
    world = noisy(1.0)
    found = measure(world, 0.001, max_s=0.5, repeats=0)
    assert not found.settled
    assert world.now_s < 2.0


def test_the_number_of_pairs_is_limited():
    found = measure(noisy(1.0), 0.001, max_pairs=40, repeats=0)
    assert found.samples == 40
    assert not found.settled


def test_too_much_noise_is_measured_again_and_the_quieter_round_counts():
    world = World()

    def loud_at_first(world):
        return world.rng.lognormal(sigma=1.5) if len(world.calls) < 400 else 1.0

    world.disturbance = loud_at_first
    found = measure(world, 0.001, max_pairs=100, repeats=5, noise_limit=0.3)
    assert found.settled
    assert found.noise <= 0.3
    assert found.ratio == pytest.approx(2.0)


@pytest.mark.parametrize("repeats", [0, 3])
def test_noise_that_does_not_end_is_given_up_after_the_repeats(repeats):
    world = noisy(1.5)
    gate = WatchingGate(world)  # held once a round, as the slices have no end
    limits = {"max_pairs": 50, "slice_s": 1e6, "noise_limit": 0.1}
    assert not measure(world, 0.002, gate=gate, repeats=repeats, **limits).settled
    assert len(gate.stretches_s) == 1 + repeats


def test_a_narrow_interval_in_too_much_noise_is_not_settled():
    found = measure(noisy(0.5), 0.001, half_width=0.5, noise_limit=0.1, repeats=0)
    assert not found.settled


def test_networks_faster_than_the_sample_are_called_several_times():
    world = World()
    found = measure(world, 0.00001, 0.002, sample_s=0.001, max_pairs=30, min_pairs=30)
    assert found.ratio == pytest.approx(200.0)
    fast = sum(seconds == 0.00001 for seconds in world.calls)
    assert fast > 30 * 90
    assert world.calls.count(0.002) < 100


def test_pairs_run_in_random_order_fixed_by_the_seed():
    def orders(seed):
        world = World()
        measure(world, 0.001, min_pairs=60, slice_s=10.0, max_pairs=60, warmup_s=0.0, seed=seed)
        return world.calls

    calls = orders(0)
    assert set(zip(calls[::2], calls[1::2], strict=True)) == {(0.001, 0.002), (0.002, 0.001)}
    assert orders(0) == orders(0)
    assert orders(0) != orders(1)


def test_warming_up_ends_when_times_are_steady_and_its_times_do_not_count():
    cold = World(lambda world: 50.0 if len(world.calls) < 32 else 1.0)
    found = measure(cold, 0.001, warmup_s=100.0)
    assert found.noise == pytest.approx(0.0, abs=1e-9)
    assert found.candidate_ms == pytest.approx(1.0)
    assert len(cold.calls) < 2 * (found.samples + 40)


def test_warming_up_is_limited():
    restless = World(lambda world: 1.0 + world.now_s)
    measure(restless, 0.001, warmup_s=0.1, max_s=0.2, slice_s=0.05, repeats=0)
    assert restless.now_s < 1.0


def test_the_gate_is_held_in_short_stretches_only():
    world = noisy(0.5)
    gate = WatchingGate(world)
    measure(world, 0.001, gate=gate, warmup_s=0.1, slice_s=0.2, max_s=3.0, repeats=0)
    assert len(gate.stretches_s) > 10
    assert max(gate.stretches_s) < 0.1 + 0.2 + 0.1


def test_slow_networks_hold_the_gate_for_one_pair_at_a_time():
    world = World()
    gate = WatchingGate(world)
    found = measure(world, 2.0, 4.0, gate=gate, warmup_s=0.0)
    assert found.ratio == pytest.approx(2.0)
    assert found.samples == 3
    assert not found.settled
    assert max(gate.stretches_s) <= 3 * 6.0


def test_garbage_is_not_collected_and_threads_are_held_while_it_measures():
    seen = set()
    world = World(lambda _: seen.add((gc.isenabled(), torch.get_num_threads())) or 1.0)
    before = torch.get_num_threads()
    runtime = WorldRuntime(world, threads=before + 1)
    PairedMeter(runtime, NoGate(), clock=world.clock, watch=Watch).measure(
        Timed(0.001), Timed(0.002), EXAMPLE
    )
    # outputs are compared before, where collecting garbage does no harm
    assert seen == {(False, before + 1), (True, before + 1)}
    assert gc.isenabled()
    assert torch.get_num_threads() == before


def test_the_example_is_repeated_to_the_batch_size():
    runtime = WorldRuntime(World())
    meter = PairedMeter(
        runtime, NoGate(), MeterSettings(batch_sizes=(8,)), runtime.world.clock, Watch
    )
    assert meter.measure(Timed(0.001), Timed(0.002), EXAMPLE).batch_size == 8
    assert [shape for _, shape in runtime.prepared] == [(8, 2), (8, 2)]


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


def test_several_batch_sizes_are_measured_beside_each_other():
    runtime = WorldRuntime(World())
    meter = PairedMeter(
        runtime, NoGate(), MeterSettings(batch_sizes=(1, 32)), runtime.world.clock, Watch
    )
    found = meter.measure(Timed(0.001), Timed(0.002), EXAMPLE)
    assert found.batch_size == 1
    (at_32,) = found.further
    assert (at_32.batch_size, at_32.further) == (32, ())
    assert found.throughput == pytest.approx(1000)
    assert at_32.throughput == pytest.approx(32_000)
    again = meter.measure(Timed(0.001), Timed(0.002), EXAMPLE)
    assert again.ratio == pytest.approx(found.ratio)
    assert Speedup.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_percentiles_tell_of_a_tail():
    tail = World(lambda world: 5.0 if len(world.calls) % 10 == 0 else 1.0)
    found = measure(tail, 0.001, min_pairs=200)
    assert found.candidate_ms == pytest.approx(1.0)
    assert found.baseline_ms == pytest.approx(2.0)
    assert max(found.candidate_p95_ms, found.baseline_p95_ms / 2) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "load", [NodeLoad(0.9, 0.0, 2400.0), NodeLoad(0.0, 0.2, None)], ids=["others", "steal"]
)
def test_a_restless_node_is_measured_again_and_flagged(load):
    world, loads = World(), iter([load] * 2)
    restless = PairedMeter(
        WorldRuntime(world), NoGate(), MeterSettings(), world.clock, lambda: Watch(next(loads))
    )
    found = restless.measure(Timed(0.001), Timed(0.002), EXAMPLE)
    assert not found.settled
    assert (found.others, found.steal) == (load.others, load.steal)
    calm = iter([load, NodeLoad(0.1, 0.01, 2400.0)])
    patient = PairedMeter(
        WorldRuntime(world), NoGate(), MeterSettings(), world.clock, lambda: Watch(next(calm))
    )
    found = patient.measure(Timed(0.001), Timed(0.002), EXAMPLE)
    assert found.settled
    assert (found.others, found.frequency_mhz) == (0.1, 2400.0)


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


def test_a_busy_neighbour_is_seen():
    watch = NodeWatch()
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        load = watch.read()
    finally:
        neighbour.kill()
        neighbour.wait()
    assert load.others > 0.2
    assert 0.0 <= load.steal <= 1.0


def test_what_this_process_does_is_not_others():
    watch, end = NodeWatch(), time.perf_counter() + 0.5
    while time.perf_counter() < end:
        pass
    own, cores = watch.read(), os.cpu_count() or 1
    assert own.others < cores - 0.5


def test_a_failed_preparation_leaves_the_gate_alone():
    class Refusing(WorldRuntime):
        def prepare(self, _model, _example):
            raise TrialError(Cause.RUNTIME, "no")

    world = World()
    gate = WatchingGate(world)
    with pytest.raises(TrialError, match="no"):
        PairedMeter(Refusing(world), gate).measure(Timed(1.0), Timed(1.0), EXAMPLE)
    assert not gate.stretches_s


def test_a_real_network_behind_a_real_gate_after_a_journey_by_pickle(tmp_path):
    settings = MeterSettings(max_s=0.2, warmup_s=0.02, slice_s=0.05, repeats=0)
    meter = pickle.loads(pickle.dumps(PairedMeter(TorchRuntime(), QuietNode(tmp_path), settings)))
    wide, narrow = nn.Linear(1500, 1500), nn.Linear(20, 1500)
    wide = nn.Sequential(nn.Linear(2, 1500), wide, wide, wide)
    narrow = nn.Sequential(nn.Linear(2, 20), narrow)
    found = meter.measure(narrow, wide, EXAMPLE)
    assert found.runtime == "eager"
    assert found.samples >= 3
    assert found.baseline_ms > 0
    assert found.ratio > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_sizes": (0,)}, r"batch_sizes is \[0\]; name each size once, from 1 up"),
        ({"batch_sizes": ()}, r"batch_sizes is \[\]; name each size once"),
        ({"batch_sizes": (1, 1)}, r"batch_sizes is \[1, 1\]; name each size once"),
        ({"half_width": -0.1}, "half_width is -0.1; choose more than 0"),
        ({"max_s": float("nan")}, "max_s is nan; choose more than 0"),
        ({"noise_limit": float("inf")}, "noise_limit is inf"),
        ({"repeats": -1}, "repeats is -1; choose 0 or more"),
        ({"min_pairs": 2}, "min_pairs 2 and max_pairs 1000; choose 3 <= min_pairs"),
        ({"min_pairs": 50, "max_pairs": 40}, "min_pairs 50 and max_pairs 40"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(AutopruneError, match=message):
        MeterSettings(**settings)
