"""Paired speed measurement: baseline and candidate beside each other, behind the quiet gate."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Protocol

import numpy as np
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import SPEED_METRICS, Direction
from autoprune.domain.trial import Speedup
from autoprune.measurement.device import Device
from autoprune.measurement.estimate import FEWEST_RUNS, variation
from autoprune.measurement.load import LoadWatch, NodeWatch
from autoprune.measurement.pair import Pair
from autoprune.measurement.prepared import prepared, prepared_once, repeated
from autoprune.measurement.quiet import Gate
from autoprune.measurement.runs import Run, RunTimes, Together
from autoprune.measurement.runtimes.protocol import (
    Inference,
    Runtime,
    torch_threads,
    uncalibrated,
)
from autoprune.tasks.protocol import Inputs, Task, network_inputs

_P = (0.5, 0.95)
_RUNS_IN_ANY_CASE = 4
"""Student's interval over fewer is several times as wide as their spread."""


class SpeedMeter(Protocol):
    """Measures how much faster one network is than another."""

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """The names of the metrics that a measurement gives (`speed_metrics`)."""
        ...

    def check(self, model: nn.Module, example: Inputs) -> None:
        """Raise what `measure` would raise of a network that cannot be measured."""
        ...

    def measure(self, candidate: nn.Module, baseline: nn.Module, example: Inputs) -> Speedup:
        """The speedup of `candidate` over `baseline` on `example` (batch size 1)."""
        ...


@dataclass(frozen=True, slots=True)
class MeterSettings:
    """How long and how carefully to measure.

    A measurement consists of runs: in each of them both networks are loaded anew, where the
    runtime can do that (`Reloads`), and timed in turn for `run_s` seconds behind the gate (longer
    networks for one pair, and after a warm-up of at most `warmup_s` the first time). It ends when
    half the interval over the runs is at most `half_width` of the ratio after at least `min_runs`,
    or at `max_runs`, or after `max_s` seconds of measuring, into which runs are made to fit, but
    not before the fourth (or `min_runs`, where that is fewer). A run in which the noise is above
    `noise_limit`, other processes keep more than `others_limit` cores busy, or the hypervisor takes
    more than the share `steal_limit` is not counted, as long as there are enough that are. A sample
    lasts at least `sample_s`; faster networks are called several times in it. Of several
    `batch_sizes` the first gives the speedup, each takes a measurement of its own.
    """

    batch_sizes: tuple[int, ...] = (1,)
    half_width: float = 0.02
    min_runs: int = 6
    max_runs: int = 16
    max_s: float = 1.5
    warmup_s: float = 0.3
    run_s: float = 0.1
    sample_s: float = 0.005
    noise_limit: float = 0.5
    others_limit: float = 0.5
    steal_limit: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "batch_sizes":
                continue
            open_at_zero = field.name in ("warmup_s", "seed", "steal_limit")
            if not math.isfinite(value) or value < 0 or (value == 0 and not open_at_zero):
                least = "0 or more" if open_at_zero else "more than 0"
                raise AutopruneError(f"meter setting {field.name} is {value}; choose {least}")
        sizes = self.batch_sizes
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise AutopruneError(
                f"meter setting batch_sizes is {list(sizes)}; name each size once, from 1 up"
            )
        if not FEWEST_RUNS <= self.min_runs <= self.max_runs:
            raise AutopruneError(
                f"meter settings min_runs {self.min_runs} and max_runs {self.max_runs}; "
                f"choose {FEWEST_RUNS} <= min_runs <= max_runs"
            )


@dataclass(frozen=True, slots=True)
class PairedMeter:
    """A SpeedMeter that times baseline and candidate in alternation, in random order.

    Same process, same threads, same runtime. The candidate is prepared (copied, exported) for
    every measurement, the baseline once a process for as long as it lives; neither is timed before
    its outputs agree with eager PyTorch's. `clock` counts seconds and never goes back; `watch`
    starts to watch a device, and what else its node does.
    """

    runtime: Runtime
    gate: Gate
    settings: MeterSettings = MeterSettings()
    clock: Callable[[], float] = time.perf_counter
    watch: Callable[[str], LoadWatch] = NodeWatch

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Those at the first batch size, and a speedup and a throughput at every further one."""
        _, *further = self.settings.batch_sizes
        names = [f"{name}_at_{size}" for size in further for name in ("speedup", "throughput")]
        return SPEED_METRICS | dict.fromkeys(names, Direction.MAX)

    def check(self, model: nn.Module, example: Inputs) -> None:
        """Prepare the network without timing it. Raises what `measure` raises."""
        for size in self.settings.batch_sizes:
            self.check_batch(model, repeated(example, size))

    def check_batch(self, model: nn.Module, example: Inputs) -> None:
        """The same on an example that is a batch already."""
        with self.gate.step():
            prepared(self.runtime, model, example)

    def measure(self, candidate: nn.Module, baseline: nn.Module, example: Inputs) -> Speedup:
        """The ratio of times with its interval; `settled` where that is narrow.

        Raises what the runtime's `prepare` raises, and TrialError (cause runtime) where it does
        not compute what eager PyTorch does.
        """
        first, *further = (
            self.measure_batch(candidate, baseline, repeated(example, size), size)
            for size in self.settings.batch_sizes
        )
        return replace(first, further=tuple(further))

    def measure_batch(
        self, candidate: nn.Module, baseline: nn.Module, example: Inputs, batch_size: int
    ) -> Speedup:
        """The speedup on an example that is a batch of `batch_size` already."""
        # exporting a network is work like a training step: another trial may be measuring
        with self.gate.step():
            ready = (
                prepared_once(self.runtime, baseline, example),
                prepared(self.runtime, candidate, example),
            )
        return self.time(*ready, batch_size=batch_size)

    def time(self, baseline: Inference, candidate: Inference, *, batch_size: int) -> Speedup:
        """The speedup of two networks that the runtime prepared for batches of `batch_size`."""
        settings = self.settings
        rng = np.random.default_rng(settings.seed)
        pair = Pair(baseline, candidate, sample_s=settings.sample_s, clock=self.clock, rng=rng)
        runs: list[Run] = []
        while True:
            runs.append(self._run(pair))
            if len(runs) < min(settings.min_runs, _RUNS_IN_ANY_CASE):
                continue
            spent_s = sum(run.seconds for run in runs)
            over = len(runs) >= settings.max_runs or spent_s >= settings.max_s
            enough = min(settings.min_runs, _RUNS_IN_ANY_CASE) if over else settings.min_runs
            found = Together.of(runs, self._quiet, enough=enough)
            settled = found.quiet and found.estimate.half_width <= settings.half_width
            if settled or over:
                return self._speedup(found, batch_size, settled=settled)

    def _run(self, pair: Pair) -> Run:
        """One run: load both anew as trainers work, time them while nobody does."""
        settings, times = self.settings, RunTimes()
        with self.gate.step():
            pair.reload()
        with self.gate.measuring(), torch_threads(self.runtime.threads), _no_collection():
            pair.warm_up(settings.warmup_s)
            watch, start = self.watch(self.runtime.device), self.clock()
            spent_s = 0.0
            while spent_s < min(settings.run_s, settings.max_s / settings.min_runs):
                pair.sample(times)
                spent_s = self.clock() - start
            return Run(times, watch.read(), spent_s)

    def _quiet(self, run: Run) -> bool:
        """Whether neither the times of a run nor the node were too restless."""
        settings = self.settings
        return (
            variation(run.times.times_N2) <= settings.noise_limit
            and run.load.others <= settings.others_limit
            and run.load.steal <= settings.steal_limit
        )

    def _speedup(self, found: Together, batch_size: int, *, settled: bool) -> Speedup:
        estimate, load = found.estimate.of_any_preparation(), found.load
        (baseline_ms, baseline_p95_ms), (candidate_ms, candidate_p95_ms) = (
            found.call_ms(which, _P) for which in (0, 1)
        )
        return Speedup(
            ratio=estimate.ratio,
            low=estimate.low,
            high=estimate.high,
            baseline_ms=float(baseline_ms),
            candidate_ms=float(candidate_ms),
            baseline_p95_ms=float(baseline_p95_ms),
            candidate_p95_ms=float(candidate_p95_ms),
            samples=sum(len(run.times.pairs) for run in found.runs),
            runs=len(found.runs),
            runtime=self.runtime.name,
            device=str(Device.of(self.runtime.device, self.runtime.library)),
            noise=estimate.noise,
            others=load.others,
            steal=load.steal,
            frequency_mhz=load.frequency_mhz,
            batch_size=batch_size,
            threads=self.runtime.threads,
            settled=settled,
        )


def speed_metrics(speedup: Speedup, baseline_ms: float) -> dict[str, float]:
    """A measurement as metrics; those at a further batch size B end in ``_at_B``.

    `baseline_ms` is the baseline's latency that a sweep counts from, at the first batch size.
    """
    latency_ms = baseline_ms / speedup.ratio
    found = {
        "speedup": speedup.ratio,
        "speedup_low": speedup.low,
        "speedup_high": speedup.high,
        "latency_ms": latency_ms,
        "throughput": 1e3 * speedup.batch_size / latency_ms,
    }
    for other in speedup.further:
        size = other.batch_size
        found |= {f"speedup_at_{size}": other.ratio, f"throughput_at_{size}": other.throughput}
        found |= {f"speedup_at_{size}_low": other.low, f"speedup_at_{size}_high": other.high}
    return found


def calibrated(meter: PairedMeter, model: nn.Module, task: Task) -> PairedMeter:
    """The meter with what the task gives the network in training, if the runtime wants that."""
    runtime = uncalibrated(meter.runtime)
    if runtime is None:
        return meter
    heard = network_inputs(model, task, "train", most=runtime.calibration_samples)
    return replace(meter, runtime=runtime.calibrated(heard))


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
