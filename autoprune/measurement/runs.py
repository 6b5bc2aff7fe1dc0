"""The runs of a measurement, and what several of them say together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from autoprune.measurement.estimate import RatioEstimate, Times, estimate_ratio
from autoprune.measurement.load import NodeLoad, average


@dataclass
class RunTimes:
    """The times of one run in seconds: of every pair, and of every single call."""

    pairs: list[tuple[float, float]] = field(default_factory=list)
    calls: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def times_N2(self) -> Times:  # noqa: N802
        """Seconds of the pairs, of shape (N, 2): baseline and candidate."""
        return np.array(self.pairs)

    def calls_of(self, which: int) -> NDArray[np.float64]:
        """Seconds of every call of the baseline (0) or the candidate (1)."""
        return np.array(self.calls[which])


@dataclass(frozen=True, slots=True)
class Run:
    """The times of one run, what else the node did, and the seconds it took."""

    times: RunTimes
    load: NodeLoad
    seconds: float


@dataclass(frozen=True, slots=True)
class Together:
    """What several runs say together: the quiet ones, or all where those are too few."""

    runs: tuple[Run, ...]
    quiet: bool
    estimate: RatioEstimate
    load: NodeLoad

    @classmethod
    def of(cls, runs: Sequence[Run], is_quiet: Callable[[Run], bool], *, enough: int) -> Self:
        """Runs of which at least `enough` should be quiet."""
        good = [run for run in runs if is_quiet(run)]
        quiet = len(good) >= enough
        counted = tuple(good if quiet else runs)
        return cls(
            counted,
            quiet,
            estimate_ratio([run.times.times_N2 for run in counted]),
            average([run.load for run in counted]),
        )

    def call_ms(self, which: int, shares: Sequence[float]) -> list[float]:
        """Quantiles of the single calls of the baseline (0) or the candidate (1), in ms."""
        calls = np.concatenate([run.times.calls_of(which) for run in self.runs])
        found: list[float] = (np.quantile(calls, shares) * 1e3).tolist()
        return found
