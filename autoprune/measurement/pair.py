"""Baseline and candidate, timed beside each other."""

import math
from collections.abc import Callable

import numpy as np

from autoprune.measurement.runs import RunTimes
from autoprune.measurement.runtimes.protocol import Inference, Reloads, SelfTimed

_WINDOW = 5
_STEADY = 0.05
_FEWEST_CALLS = 2
_TRIES, _TRIES_S = 5, 0.5
_SLOW = 4.0
"""Networks slower than so many samples are timed by single calls: caches no longer matter."""


class Pair:
    """Two networks ready to be timed, in random order.

    A sample of a network is a block of calls of at least `sample_s` together, one after the other
    as a server makes them, after one that is not counted: the other network has emptied the
    caches. Its figure is the median of the calls.
    """

    def __init__(
        self,
        baseline: Inference,
        candidate: Inference,
        *,
        sample_s: float,
        clock: Callable[[], float],
        rng: np.random.Generator,
    ) -> None:
        self._infer = (baseline, candidate)
        self._timers = tuple(_timer(infer, clock) for infer in self._infer)
        self._calls: list[int] = []
        self._sample_s, self._clock, self._rng = sample_s, clock, rng

    def reload(self) -> None:
        """Load both anew where their runtime can: where weights lie in memory costs speed."""
        for infer in self._infer:
            if isinstance(infer, Reloads):
                infer.reload()

    def warm_up(self, limit_s: float) -> None:
        """Call both until their times no longer change, the first time, for at most `limit_s`."""
        if self._calls:
            self.sample(RunTimes())
            return
        start = self._clock()
        for which in (0, 1):
            self._timers[which]()  # first calls allocate and compile
        self._calls = [self._calls_for(self._least(which)) for which in (0, 1)]
        before, window = math.inf, RunTimes()
        while self._clock() - start < limit_s:
            self.sample(window)
            if len(window.pairs) == _WINDOW:
                now = float(np.median(window.times_N2.sum(axis=1)))
                if abs(now - before) <= _STEADY * now:
                    return
                before, window = now, RunTimes()

    def sample(self, found: RunTimes) -> None:
        """Add the times of one pair."""
        seconds = [0.0, 0.0]
        first = int(self._rng.integers(2))
        for which in (first, 1 - first):
            calls = self._calls[which]
            if calls > 1:
                self._infer[which]()
            times = [self._timers[which]() for _ in range(calls)]
            found.calls[which].extend(times)
            seconds[which] = float(np.median(times))
        found.pairs.append((seconds[0], seconds[1]))

    def _least(self, which: int) -> float:
        """The least of a few calls: one that was disturbed would give a network fewer of them."""
        times = [self._timers[which]()]
        while len(times) < _TRIES and sum(times) < _TRIES_S:
            times.append(self._timers[which]())
        return min(times)

    def _calls_for(self, seconds: float) -> int:
        if seconds > _SLOW * self._sample_s:
            return 1
        return max(_FEWEST_CALLS, math.ceil(self._sample_s / max(seconds, 1e-9)))


def _timer(infer: Inference, clock: Callable[[], float]) -> Callable[[], float]:
    """What times one inference, in seconds; chosen once, for asking takes microseconds itself."""
    if isinstance(infer, SelfTimed):
        return infer.seconds

    def seconds() -> float:
        start = clock()
        infer()
        return clock() - start

    return seconds
