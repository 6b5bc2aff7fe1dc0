"""What a network will come to after recovery, from what others came to: no more than they say.

Axis legend: N = networks that recovered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

TELLING = 0.5
"""An interval that is likelier to miss a value than to hold it tells nothing of it."""

_MISS = 0.025


@dataclass(frozen=True, slots=True)
class Expectation:
    """A value after recovery, more being better, with the ends of an interval.

    The interval holds it with a chance of `level` at least; an end is None where nobody tells of
    it. `count` networks were looked at.
    """

    value: float
    low: float | None
    high: float | None
    level: float
    count: int

    @property
    def telling(self) -> bool:
        """Whether the interval says how far the value may be off."""
        return self.level >= TELLING


def expected_after(pairs: Sequence[tuple[float, float]], before: float) -> Expectation | None:
    """What a network that is worth `before` before recovery comes to; None where nobody tells.

    `pairs` are what others were worth before and after the same recovery, more being better. It
    is assumed that who is worth more before is, but for luck, not worth less after. The value is
    isotonic regression's (Barlow et al. 1972). The ends are order statistics of those that were
    hit as hard or harder, and as little or less: of n of them the k-th worst is passed with a
    chance of 1 - k / (n + 1) whatever their distribution (as in conformal prediction, Vovk et al.
    2005). k is as large as a chance of 97.5% allows, and 1 where n is too small for that.
    """
    harder = sorted(after for worth, after in pairs if worth <= before)
    milder = sorted((after for worth, after in pairs if worth >= before), reverse=True)
    if not pairs:
        return None
    ends: list[float | None] = []
    level = 1.0
    for found in (harder, milder):
        rank = max(1, int(_MISS * (len(found) + 1)))
        ends.append(found[rank - 1] if found else None)
        level -= rank / (len(found) + 1) if found else 0.0
    low, high = ends
    if low is not None and high is not None:
        low, high = min(low, high), max(low, high)
    value = _isotonic(pairs, before)
    value = value if low is None else max(value, low)
    value = value if high is None else min(value, high)
    return Expectation(value, low, high, level=level, count=len(pairs))


def _isotonic(pairs: Sequence[tuple[float, float]], before: float) -> float:
    """The rising step function nearest to the pairs, between its steps along a line."""
    ordered_N2 = np.array(sorted(pairs))  # noqa: N806
    worth, where = np.unique(ordered_N2[:, 0], return_inverse=True)
    count = np.bincount(where)
    mean = np.bincount(where, weights=ordered_N2[:, 1]) / count
    return float(np.interp(before, worth, isotonic_regression(mean, weights=count).x))
