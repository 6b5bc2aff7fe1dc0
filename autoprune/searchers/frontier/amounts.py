"""Metrics as amounts that add up over groups and that are better the smaller they are."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autoprune.domain.objective import (
    DEFAULT_TOLERANCE,
    SIZE_METRICS,
    SPEED_METRICS,
    Direction,
    Objective,
)
from autoprune.searchers.frontier.lattice import Array
from autoprune.searchers.frontier.terms import COST, LOSS, Family

LEAST = 1e-3
"""The least share, speedup or throughput that is told from none."""


class Amounts(Protocol):
    """How a metric's values and the amounts that stand for them correspond."""

    @property
    def family(self) -> Family:
        """What is known of such sums."""
        ...

    def of(self, values: Array) -> Array:
        """The amounts of values."""
        ...

    def values(self, amounts: Array) -> Array:
        """The values of amounts."""
        ...

    def deviation(self, amounts: Array) -> Array:
        """How far sums of terms may be off amounts that were measured, as standard deviations."""
        ...


@dataclass(frozen=True, slots=True)
class Cost:
    """Time or size as a share of `whole`; of speedups and throughputs, their inverse."""

    direction: Direction
    whole: float
    family: Family = COST

    def of(self, values: Array) -> Array:
        """Values in shares of the whole."""
        return _cost(values, self.direction) / self.whole

    def values(self, amounts: Array) -> Array:
        """Shares of a thousandth at least, as values."""
        return _cost(np.maximum(amounts, LEAST) * self.whole, self.direction)

    def deviation(self, amounts: Array) -> Array:
        """A percent: what is measured is measured well."""
        return 0.01 * np.maximum(np.abs(amounts), LEAST)


@dataclass(frozen=True, slots=True)
class Loss:
    """Quality lost since the best that was seen, in units of the `best` over the `edge`.

    More than four units are as bad as four: such networks are of no use.
    """

    direction: Direction
    edge: float
    unit: float
    family: Family = LOSS

    def of(self, values: Array) -> Array:
        """Values as units lost."""
        gained = self.direction.sign * (values - self.edge) / self.unit
        return np.asarray(np.clip(1.0 - gained, -1.0, 4.0))

    def values(self, amounts: Array) -> Array:
        """Units lost as values."""
        return np.asarray(self.edge + self.direction.sign * self.unit * (1.0 - amounts))

    def deviation(self, amounts: Array) -> Array:
        """More where more is lost: there sums are a poor description."""
        return 0.05 + 0.1 * np.abs(amounts)


def is_cost(metric: str) -> bool:
    """Whether a metric is what a network costs, which is known without recovery."""
    return metric in SIZE_METRICS or metric.startswith(tuple(SPEED_METRICS))


def amounts_of(objective: Objective, edge: float, seen_T: Array) -> Amounts:  # noqa: N803
    """What stands for an objective's metric, given its reference and the values seen.

    The whole of a cost is the largest one seen, or its reference, and the unit of a loss the best
    over its reference. Where nothing is better than the reference, it is what a task tolerates by
    default, and where the reference is 0 as well, the range of what was seen.
    """
    direction = objective.direction
    if is_cost(objective.metric):
        costs = _cost(np.append(seen_T, edge if edge > 0 else []), direction)
        return Cost(direction, float(costs.max(initial=0.0)) or 1.0)
    best = float((direction.sign * (seen_T - edge)).max(initial=0.0))
    spread = float(np.ptp(seen_T)) if len(seen_T) else 0.0
    return Loss(direction, edge, best or DEFAULT_TOLERANCE * abs(edge) or spread or 1.0)


def _cost(values: Array, direction: Direction) -> Array:
    """Values of which less is better; its own inverse."""
    return values if direction is Direction.MIN else 1.0 / np.maximum(values, LEAST)
