"""The Pareto front of a sweep. Domination and hypervolume are moocore's."""

from collections.abc import Iterable, Sequence

import moocore
import numpy as np

from autoprune.domain.objective import Goal
from autoprune.domain.trial import Measurement, Observation


class ParetoFront:
    """The feasible observations that no other one dominates, whatever order they arrive in.

    Of several observations with equal objective values the one with the lowest trial number
    stays.
    """

    def __init__(self, goal: Goal, observations: Iterable[Observation] = ()) -> None:
        self.goal = goal
        self._members: dict[int, Observation] = {}
        for observation in observations:
            self.add(observation)

    def add(self, observation: Observation) -> bool:
        """Take in an observation; True where it joins the front."""
        outcome = observation.outcome
        if not isinstance(outcome, Measurement) or not self.goal.feasible(outcome):
            return False
        candidates = {**self._members, observation.trial.number: observation}
        numbers = sorted(candidates)
        points = np.array([self._point(candidates[n]) for n in numbers])
        keep = moocore.is_nondominated(points, maximise=self.goal.maximise, keep_weakly=False)
        self._members = {n: candidates[n] for n, kept in zip(numbers, keep, strict=True) if kept}
        return observation.trial.number in self._members

    @property
    def members(self) -> tuple[Observation, ...]:
        """The front, best first by the first objective, then by trial number."""
        sign = -1.0 if self.goal.maximise[0] else 1.0
        return tuple(
            sorted(
                self._members.values(),
                key=lambda o: (sign * self._point(o)[0], o.trial.number),
            )
        )

    def hypervolume(self, reference: Sequence[float] | None = None) -> float:
        """The volume dominated between the front and `reference` (the goal's by default)."""
        if not self._members:
            return 0.0
        points = np.array([self._point(o) for o in self.members])
        ref = self.goal.reference if reference is None else reference
        return float(moocore.hypervolume(points, ref=list(ref), maximise=self.goal.maximise))

    def _point(self, observation: Observation) -> tuple[float, ...]:
        assert isinstance(observation.outcome, Measurement)
        return self.goal.values(observation.outcome)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, number: object) -> bool:
        return number in self._members
