"""The statistics of paired times. Axis legend: N = pairs, B = resamples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_TAILS = (0.025, 0.975)


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


def estimate_ratio(
    baseline_N: NDArray[np.float64],  # noqa: N803
    candidate_N: NDArray[np.float64],  # noqa: N803
    *,
    seed: int,
) -> RatioEstimate:
    """The median of the pairwise ratios baseline / candidate, with a bootstrap interval.

    Percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
    13) of the median over pairs. Everything is computed on logarithms, so that swapping the two
    gives exactly the inverse and a change of unit changes nothing. Times are positive, in any
    unit, at least one pair.
    """
    assert baseline_N.shape == candidate_N.shape, "pairs"
    assert len(baseline_N) > 0, "at least one pair"
    logs_N = np.log(baseline_N) - np.log(candidate_N)  # noqa: N806
    middle = float(np.median(logs_N))
    rng = np.random.default_rng(seed)
    picks_BN = rng.integers(0, len(logs_N), size=(RESAMPLES, len(logs_N)))  # noqa: N806
    low, high = np.quantile(np.median(logs_N[picks_BN], axis=1), _TAILS)
    ratios_N = np.exp(logs_N)  # noqa: N806
    return RatioEstimate(
        ratio=float(np.exp(middle)),
        # The sample's median may lie at the edge of its few resampled medians.
        low=float(np.exp(min(low, middle))),
        high=float(np.exp(max(high, middle))),
        noise=float(ratios_N.std() / ratios_N.mean()),
    )
