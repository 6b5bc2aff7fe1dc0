"""Paired speed measurement: baseline and candidate beside each other, behind the quiet gate."""

import gc
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import SPEED_METRICS, Direction
from autoprune.domain.trial import Cause, Speedup, TrialError
from autoprune.measurement.device import Device
from autoprune.measurement.difference import arrays_of, relative_difference
from autoprune.measurement.estimate import RatioEstimate, estimate_ratio
from autoprune.measurement.load import LoadWatch, NodeLoad, NodeWatch, average
from autoprune.measurement.quiet import Gate
from autoprune.measurement.runtimes.protocol import (
    Calibrates,
    Inference,
    Runtime,
    SelfTimed,
    frozen_copy,
    torch_threads,
)
from autoprune.tasks.protocol import Inputs, Task, forward, map_inputs, move, network_inputs

_FEWEST_PAIRS = 3
_WINDOW = 5
_STEADY = 0.05


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

    A round ends when half the interval is at most `half_width` of the ratio after at least
    `min_pairs`, or at `max_pairs`, or after `max_s` seconds of measuring. It is done again, at
    most `repeats` times, while the noise is above `noise_limit`, other processes keep more than
    `others_limit` cores busy, or the hypervisor takes more than the share `steal_limit`; the
    quietest round counts. Others are kept waiting for about `slice_s` (and `warmup_s` at the start
    of a round) at a stretch; networks slower than that hold them for two pairs, three at the
    start. A sample lasts at least `sample_s`; faster networks are called several times in it. Of
    several `batch_sizes` the first gives the speedup, each takes a measurement of its own.
    """

    batch_sizes: tuple[int, ...] = (1,)
    half_width: float = 0.02
    min_pairs: int = 30
    max_pairs: int = 1000
    max_s: float = 1.5
    warmup_s: float = 0.3
    slice_s: float = 0.25
    sample_s: float = 0.001
    noise_limit: float = 0.5
    others_limit: float = 0.5
    steal_limit: float = 0.05
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "batch_sizes":
                continue
            open_at_zero = field.name in ("warmup_s", "repeats", "seed", "steal_limit")
            if not math.isfinite(value) or value < 0 or (value == 0 and not open_at_zero):
                least = "0 or more" if open_at_zero else "more than 0"
                raise AutopruneError(f"meter setting {field.name} is {value}; choose {least}")
        sizes = self.batch_sizes
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise AutopruneError(
                f"meter setting batch_sizes is {list(sizes)}; name each size once, from 1 up"
            )
        if not _FEWEST_PAIRS <= self.min_pairs <= self.max_pairs:
            raise AutopruneError(
                f"meter settings min_pairs {self.min_pairs} and max_pairs {self.max_pairs}; "
                f"choose {_FEWEST_PAIRS} <= min_pairs <= max_pairs"
            )


@dataclass(frozen=True, slots=True)
class PairedMeter:
    """A SpeedMeter that times baseline and candidate in alternation, in random order.

    Same process, same threads, same runtime. The candidate is prepared (copied, exported) for
    every measurement, the baseline once a process for as long as it lives; neither is timed before
    its outputs agree with eager PyTorch's. `clock` counts seconds and never goes back; `watch`
    starts to watch what else the node does.
    """

    runtime: Runtime
    gate: Gate
    settings: MeterSettings = MeterSettings()
    clock: Callable[[], float] = time.perf_counter
    watch: Callable[[], LoadWatch] = NodeWatch

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Those at the first batch size, and a speedup and a throughput at every further one."""
        _, *further = self.settings.batch_sizes
        names = [f"{name}_at_{size}" for size in further for name in ("speedup", "throughput")]
        return SPEED_METRICS | dict.fromkeys(names, Direction.MAX)

    def check(self, model: nn.Module, example: Inputs) -> None:
        """Prepare the network without timing it. Raises what `measure` raises."""
        with self.gate.step():
            for size in self.settings.batch_sizes:
                _prepared(self.runtime, model, repeated(example, size))

    def measure(self, candidate: nn.Module, baseline: nn.Module, example: Inputs) -> Speedup:
        """The median of the pairwise ratios with its interval; `settled` where it is narrow.

        Raises what the runtime's `prepare` raises, and TrialError (cause runtime) where it does
        not compute what eager PyTorch does.
        """
        first, *further = (
            self._measured(candidate, baseline, repeated(example, size), size)
            for size in self.settings.batch_sizes
        )
        return replace(first, further=tuple(further))

    def _measured(
        self, candidate: nn.Module, baseline: nn.Module, example: Inputs, batch_size: int
    ) -> Speedup:
        settings = self.settings
        rng = np.random.default_rng(settings.seed)
        # exporting a network is work like a training step: another trial may be measuring
        with self.gate.step():
            prepared = (
                _prepared_baseline(self.runtime, baseline, example),
                _prepared(self.runtime, candidate, example),
            )
        pair = _Pair(*prepared, clock=self.clock, rng=rng)
        rounds = []
        for _ in range(1 + settings.repeats):
            rounds.append(self._round(pair))
            if rounds[-1].quiet(settings):
                break
        best = min(rounds, key=lambda r: (not r.quiet(settings), r.estimate.noise))
        return self._speedup(best, batch_size)

    def _round(self, pair: "_Pair") -> "_Round":
        settings = self.settings
        times: list[tuple[float, float]] = []
        loads: list[NodeLoad] = []
        spent_s = 0.0
        while True:
            spent_s += self._slice(pair, times, loads)
            if len(times) < _FEWEST_PAIRS:
                continue
            found = _Round(np.array(times), loads, settings.seed)
            if found.narrow(settings):
                return found
            if len(times) >= settings.max_pairs or spent_s >= settings.max_s:
                return found

    def _slice(
        self, pair: "_Pair", times: list[tuple[float, float]], loads: list[NodeLoad]
    ) -> float:
        """Add to `times` behind the gate for a while; the seconds of measuring it took."""
        settings = self.settings
        with self.gate.measuring(), torch_threads(self.runtime.threads), _no_collection():
            if times:
                pair.sample()  # others ran in the meantime, and the caches are theirs
            else:
                pair.warm_up(settings.warmup_s, settings.sample_s)
            watch, start = self.watch(), self.clock()
            while len(times) < settings.max_pairs:
                times.append(pair.sample())
                if self.clock() - start >= settings.slice_s:
                    break
            spent_s = self.clock() - start
            loads.append(watch.read())
            return spent_s

    def _speedup(self, found: "_Round", batch_size: int) -> Speedup:
        estimate, settings, load = found.estimate, self.settings, found.load
        baseline_ms, candidate_ms = np.median(found.times_N2, axis=0) * 1e3
        baseline_p95_ms, candidate_p95_ms = np.quantile(found.times_N2, 0.95, axis=0) * 1e3
        return Speedup(
            ratio=estimate.ratio,
            low=estimate.low,
            high=estimate.high,
            baseline_ms=float(baseline_ms),
            candidate_ms=float(candidate_ms),
            baseline_p95_ms=float(baseline_p95_ms),
            candidate_p95_ms=float(candidate_p95_ms),
            samples=len(found.times_N2),
            runtime=self.runtime.name,
            device=str(Device.of(self.runtime.device, self.runtime.library)),
            noise=estimate.noise,
            others=load.others,
            steal=load.steal,
            frequency_mhz=load.frequency_mhz,
            batch_size=batch_size,
            threads=self.runtime.threads,
            settled=found.narrow(settings) and found.quiet(settings),
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


class _Round:
    """The times of one round, baseline and candidate, and what they say. N = pairs."""

    def __init__(
        self,
        times_N2: np.ndarray[Any, np.dtype[np.float64]],  # noqa: N803
        loads: Sequence[NodeLoad],
        seed: int,
    ) -> None:
        self.times_N2, self.load = times_N2, average(loads)
        self.estimate: RatioEstimate = estimate_ratio(times_N2[:, 0], times_N2[:, 1], seed=seed)

    def narrow(self, settings: MeterSettings) -> bool:
        """Whether the interval is as narrow as was asked, over enough pairs."""
        enough = len(self.times_N2) >= settings.min_pairs
        return enough and self.estimate.half_width <= settings.half_width

    def quiet(self, settings: MeterSettings) -> bool:
        """Whether neither the times nor the node were too restless."""
        return (
            self.estimate.noise <= settings.noise_limit
            and self.load.others <= settings.others_limit
            and self.load.steal <= settings.steal_limit
        )


def calibrated(meter: PairedMeter, model: nn.Module, task: Task) -> PairedMeter:
    """The meter with what the task gives the network in training, if the runtime wants that."""
    runtime = meter.runtime
    if not isinstance(runtime, Calibrates) or not runtime.calibration_samples:
        return meter
    heard = network_inputs(model, task, "train", most=runtime.calibration_samples)
    return replace(meter, runtime=runtime.calibrated(heard))


class _Pair:
    """Baseline and candidate, ready to be timed beside each other."""

    def __init__(
        self,
        baseline: Inference,
        candidate: Inference,
        *,
        clock: Callable[[], float],
        rng: np.random.Generator,
    ) -> None:
        self._infer = (baseline, candidate)
        self._calls = [1, 1]
        self._clock = clock
        self._rng = rng

    def sample(self) -> tuple[float, float]:
        """Seconds of one call of the baseline and of the candidate, timed in random order."""
        seconds = [0.0, 0.0]
        first = int(self._rng.integers(2))
        for which in (first, 1 - first):
            seconds[which] = self._time(which)
        return seconds[0], seconds[1]

    def warm_up(self, limit_s: float, sample_s: float) -> None:
        """Call both until their times no longer change, at most `limit_s`; set the calls."""
        start = self._clock()
        self._calls = [1, 1]
        self.sample()  # first calls allocate and compile
        self._calls = [max(1, math.ceil(sample_s / max(t, 1e-9))) for t in self.sample()]
        before, window = math.inf, []
        while self._clock() - start < limit_s:
            window.append(sum(self.sample()))
            if len(window) == _WINDOW:
                now = float(np.median(window))
                if abs(now - before) <= _STEADY * now:
                    return
                before, window = now, []

    def _time(self, which: int) -> float:
        infer, calls = self._infer[which], self._calls[which]
        if isinstance(infer, SelfTimed):
            return infer.seconds(calls) / calls
        start = self._clock()
        for _ in range(calls):
            infer()
        return (self._clock() - start) / calls


def repeated(example: Inputs, batch_size: int) -> Inputs:
    """An example of batch size 1 as a batch of `batch_size`."""
    batch: Inputs = map_inputs(lambda x: x.repeat(batch_size, *(1 for _ in x.shape[1:])), example)
    return batch


_KEPT = 8
_PREPARED: "weakref.WeakKeyDictionary[nn.Module, deque[tuple[Any, Inference]]]" = (
    weakref.WeakKeyDictionary()
)


def _prepared_baseline(runtime: Runtime, baseline: nn.Module, example: Inputs) -> Inference:
    """The baseline's inference, prepared once a process for a runtime and shapes.

    Kept beside the module, not in the meter: a worker unpickles a new meter for every trial. The
    last `_KEPT` of them are, for several batch sizes take turns.
    """
    key = (runtime, _shapes(baseline.state_dict()), _shapes(example))
    kept = _PREPARED.setdefault(baseline, deque(maxlen=_KEPT))
    found = next((infer for known, infer in kept if known == key), None)
    if found is None:
        found = _prepared(runtime, baseline, example)
        kept.append((key, found))
    return found


def _prepared(runtime: Runtime, model: nn.Module, example: Inputs) -> Inference:
    """A network ready to be timed, once it is known to compute what eager PyTorch computes."""
    infer = runtime.prepare(model, example)
    with torch_threads(runtime.threads), torch.no_grad():
        expected = forward(frozen_copy(model), move(example, "cpu"))
        found = infer()
    difference = relative_difference(arrays_of(found), arrays_of(expected))
    if not difference <= runtime.tolerance:
        raise TrialError(
            Cause.RUNTIME,
            f"the outputs of runtime {runtime.name!r} differ from those of eager PyTorch by "
            f"{difference:.2g} of the largest one; at most {runtime.tolerance:g} is allowed, so "
            "its time means nothing; choose another runtime or precision",
        )
    return infer


def _shapes(tensors: Any) -> Any:
    if isinstance(tensors, torch.Tensor):
        return tensors.shape, tensors.dtype
    if isinstance(tensors, dict):
        return tuple((name, _shapes(tensor)) for name, tensor in tensors.items())
    if isinstance(tensors, tuple):
        return tuple(_shapes(tensor) for tensor in tensors)
    return None


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
