"""What is believed of every metric that a goal names, learnt from trials and from a profile.

Axis legend: N = networks, Q = quantities, T = trials, K = terms, D = dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from autoprune.domain.objective import Constraint, Direction, Goal, Objective
from autoprune.domain.profile import Profile
from autoprune.searchers.frontier.amounts import Amounts, amounts_of, is_cost
from autoprune.searchers.frontier.belief import Belief, Prior, Sums, heavy_tailed, likeliest
from autoprune.searchers.frontier.lattice import Array, Lattice, Levels
from autoprune.searchers.frontier.profiled import Profiled
from autoprune.searchers.frontier.terms import COST, LOSS, Tables, Terms

MOST = 320
"""Sums that are learnt from, which bounds an ask's time: those of a profile, then trials, the
newest of those that are of use first."""

JUDGED = 128
"""Trials by which deviations are judged."""

GROWTH = 1.1
"""Deviations are judged anew when there are this many times the trials."""


@dataclass(frozen=True)
class Told:
    """A trial that was told of: its levels, and its metrics where it gave any.

    `complete` tells whether it went through every stage, else quality was not recovered;
    `feasible` whether it has broken no constraint so far, also where it paused on the ladder.
    """

    levels_D: Levels  # noqa: N815
    metrics: Mapping[str, float]
    complete: bool = False
    feasible: bool = False


@dataclass(frozen=True)
class Quantity:
    """A metric to be learnt: its better direction, and the value that counts as good enough."""

    objective: Objective
    edge: float

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.objective.metric

    def known(self, trial: Told) -> bool:
        """Whether the trial tells of it; of costs also one that a constraint ended early does."""
        return self.metric in trial.metrics and (trial.complete or is_cost(self.metric))


@dataclass(frozen=True)
class Known:
    """A quantity's amounts, and what is believed of them."""

    quantity: Quantity
    amounts: Amounts
    terms: Terms
    belief: Belief

    def drawn(self, rng: np.random.Generator, spread: float) -> Tables:
        """What may be true of it; spread 0 gives the mean."""
        return self.terms.tables(self.belief.draw(rng, spread))


@dataclass(frozen=True)
class Draw:
    """One thing that may be true of every quantity."""

    known: Sequence[Known]
    tables: Sequence[Tables]

    def values(self, levels_ND: Levels) -> Array:  # noqa: N803
        """The metrics of networks, of shape (N, Q)."""
        columns = zip(self.known, self.tables, strict=True)
        return np.column_stack([one.amounts.values(table.of(levels_ND)) for one, table in columns])

    def short(self, levels_ND: Levels) -> Array:  # noqa: N803
        """By how much, in amounts, networks are worse than is good enough, of shape (N,)."""
        short_N = np.zeros(len(levels_ND))  # noqa: N806
        for one, table in zip(self.known, self.tables, strict=True):
            enough = one.amounts.of(np.array([one.quantity.edge]))
            short_N += np.maximum(table.of(levels_ND) - enough, 0.0)  # noqa: N806
        return short_N


def quantities(goal: Goal) -> list[Quantity]:
    """The goal's objectives with their references, then what else its constraints name."""
    found = {
        objective.metric: Quantity(objective, edge)
        for objective, edge in zip(goal.objectives, goal.reference, strict=True)
    }
    for constraint in goal.constraints:
        found.setdefault(constraint.metric, _bounded(constraint))
    return list(found.values())


def _bounded(constraint: Constraint) -> Quantity:
    if np.isfinite(constraint.high):
        return Quantity(Objective(constraint.metric, Direction.MIN), constraint.high)
    return Quantity(Objective(constraint.metric, Direction.MAX), constraint.low)


@dataclass(frozen=True)
class _Judged:
    """What the deviations of a quantity were found to be, as factors of what is first thought."""

    weights_K: Array | float = 1.0  # noqa: N815
    doubt: float = 1.0
    noise: float = 1.0
    count: int = 0

    @classmethod
    def by(cls, prior: Prior, seen: Sums, *, count: int) -> Self:
        """By sums that came to be known of `count` trials."""
        wide, noisy = likeliest(prior, seen)
        found = heavy_tailed(prior.scaled(wide), seen.scaled(noisy))
        return cls(found.sd_K / prior.sd_K, wide, noisy, count)

    def belief(self, prior: Prior, seen: Sums) -> Belief:
        """What is believed with such deviations."""
        sd_K = self.weights_K * prior.sd_K  # noqa: N806
        return Belief(Prior(prior.mean_K, sd_K, self.doubt * prior.doubt), seen.scaled(self.noise))


class Model:
    """Bayesian sums for every quantity, whose deviations are judged from time to time."""

    def __init__(self, lattice: Lattice, goal: Goal, profile: Profile | None) -> None:
        self.quantities = quantities(goal)
        self._lattice = lattice
        self._terms = {family: Terms(family, lattice) for family in (COST, LOSS)}
        self._profiled = [
            Profiled.of(quantity.objective, profile, lattice) for quantity in self.quantities
        ]
        self._judged = [_Judged() for _ in self.quantities]

    def fit(self, told: Sequence[Told]) -> list[Known]:
        """What is believed after these trials.

        The deviations of one quantity at most are judged in a call, so that none takes long.
        """
        oldest = min(range(len(self._judged)), key=lambda at: self._judged[at].count)
        due = len(told) >= GROWTH * self._judged[oldest].count
        return [
            self._known(at, told, judge=due and at == oldest) for at in range(len(self._judged))
        ]

    def _known(self, at: int, told: Sequence[Told], *, judge: bool) -> Known:
        quantity, profiled = self.quantities[at], self._profiled[at]
        trials = [trial for trial in told if quantity.known(trial)]
        values_T = np.array([trial.metrics[quantity.metric] for trial in trials])  # noqa: N806
        amounts = amounts_of(
            quantity.objective, quantity.edge, np.append(values_T, profiled.values_T)
        )
        terms = self._terms[amounts.family]
        amount_T = amounts.of(values_T)  # noqa: N806
        chosen_T = _useful(amount_T)[: MOST - len(profiled.values_T)]  # noqa: N806
        levels_TD = np.array([trials[place].levels_D for place in chosen_T], dtype=np.int64)  # noqa: N806
        tried = self._lattice.networks(levels_TD.reshape(-1, len(self._lattice.counts_D)))
        amount_T = np.append(amount_T[chosen_T], amounts.of(profiled.values_T))  # noqa: N806
        terms_TK = np.vstack([terms.of(tried), terms.of(profiled.networks)])  # noqa: N806
        seen = Sums(terms_TK, amount_T, amounts.deviation(amount_T))
        prior = terms.prior(profiled.relative(amounts))
        if judge:
            self._judged[at] = _Judged.by(prior, seen.first(JUDGED), count=len(told))
        return Known(quantity, amounts, terms, self._judged[at].belief(prior, seen))


def _useful(amount_T: Array) -> Levels:  # noqa: N803
    """The order of trials by use: those no worse than is good enough first, then the newest."""
    return np.lexsort((-np.arange(len(amount_T)), amount_T > 1.0))
