"""What trials found out, as numbers that a reward can be computed from, many at once.

Axis legend: N = outcomes, M = objectives.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from autoprune.domain.objective import COST_METRICS, DEFAULT_TOLERANCE, Goal, Objective
from autoprune.domain.trial import Measurement, Outcome

Array = NDArray[np.float64]

FAILED = -1.0
"""The gain in every objective of a trial that failed, as of one that lost a dozen units."""

_KNEE = 0.25


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of trials as rewards see them.

    `gain_NM` is how much better than the reference point each objective is: 0 there, 1 at the
    best of the outcomes. Below 0 it falls as a logarithm does: networks that are cut too far lose
    a hundred times what is tolerable, and a critic that chased them would miss what is of use.
    `error_N` is the main objective as an error (1 - accuracy), `share_N` the time as a share of
    the baseline's, `violation_N` the sum over constraints of how far each is broken, in shares of
    its bound.

    A trial that failed, or was stopped before it had all objectives and a speedup, gains `FAILED`
    everywhere, with an error of 1 and the baseline's time.
    """

    gain_NM: Array  # noqa: N815
    error_N: Array  # noqa: N815
    share_N: Array  # noqa: N815
    violation_N: Array  # noqa: N815

    @classmethod
    def of(cls, goal: Goal, outcomes: Iterable[Outcome], *, unit_M: Array | None = None) -> Self:  # noqa: N803
        """The outcomes of trials, gains in units of `unit_M`, their best by default."""
        measured = [_told(goal, outcome) for outcome in outcomes]
        advance_NM = np.array([_advances(goal, one) for one in measured])  # noqa: N806
        advance_NM = advance_NM.reshape(-1, len(goal.objectives))  # noqa: N806
        unit_M = _best(advance_NM, default_units(goal)) if unit_M is None else unit_M  # noqa: N806
        gain_NM = advance_NM / unit_M  # noqa: N806
        lost_NM = np.log1p(-np.minimum(gain_NM, 0.0) / _KNEE) * _KNEE  # noqa: N806
        gain_NM = np.maximum(gain_NM, 0.0) - lost_NM  # noqa: N806
        return cls(
            np.where(np.isnan(gain_NM), FAILED, gain_NM),
            np.array([1.0 if one is None else _error(goal.main, one) for one in measured]),
            np.array([1.0 if one is None else 1.0 / one.metrics["speedup"] for one in measured]),
            np.array([0.0 if one is None else goal.violation(one.metrics) for one in measured]),
        )

    def __getitem__(self, at: NDArray[np.int64]) -> Self:
        """The outcomes at some places, in that order."""
        return type(self)(
            self.gain_NM[at], self.error_N[at], self.share_N[at], self.violation_N[at]
        )

    def __len__(self) -> int:
        return len(self.error_N)


def default_units(goal: Goal) -> Array:
    """Units of gains before any is known: the default tolerance of a metric, a cost's factor 2."""
    return np.array(
        [
            math.log(2.0) if _in_factors(o, r) else DEFAULT_TOLERANCE * abs(r) or 1.0
            for o, r in zip(goal.objectives, goal.reference, strict=True)
        ]
    )


def _best(advance_NM: Array, default_M: Array) -> Array:  # noqa: N803
    """The largest advance in each objective of those better than the reference in all of them."""
    useful_NM = advance_NM[(advance_NM > 0.0).all(axis=1)]  # noqa: N806
    return useful_NM.max(axis=0) if len(useful_NM) else default_M


def _told(goal: Goal, outcome: Outcome) -> Measurement | None:
    """The measurement, where it has all that rewards are computed from."""
    needed = {"speedup", *(objective.metric for objective in goal.objectives)}
    if isinstance(outcome, Measurement) and needed <= outcome.metrics.keys():
        return outcome
    return None


def _in_factors(objective: Objective, reference: float) -> bool:
    """Whether an objective counts in factors, as costs do, not in differences."""
    return objective.metric in COST_METRICS and reference > 0.0


def _advances(goal: Goal, outcome: Measurement | None) -> list[float]:
    """How far beyond the reference every objective is, in logarithms of factors or differences."""
    if outcome is None:
        return [math.nan] * len(goal.objectives)
    found = []
    for objective, reference in zip(goal.objectives, goal.reference, strict=True):
        value = outcome.metrics[objective.metric]
        if _in_factors(objective, reference):
            found.append(objective.direction.sign * math.log(max(value, 1e-12) / reference))
        else:
            found.append(objective.direction.sign * (value - reference))
    return found


def _error(main: Objective, outcome: Measurement) -> float:
    value = outcome.metrics[main.metric]
    return 1.0 - value if main.direction.sign > 0 else value
