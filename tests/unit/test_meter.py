import gc
import json
import pickle
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain, repeat

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, Speedup, TrialError
from autoprune.measurement.estimate import PREPARATION
from autoprune.measurement.load import NodeLoad
from autoprune.measurement.meter import MeterSettings, PairedMeter
from autoprune.measurement.quiet import NoGate, QuietNode
from autoprune.measurement.runtimes import TorchRuntime
from autoprune.measurement.runtimes.protocol import torch_threads
from tests.worlds import EXAMPLE, Timed, Watch, World, WorldRuntime


class WatchingGate:
    """Notes how long it was held at a stretch, and how often work was done inside a step."""

    def __init__(self, world):
        self.world = world
        self.stretches_s = []
        self.steps = 0
        self.inside = False

    @contextmanager
    def step(self):
        assert not self.inside, "networks are loaded as trainers work: while nobody measures"
        yield
        self.steps += 1

    @contextmanager
    def measuring(self):
        assert self.steps, "networks are loaded as trainers work: while nobody measures"
        start = self.world.now_s
        calls = len(self.world.calls)
        self.inside = True
        yield
        self.inside = False
        assert len(self.world.calls) > calls
        self.stretches_s.append(self.world.now_s - start)


def measure(world, candidate_s, baseline_s=0.002, *, gate=None, **settings):
    meter = PairedMeter(
        WorldRuntime(world), gate or NoGate(), MeterSettings(**settings), world.clock, Watch
    )
    return meter.measure(Timed(candidate_s), Timed(baseline_s), EXAMPLE)


def noisy(sigma):
    return World(lambda world: world.rng.lognormal(sigma=sigma))


def test_without_noise_the_ratio_is_exact_and_the_fewest_runs_settle_it():
    found = measure(World(), 0.0005, min_runs=4)
    assert found.ratio == pytest.approx(4.0)
    beyond = np.exp(1.96 * PREPARATION)
    ends = pytest.approx(4.0 / beyond, rel=1e-5), pytest.approx(4.0 * beyond, rel=1e-5)
    assert (found.low, found.high) == ends, "runs say nothing of what another preparation gives"
    assert found.baseline_ms == pytest.approx(2.0)
    assert found.candidate_ms == pytest.approx(0.5)
    assert found.settled
    assert found.runs == 4
    assert found.samples >= 4
    assert (found.runtime, found.batch_size, found.threads) == ("world", 1, 1)
    assert found.device.endswith("world 1")


def test_more_noise_takes_more_runs():
    quiet, loud = (measure(noisy(s), 0.001, max_s=60.0, max_runs=200) for s in (0.02, 0.2))
    assert quiet.settled
    assert loud.settled
    assert quiet.runs < loud.runs
    assert loud.noise > quiet.noise
    for found in (quiet, loud):
        half = (found.high - found.low) / (2.0 * found.ratio)
        assert half <= 1.01 * np.hypot(0.02, 1.96 * PREPARATION)
        assert found.low <= 2.0 * 1.02
        assert found.high >= 2.0 * 0.98


def test_a_disturbance_that_lasts_hits_both_and_leaves_the_ratio():
    slow_half = World(lambda world: 3.0 if world.now_s > 0.3 else 1.0)
    found = measure(slow_half, 0.001, min_runs=10)
    assert found.ratio == pytest.approx(2.0, rel=1e-6)
    assert found.settled


def test_a_trend_does_not_favour_the_one_that_runs_second():
    slowing = World(lambda world: 1.0 + world.now_s)
    found = measure(slowing, 0.002, min_runs=20, max_runs=20, max_s=100.0)
    assert found.ratio == pytest.approx(1.0, abs=0.005)


class Reloaded(WorldRuntime):
    """A runtime whose networks are a little faster or slower every time they are loaded."""

    def prepare(self, model, example):
        super().prepare(model, example)
        return ReloadedInference(self.world, model.seconds, 2.0 * example)


class ReloadedInference:
    def __init__(self, world, seconds, outputs):
        self.world, self.takes_s, self.outputs, self.place = world, seconds, outputs, 1.0

    def __call__(self):
        self.world.run(self.takes_s * self.place)
        return self.outputs

    def reload(self):
        self.place = self.world.rng.lognormal(sigma=0.02)


def test_where_networks_lie_in_memory_is_part_of_the_interval():
    hits, widths = 0, []
    world, limits = World(), {"half_width": 1e-3, "max_runs": 8, "max_s": 60.0}
    for seed in range(60):
        settings = MeterSettings(seed=seed, **limits)
        meter = PairedMeter(Reloaded(world), NoGate(), settings, world.clock, Watch)
        found = meter.measure(Timed(0.002), Timed(0.002), EXAMPLE)
        hits += found.low <= 1.0 <= found.high
        widths.append(found.high - found.low)
    assert hits / 60 >= 0.9
    assert 0.01 < np.mean(widths) < 0.08


def test_what_cannot_be_settled_in_time_says_so():
    world = noisy(1.0)
    found = measure(world, 0.001, max_s=0.5)
    assert not found.settled
    assert world.now_s < 2.0


def test_the_fewest_runs_fit_into_the_time_there_is():
    world = noisy(0.05)
    found = measure(world, 0.0005, 0.001, max_s=0.15, half_width=1e-9)
    assert found.runs >= 4
    assert found.high / found.low < 1.3


def test_the_number_of_runs_is_limited():
    found = measure(noisy(1.0), 0.001, max_runs=7, max_s=60.0)
    assert found.runs == 7
    assert not found.settled


def test_runs_with_too_much_noise_are_not_counted():
    def loud_at_first(world):
        return world.rng.lognormal(sigma=1.5) if len(world.calls) < 300 else 1.0

    found = measure(World(loud_at_first), 0.001, noise_limit=0.3, max_s=10.0, max_runs=50)
    assert found.settled
    assert found.noise <= 0.3
    assert found.ratio == pytest.approx(2.0)
    assert found.runs == 6


def test_noise_that_does_not_end_is_given_up():
    found = measure(
        noisy(1.5), 0.002, noise_limit=0.1, half_width=10.0, run_s=1.0, max_runs=9, max_s=60.0
    )
    assert not found.settled
    assert found.runs == 9


def test_a_sample_is_a_block_of_calls_after_one_that_is_not_counted():
    cold = World(lambda world: 9.0 if world.calls[-2:-1] != world.calls[-1:] else 1.0)
    found = measure(cold, 0.0005)
    assert found.ratio == pytest.approx(4.0)
    assert found.candidate_p95_ms == pytest.approx(0.5)


def test_networks_faster_than_the_sample_are_called_several_times():
    world = World()
    found = measure(world, 0.00001, 0.002, sample_s=0.001, max_runs=2, min_runs=2)
    assert found.ratio == pytest.approx(200.0)
    fast, slow = world.calls.count(0.00001), world.calls.count(0.002)
    assert fast / slow == pytest.approx(101 / 3, rel=0.1)


def test_one_disturbed_call_does_not_change_how_often_a_network_is_called():
    def calls(disturbed):
        world = World(lambda world: 100.0 if len(world.calls) == disturbed else 1.0)
        measure(world, 0.0005, 0.001, min_runs=2, max_runs=2, warmup_s=0.0)
        return world.calls.count(0.0005) / world.calls.count(0.001)

    usual = calls(None)
    assert all(calls(disturbed) == pytest.approx(usual, rel=0.3) for disturbed in range(1, 16))


def test_pairs_run_in_random_order_fixed_by_the_seed():
    def orders(seed):
        world = World()
        measure(world, 0.1, 0.2, min_runs=20, max_runs=20, max_s=99.0, warmup_s=0.0, seed=seed)
        return world.calls[-40:]

    calls = orders(0)
    assert len(calls) == 40
    assert set(zip(calls[::2], calls[1::2], strict=True)) == {(0.1, 0.2), (0.2, 0.1)}
    assert orders(0) == orders(0)
    assert orders(0) != orders(1)


def test_warming_up_ends_when_times_are_steady_and_its_times_do_not_count():
    cold = World(lambda world: 50.0 if len(world.calls) < 13 else 1.0)
    found = measure(cold, 0.001, warmup_s=100.0)
    assert found.noise == pytest.approx(0.0, abs=1e-9)
    assert found.candidate_ms == pytest.approx(1.0)


def test_warming_up_is_limited():
    restless = World(lambda world: 1.0 + world.now_s)
    measure(restless, 0.001, warmup_s=0.1, max_s=0.2, run_s=0.05)
    assert restless.now_s < 1.0


def test_the_gate_is_held_in_short_stretches_only():
    world = noisy(0.5)
    gate = WatchingGate(world)
    measure(world, 0.001, gate=gate, warmup_s=0.1, run_s=0.2, max_s=3.0)
    assert len(gate.stretches_s) > 10
    assert gate.steps == len(gate.stretches_s) + 1
    assert max(gate.stretches_s) < 0.1 + 0.2 + 0.1


def test_slow_networks_hold_the_gate_for_one_pair_at_a_time():
    world = World()
    gate = WatchingGate(world)
    found = measure(world, 2.0, 4.0, gate=gate, warmup_s=0.0)
    assert found.ratio == pytest.approx(2.0)
    assert found.samples == found.runs == 4
    assert found.settled, "time allowed no more runs, and these agree"
    assert max(gate.stretches_s) <= 3 * 6.0


def test_garbage_is_not_collected_and_threads_are_held_while_it_measures():
    seen = set()
    world = World(lambda _: seen.add((gc.isenabled(), torch.get_num_threads())) or 1.0)
    runtime = WorldRuntime(world, threads=1)
    with torch_threads(2):
        PairedMeter(runtime, NoGate(), clock=world.clock, watch=Watch).measure(
            Timed(0.001), Timed(0.002), EXAMPLE
        )
        assert torch.get_num_threads() == 2
    # outputs are compared before, where collecting garbage does no harm
    assert seen == {(False, 1), (True, 1)}
    assert gc.isenabled()


def test_the_example_is_repeated_to_the_batch_size():
    runtime = WorldRuntime(World())
    meter = PairedMeter(
        runtime, NoGate(), MeterSettings(batch_sizes=(8,)), runtime.world.clock, Watch
    )
    assert meter.measure(Timed(0.001), Timed(0.002), EXAMPLE).batch_size == 8
    assert [shape for _, shape in runtime.prepared] == [(8, 2), (8, 2)]


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
    found = measure(tail, 0.001, min_runs=12)
    assert found.candidate_ms == pytest.approx(1.0)
    assert found.baseline_ms == pytest.approx(2.0)
    assert max(found.candidate_p95_ms, found.baseline_p95_ms / 2) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "load", [NodeLoad(0.9, 0.0, 2400.0), NodeLoad(0.0, 0.2, None)], ids=["others", "steal"]
)
def test_runs_on_a_restless_node_are_not_counted_and_flagged_where_there_are_no_others(load):
    world = World()
    restless = PairedMeter(
        WorldRuntime(world),
        NoGate(),
        MeterSettings(),
        world.clock,
        lambda device: Watch(device, load),
    )
    found = restless.measure(Timed(0.001), Timed(0.002), EXAMPLE)
    assert not found.settled
    assert (found.others, found.steal) == (pytest.approx(load.others), pytest.approx(load.steal))
    calm = chain([load] * 3, repeat(NodeLoad(0.1, 0.01, 2400.0)))
    patient = PairedMeter(
        WorldRuntime(world),
        NoGate(),
        MeterSettings(),
        world.clock,
        lambda device: Watch(device, next(calm)),
    )
    found = patient.measure(Timed(0.001), Timed(0.002), EXAMPLE)
    assert found.settled
    assert found.runs == 6
    assert (found.others, found.frequency_mhz) == (pytest.approx(0.1), 2400.0)


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
    settings = MeterSettings(max_s=0.2, warmup_s=0.02, run_s=0.03)
    meter = pickle.loads(pickle.dumps(PairedMeter(TorchRuntime(), QuietNode(tmp_path), settings)))
    wide, narrow = nn.Linear(1500, 1500), nn.Linear(20, 1500)
    wide = nn.Sequential(nn.Linear(2, 1500), wide, wide, wide)
    narrow = nn.Sequential(nn.Linear(2, 20), narrow)
    found = meter.measure(narrow, wide, EXAMPLE)
    assert found.runtime == "eager"
    assert found.samples >= found.runs >= 2
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
        ({"warmup_s": -1}, "warmup_s is -1; choose 0 or more"),
        ({"min_runs": 1}, "min_runs 1 and max_runs 16; choose 2 <= min_runs"),
        ({"min_runs": 50, "max_runs": 40}, "min_runs 50 and max_runs 40"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(AutopruneError, match=message):
        MeterSettings(**settings)
