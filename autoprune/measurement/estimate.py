"""The statistics of paired times. Axis legend: R = runs, N = pairs of one run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

FEWEST_RUNS = 2
_CONFIDENCE = 0.95

PREPARATION = 0.005
"""The standard deviation, as a part of the ratio, that preparing both networks anew brings.

The runs of one measurement do not show it: 50 measurements of two equal networks on ONNX Runtime,
of 13 runs each, spread by 0.91% where their runs let expect 0.77%.
"""

Times = NDArray[np.float64]
"""Times of one run, of shape (N, 2): baseline and candidate, positive, in any unit."""


@dataclass(frozen=True, slots=True)
class RatioEstimate:
    """A ratio of times with its 95% interval [low, high].

    `noise` is the coefficient of variation of the pairwise ratios.
    """

    ratio: float
    low: float
    high: float
    noise: float

    @property
    def half_width(self) -> float:
        """Half the interval as a part of the ratio."""
        return (self.high - self.low) / (2.0 * self.ratio)

    def of_any_preparation(self) -> Self:
        """The interval of what any preparation of the two gives, not just that of these runs."""
        quantile = float(ndtri((1.0 + _CONFIDENCE) / 2.0))
        half = math.hypot(math.log(self.high / self.low) / 2.0, quantile * PREPARATION)
        return replace(self, low=self.ratio * math.exp(-half), high=self.ratio * math.exp(half))


def estimate_ratio(runs: Sequence[Times]) -> RatioEstimate:
    """The ratio baseline / candidate: the mean over runs of the median over a run's pairs.

    Pairs of one run share what that run was dealt (where the networks lie in memory, what the
    node did), so they say little about the next one: the interval is Student's over the runs'
    medians, the highest level that varies (Kalibera and Jones, Rigorous Benchmarking in
    Reasonable Time, ISMM 2013). Everything is computed on logarithms, so that swapping the two
    gives exactly the inverse and a change of unit changes nothing. At least `FEWEST_RUNS` runs
    of at least one pair each.
    """
    assert len(runs) >= FEWEST_RUNS, f"{len(runs)} runs"
    medians_R = np.array([np.median(log_ratios(run)) for run in runs])  # noqa: N806
    middle = float(medians_R.mean())
    error = float(medians_R.std(ddof=1)) / len(runs) ** 0.5
    half = float(stdtrit(len(runs) - 1, (1.0 + _CONFIDENCE) / 2.0)) * error
    return RatioEstimate(
        ratio=float(np.exp(middle)),
        low=float(np.exp(middle - half)),
        high=float(np.exp(middle + half)),
        noise=variation(np.concatenate(list(runs))),
    )


def variation(times_N2: Times) -> float:  # noqa: N803
    """The coefficient of variation of the pairwise ratios."""
    ratios_N = np.exp(log_ratios(times_N2))  # noqa: N806
    return float(ratios_N.std() / ratios_N.mean())


def log_ratios(times_N2: Times) -> NDArray[np.float64]:  # noqa: N803
    """Logarithms of the pairwise ratios baseline / candidate, of shape (N,)."""
    return np.log(times_N2[:, 0]) - np.log(times_N2[:, 1])
