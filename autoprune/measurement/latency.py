"""Paired speed measurement: baseline and candidate beside each other, behind the quiet gate."""

import gc
import math
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Speedup
from autoprune.measurement.device import Device
from autoprune.measurement.estimate import RatioEstimate, estimate_ratio
from autoprune.measurement.quiet import Gate
from autoprune.measurement.runtimes import Inference, Runtime, torch_threads
from autoprune.tasks.protocol import Inputs, map_inputs

_FEWEST_PAIRS = 3
_WINDOW = 5
_STEADY = 0.05


class SpeedMeter(Protocol):
    """Measures how much faster one network is than another."""

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
    most `repeats` times, while the noise is above `noise_limit`. Others are kept waiting for
    about `slice_s` (and `warmup_s` at the start of a round) at a stretch; networks slower than
    that hold them for two pairs, three at the start. A sample lasts at least `sample_s`; faster
    networks are called several times in it.
    """

    batch_size: int = 1
    half_width: float = 0.02
    min_pairs: int = 30
    max_pairs: int = 1000
    max_s: float = 1.5
    warmup_s: float = 0.3
    slice_s: float = 0.25
    sample_s: float = 0.001
    noise_limit: float = 0.5
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            open_at_zero = field.name in ("warmup_s", "repeats", "seed")
            if not math.isfinite(value) or value < 0 or (value == 0 and not open_at_zero):
                least = "0 or more" if open_at_zero else "more than 0"
                raise AutopruneError(f"meter setting {field.name} is {value}; choose {least}")
        if not _FEWEST_PAIRS <= self.min_pairs <= self.max_pairs:
            raise AutopruneError(
                f"meter settings min_pairs {self.min_pairs} and max_pairs {self.max_pairs}; "
                f"choose {_FEWEST_PAIRS} <= min_pairs <= max_pairs"
            )


@dataclass(frozen=True, slots=True)
class PairedMeter:
    """A SpeedMeter that times baseline and candidate in alternation, in random order.

    Same process, same threads, same runtime. The candidate is prepared (copied, exported)
    outside the gate for every measurement; the baseline once a process for as long as it lives.
    `clock` counts seconds and never goes back.
    """

    runtime: Runtime
    gate: Gate
    settings: MeterSettings = MeterSettings()
    clock: Callable[[], float] = time.perf_counter

    def check(self, model: nn.Module, example: Inputs) -> None:
        """Prepare the network without timing it. Raises what the runtime's `prepare` raises."""
        with self.gate.step():
            self.runtime.prepare(model, repeated(example, self.settings.batch_size))

    def measure(self, candidate: nn.Module, baseline: nn.Module, example: Inputs) -> Speedup:
        """The median of the pairwise ratios with its interval; `settled` where it is narrow.

        Raises what the runtime's `prepare` raises.
        """
        example = repeated(example, self.settings.batch_size)
        rng = np.random.default_rng(self.settings.seed)
        # exporting a network is work like a training step: another trial may be measuring
        with self.gate.step():
            prepared = (
                _prepared_baseline(self.runtime, baseline, example),
                self.runtime.prepare(candidate, example),
            )
        pair = _Pair(*prepared, clock=self.clock, rng=rng)
        rounds = []
        for _ in range(1 + self.settings.repeats):
            rounds.append(self._round(pair))
            if rounds[-1].estimate.noise <= self.settings.noise_limit:
                break
        return self._speedup(min(rounds, key=lambda r: r.estimate.noise))

    def _round(self, pair: "_Pair") -> "_Round":
        settings = self.settings
        times: list[tuple[float, float]] = []
        spent_s = 0.0
        while True:
            spent_s += self._slice(pair, times)
            if len(times) < _FEWEST_PAIRS:
                continue
            found = _Round(np.array(times), settings.seed)
            narrow = found.estimate.half_width <= settings.half_width
            if narrow and len(times) >= settings.min_pairs:
                return found
            if len(times) >= settings.max_pairs or spent_s >= settings.max_s:
                return found

    def _slice(self, pair: "_Pair", times: list[tuple[float, float]]) -> float:
        """Add to `times` behind the gate for a while; the seconds of measuring it took."""
        settings = self.settings
        with self.gate.measuring(), torch_threads(self.runtime.threads), _no_collection():
            if times:
                pair.sample()  # others ran in the meantime, and the caches are theirs
            else:
                pair.warm_up(settings.warmup_s, settings.sample_s)
            start = self.clock()
            while len(times) < settings.max_pairs:
                times.append(pair.sample())
                if self.clock() - start >= settings.slice_s:
                    break
            return self.clock() - start

    def _speedup(self, found: "_Round") -> Speedup:
        estimate, settings = found.estimate, self.settings
        baseline_ms, candidate_ms = np.median(found.times_N2, axis=0) * 1e3
        narrow = len(found.times_N2) >= settings.min_pairs
        narrow = narrow and estimate.half_width <= settings.half_width
        return Speedup(
            ratio=estimate.ratio,
            low=estimate.low,
            high=estimate.high,
            baseline_ms=float(baseline_ms),
            candidate_ms=float(candidate_ms),
            samples=len(found.times_N2),
            runtime=self.runtime.name,
            device=str(Device.of(self.runtime.device, self.runtime.library)),
            noise=estimate.noise,
            batch_size=settings.batch_size,
            threads=self.runtime.threads,
            settled=narrow and estimate.noise <= settings.noise_limit,
        )


class _Round:
    """The times of one round, baseline and candidate, and what they say. N = pairs."""

    def __init__(self, times_N2: np.ndarray[Any, np.dtype[np.float64]], seed: int) -> None:  # noqa: N803
        self.times_N2 = times_N2
        self.estimate: RatioEstimate = estimate_ratio(times_N2[:, 0], times_N2[:, 1], seed=seed)


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
        start = self._clock()
        for _ in range(calls):
            infer()
        return (self._clock() - start) / calls


def repeated(example: Inputs, batch_size: int) -> Inputs:
    """An example of batch size 1 as a batch of `batch_size`."""
    batch: Inputs = map_inputs(lambda x: x.repeat(batch_size, *(1 for _ in x.shape[1:])), example)
    return batch


_PREPARED: "weakref.WeakKeyDictionary[nn.Module, tuple[Any, Inference]]" = (
    weakref.WeakKeyDictionary()
)


def _prepared_baseline(runtime: Runtime, baseline: nn.Module, example: Inputs) -> Inference:
    """The baseline's inference, prepared once a process for a runtime and shapes.

    Kept beside the module, not in the meter: a worker unpickles a new meter for every trial.
    """
    key = (runtime, _shapes(baseline.state_dict()), _shapes(example))
    found = _PREPARED.get(baseline)
    if found is None or found[0] != key:
        found = _PREPARED[baseline] = (key, runtime.prepare(baseline, example))
    return found[1]


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
