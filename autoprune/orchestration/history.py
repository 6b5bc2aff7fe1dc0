"""What was told of a sweep's trials, kept so that a look at any moment costs next to nothing."""

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import overload

from autoprune.domain.objective import Goal
from autoprune.domain.pareto import ParetoFront, Points
from autoprune.domain.trial import Failure, Measurement, Observation, latest

STATES = ("finished", "paused", "stopped", "failed")
"""Through every stage, on a rung of the ladder, by a constraint, and with a fault."""


def state_of(observation: Observation) -> str:
    """Which of `STATES` a trial is in."""
    if observation.rung is not None:
        return "paused"
    match observation.outcome:
        case Measurement() as measurement:
            return "finished" if measurement.complete else "stopped"
        case Failure():
            return "failed"


class LastTold(Sequence[Observation]):
    """What was told last of every trial, in the order of arrival, as of one moment.

    How many there are, their `front` and the `counts` of their states are known at once; the
    observations are gathered where somebody looks at them.
    """

    def __init__(
        self,
        tellings: Sequence[Observation],
        *,
        told: int,
        front: ParetoFront,
        counts: Mapping[str, int],
    ) -> None:
        """As of the first `told` of `tellings`, which may grow."""
        self._tellings, self._told = tellings, told
        self.front, self.counts = front, counts

    @cached_property
    def _gathered(self) -> tuple[Observation, ...]:
        return tuple(latest(self._tellings[: self._told]).values())

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[Observation]:
        return iter(self._gathered)

    @overload
    def __getitem__(self, at: int) -> Observation: ...

    @overload
    def __getitem__(self, at: slice) -> tuple[Observation, ...]: ...

    def __getitem__(self, at: int | slice) -> Observation | tuple[Observation, ...]:
        return self._gathered[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._gathered == tuple(other)


class History:
    """Everything that was told of the trials of a sweep, in order; `now` is how they stand.

    To take in an outcome costs time with the size of the front, not with that of the sweep.
    """

    def __init__(self, goal: Goal) -> None:
        self._goal = goal
        self._tellings: list[Observation] = []
        self._last: dict[int, Observation] = {}
        self._points = Points(goal)
        self._counts = Counter(dict.fromkeys(STATES, 0))
        self._front = ParetoFront(goal)
        self._behind: Sequence[int] | None = None
        self.busy_s = 0.0

    def take(self, observation: Observation) -> None:
        """Take in an outcome; what is told of a trial takes the place of what was told before."""
        number = observation.trial.number
        before = self._last.pop(number, None)
        self._last[number] = observation
        self._tellings.append(observation)
        self._counts[state_of(observation)] += 1
        self.busy_s += observation.seconds
        if before is not None:
            self._counts[state_of(before)] -= 1
            self.busy_s -= before.seconds
        former = self._front
        if number in former:
            # what it was worth before may have kept others off the front
            among = self._points.beaten(number)
            among[[member.trial.number for member in former.members]] = True
            self._points.put(observation)
            found = self._points.front(among)
            self._front = ParetoFront(self._goal, (self._last[n] for n in found))
        else:
            self._points.put(observation)
            front = copy.copy(former)
            if front.add(observation):
                self._front = front
        if self._front is not former:
            self._behind = None

    def of(self, number: int) -> Observation | None:
        """What was told last of a trial."""
        return self._last.get(number)

    @property
    def told(self) -> int:
        """How many outcomes there were, of the rungs of a ladder too."""
        return len(self._tellings)

    @property
    def front(self) -> ParetoFront:
        """The front of what was told last of every trial; a later one is another object."""
        return self._front

    def behind(self, running: Collection[int]) -> Sequence[int]:
        """The numbers of the front that there would be without the trials that run.

        Worked out again only when the front has changed: it takes time with all outcomes there are.
        """
        if self._behind is None:
            self._behind = self._points.front(self._points.without(running))
        return self._behind

    @property
    def now(self) -> LastTold:
        """How the trials stand at this moment."""
        return LastTold(
            self._tellings, told=self.told, front=self._front, counts=dict(self._counts)
        )
