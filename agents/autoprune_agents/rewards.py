"""What an episode is worth at its end.

Axis legend: N = outcomes, M = objectives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.objective import Goal
from autoprune_agents.outcomes import Array, Outcomes


class Reward(Protocol):
    """Rewards of outcomes, each under a preference; the higher the better, of the order of 1."""

    def __call__(self, outcomes: Outcomes, preference_NM: Array) -> Array:  # noqa: N803
        """The rewards, of shape (N,); a row of `preference_NM` is not negative and sums to 1."""
        ...


@dataclass(frozen=True, slots=True)
class Scalarised:
    """The gains weighed by the preference, so that one agent covers the front.

    The augmented Chebyshev scalarisation (Steuer and Choo 1983, doi:10.1007/BF02591870) of gains
    from the reference point: the least of gain over weight, shared by the objectives, plus
    `linear` times the sum of gains; weights count as no less than `least`. Its best outcome for a
    preference is where the ray along it leaves the front, also where the front is not convex;
    averaged over preferences it is what raises the hypervolume (Golovin and Zhang 2020,
    arXiv:2006.04655). Broken constraints are subtracted.
    """

    linear: float = 0.05
    least: float = 0.05

    def __call__(self, outcomes: Outcomes, preference_NM: Array) -> Array:  # noqa: N803
        """The rewards, of shape (N,)."""
        gain_NM = outcomes.gain_NM  # noqa: N806
        weight_NM = np.maximum(preference_NM, self.least)  # noqa: N806
        # what is lost is not weighed: it is of no use whatever is preferred
        over_NM = np.where(gain_NM > 0.0, gain_NM / weight_NM, gain_NM)  # noqa: N806
        reward_N: Array = over_NM.min(axis=1) / gain_NM.shape[1]  # noqa: N806
        reward_N += self.linear * gain_NM.sum(axis=1) - outcomes.violation_N  # noqa: N806
        return reward_N


@dataclass(frozen=True, slots=True)
class AccuracyUnderLatency:
    """The gain in the main objective, less what the time is over `budget`.

    `budget` is a share of the baseline's time. Each factor of e above it costs `price`. Raises
    AutopruneError for a budget outside (0, 1].
    """

    budget: float = 0.5
    price: float = 4.0

    def __post_init__(self) -> None:
        if not 0.0 < self.budget <= 1.0:
            raise AutopruneError(
                f"a latency budget of {self.budget} of the baseline's time; choose it in (0, 1]"
            )

    def __call__(self, outcomes: Outcomes, preference_NM: Array) -> Array:  # noqa: N803
        """The rewards, of shape (N,), whatever the preference."""
        over_N: Array = np.maximum(np.log(outcomes.share_N / self.budget), 0.0)  # noqa: N806
        return outcomes.gain_NM[:, 0] - self.price * over_N - outcomes.violation_N


@dataclass(frozen=True, slots=True)
class AmcError:
    """AMC's reward of its resource-constrained search: minus the error (He et al. 2018).

    It says nothing of speed: that is what the wall is for.
    """

    def __call__(self, outcomes: Outcomes, preference_NM: Array) -> Array:  # noqa: N803
        """The rewards, of shape (N,), whatever the preference."""
        return -outcomes.error_N


@dataclass(frozen=True, slots=True)
class AmcLatency:
    """AMC's reward of its accuracy-guaranteed search, ``-error * log(FLOPs)``, with latency.

    The time is counted in units of which the baseline takes `whole`, so that its logarithm has
    the size that AMC's has for networks of 10^8 operations.
    """

    whole: float = 1e8

    def __call__(self, outcomes: Outcomes, preference_NM: Array) -> Array:  # noqa: N803
        """The rewards, of shape (N,), whatever the preference."""
        return -outcomes.error_N * np.log(self.whole * outcomes.share_N)


REWARDS: dict[str, Reward] = {
    "scalarised": Scalarised(),
    "accuracy_under_latency": AccuracyUnderLatency(),
    "amc_error": AmcError(),
    "amc_latency": AmcLatency(),
}
"""The rewards by name, with their defaults."""


def reward_named(reward: str | Reward) -> Reward:
    """A reward by name, or itself. Raises AutopruneError with the near miss."""
    if callable(reward):
        return reward
    if not isinstance(reward, str) or reward not in REWARDS:
        raise unknown("reward", reward, REWARDS)
    return REWARDS[reward]


def weights(goal: Goal, preference: Mapping[str, float]) -> Array:
    """A preference by objective as weights that sum to 1, of shape (M,); those left out are 0.

    Raises AutopruneError for an objective that the goal does not have, and for weights that are
    negative or all 0.
    """
    names = [objective.metric for objective in goal.objectives]
    if not isinstance(preference, Mapping):
        raise AutopruneError(
            f"the preference is {preference!r}; give a weight by objective, such as "
            f"{{{names[0]}: 1.0}}"
        )
    for name in preference:
        if name not in names:
            raise unknown("preference for an objective", name, names)
    try:
        found = np.array([float(preference.get(name, 0.0)) for name in names])
    except (TypeError, ValueError) as error:
        raise AutopruneError(
            f"the preference {dict(preference)} has a weight that is no number; weigh {names}"
        ) from error
    if not (np.isfinite(found).all() and (found >= 0.0).all() and found.sum() > 0.0):
        raise AutopruneError(
            f"the preference {dict(preference)} needs weights of at least 0 with one above it; "
            f"weigh {names}"
        )
    return np.asarray(found / found.sum())
