"""The Pareto front of a sweep. Domination, ranks and hypervolume are moocore's.

Axis legend: N = trials, M = objectives.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

from autoprune.domain.objective import Goal
from autoprune.domain.trial import Measurement, Observation


class ParetoFront:
    """The feasible observations that no other one dominates, whatever order they arrive in.

    Of several observations with equal objective values the one with the lowest trial number
    stays. What is added later leaves a copy (``copy.copy``) as it was.
    """

    def __init__(self, goal: Goal, observations: Iterable[Observation] = ()) -> None:
        self.goal = goal
        self._members: dict[int, Observation] = {}
        self._points: dict[int, tuple[float, ...]] = {}
        self._hypervolume: float | None = None
        self._take(observations)

    def add(self, observation: Observation) -> bool:
        """Take in an observation; True where it joins the front."""
        self._take([observation])
        return self._members.get(observation.trial.number) is observation

    def _take(self, observations: Iterable[Observation]) -> None:
        found, points = dict(self._members), dict(self._points)
        for observation in observations:
            point = point_of(self.goal, observation)
            if point is not None:
                found[observation.trial.number] = observation
                points[observation.trial.number] = point
        if not points:
            return
        numbers = sorted(points)
        keep = moocore.is_nondominated(
            np.array([points[n] for n in numbers]), maximise=self.goal.maximise, keep_weakly=False
        )
        kept = [n for n, kept in zip(numbers, keep, strict=True) if kept]
        self._members = {n: found[n] for n in kept}
        self._points = {n: points[n] for n in kept}
        self._hypervolume = None

    @property
    def members(self) -> tuple[Observation, ...]:
        """The front, best first by the first objective, then by trial number."""
        sign = -1.0 if self.goal.maximise[0] else 1.0
        return tuple(
            self._members[n]
            for n in sorted(self._points, key=lambda n: (sign * self._points[n][0], n))
        )

    def hypervolume(self, reference: Sequence[float] | None = None) -> float:
        """The volume dominated between the front and `reference` (the goal's by default)."""
        if reference is not None:
            return self._volume(reference)
        if self._hypervolume is None:
            self._hypervolume = self._volume(self.goal.reference)
        return self._hypervolume

    def _volume(self, reference: Sequence[float]) -> float:
        if not self._members:
            return 0.0
        points = np.array(list(self._points.values()))
        return float(moocore.hypervolume(points, ref=list(reference), maximise=self.goal.maximise))

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, number: object) -> bool:
        return number in self._members


def point_of(goal: Goal, observation: Observation) -> tuple[float, ...] | None:
    """The objectives' values of a feasible observation; None for one that can be on no front."""
    outcome = observation.outcome
    if isinstance(outcome, Measurement) and goal.feasible(outcome):
        return goal.values(outcome)
    return None


class Points:
    """The objectives' values of trials by number, in one array: any choice is compared at once."""

    def __init__(self, goal: Goal) -> None:
        self._goal = goal
        self._sign_M = np.where(goal.maximise, 1.0, -1.0)
        self._points_NM = np.full((64, len(goal.objectives)), np.nan)  # more is better

    def put(self, observation: Observation) -> None:
        """Note where a trial stands now, which may be on no front."""
        number, point = observation.trial.number, point_of(self._goal, observation)
        while number >= len(self._points_NM):
            more_NM = np.full_like(self._points_NM, np.nan)  # noqa: N806
            self._points_NM = np.concatenate([self._points_NM, more_NM])
        self._points_NM[number] = np.nan if point is None else self._sign_M * point

    def beaten(self, number: int) -> NDArray[np.bool_]:
        """Of every trial whether it is nowhere better than `number`."""
        beaten: NDArray[np.bool_] = (self._points_NM <= self._points_NM[number]).all(axis=1)
        return beaten

    def without(self, numbers: Collection[int]) -> NDArray[np.bool_]:
        """Of every trial whether it is none of `numbers`."""
        among = np.ones(len(self._points_NM), dtype=bool)
        among[list(numbers)] = False
        return among

    def front(self, among: NDArray[np.bool_]) -> list[int]:
        """The numbers of those of a choice of trials that no other one of them dominates."""
        numbers = np.flatnonzero(among & ~np.isnan(self._points_NM[:, 0]))
        if not len(numbers):
            return []
        points_NM = self._points_NM[numbers]  # noqa: N806
        keep = moocore.is_nondominated(points_NM, maximise=True, keep_weakly=False)
        return [int(number) for number in numbers[keep]]


def best_first(
    goal: Goal, outcomes: Mapping[int, Measurement], *, most: int | None = None
) -> list[int]:
    """The numbers of the best `most` trials (None is all of them), the best of them first.

    The order of `outcomes` never matters. Those that break constraints come last, the less broken
    before the more. The others come front by front (non-dominated sorting: Deb et al. 2002,
    doi:10.1109/4235.996017), and within a front so that any number of the first ones is spread over
    it: after the one that is best by the first objective always the one farthest from those before
    (an epsilon net: Schmucker et al. 2021, arXiv:2106.12639), in units of the front's extent.
    """
    numbers = sorted(outcomes)
    most = len(numbers) if most is None else most
    broken = {number: goal.violation(outcomes[number].metrics) for number in numbers}
    feasible = [number for number in numbers if not broken[number]]
    ordered: list[int] = []
    if feasible:
        points_NM = np.array([goal.values(outcomes[number]) for number in feasible])  # noqa: N806
        rank_N = moocore.pareto_rank(points_NM, maximise=list(goal.maximise))  # noqa: N806
        for rank in np.unique(rank_N):
            if len(ordered) >= most:
                return ordered
            members = np.flatnonzero(rank_N == rank)
            spread = _spread(goal, points_NM[members], most - len(ordered))
            ordered += [feasible[members[at]] for at in spread]
    infeasible = sorted((n for n in numbers if broken[n]), key=lambda n: (broken[n], n))
    return [*ordered, *infeasible][:most]


def _spread(goal: Goal, points_NM: NDArray[np.float64], most: int) -> list[int]:  # noqa: N803
    """At most so many points, each the farthest from all before; the first is the best."""
    extent_M = np.ptp(points_NM, axis=0)  # noqa: N806
    scaled_NM = points_NM / np.where(extent_M > 0.0, extent_M, 1.0)  # noqa: N806
    main_N = points_NM[:, 0] * (1.0 if goal.maximise[0] else -1.0)  # noqa: N806
    order = [int(main_N.argmax())]
    near_N = np.full(len(points_NM), np.inf)  # noqa: N806
    while len(order) < min(most, len(points_NM)):
        off_NM = scaled_NM - scaled_NM[order[-1]]  # noqa: N806
        near_N = np.minimum(near_N, np.einsum("nm,nm->n", off_NM, off_NM))  # noqa: N806
        near_N[order[-1]] = -1.0
        order.append(int(near_N.argmax()))
    return order
