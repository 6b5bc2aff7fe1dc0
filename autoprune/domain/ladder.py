"""The ladder of fidelities: trials pause on its rungs, and only the best of a rung climb on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import spearmanr

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Goal
from autoprune.domain.pareto import best_first
from autoprune.domain.trial import Measurement, Observation
from autoprune.domain.typed import check_types

ENOUGH = 8
"""Trials that a rank correlation needs before it says anything of a rung."""

GOOD_AGREEMENT = 0.5
"""A rung whose ranks agree less with those at the top predicts badly."""

EXACT = 256
"""Up to so many trials orders and correlations are worked out anew with each further trial."""

SLACK = 1 / 16
"""Of more trials than that they are worked out anew when their number has grown by this share:
doing so with each would take a sweep of n trials n squared steps."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """Where trials are compared: after how many epochs of recovery, and which part climbs on.

    After 0 epochs it is the network as it was cut, with its batch norm recalibrated. One in
    `reduction` trials of a rung goes on to the next; the top, above the last rung, is the end of
    recovery. Of n trials about n / reduction ** rungs reach it: one rung suits tens of trials, two
    or three suit hundreds. `finish_front` brings every member of the front to the top once the
    budget allows no new trial, and in slots that are free meanwhile those that may yet join it.
    """

    epochs: tuple[int, ...] = (0,)
    reduction: float = 4.0
    finish_front: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        if not self.epochs or list(self.epochs) != sorted({*self.epochs}) or self.epochs[0] < 0:
            raise AutopruneError(
                f"ladder.epochs is {list(self.epochs)}; give epochs of recovery from 0 on, at "
                "least one, each more than the one before"
            )
        if not (math.isfinite(self.reduction) and self.reduction > 1.0):
            raise AutopruneError(f"ladder.reduction is {self.reduction:g}; choose more than 1")

    def mean_epochs(self, epochs: int) -> float:
        """Epochs of recovery that a trial gets on average, of `epochs` up to the top."""
        ends = [min(rung, epochs) for rung in (*self.epochs, epochs)]
        lengths = np.diff(ends, prepend=0)
        return float(lengths @ self.reduction ** -np.arange(len(lengths)))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well a rung ranks trials by the main metric, by Spearman's correlation with the top.

    Over the `count` trials that reached both. They are the better ones of the rung, which alone
    makes their ranks agree less than those of all would. None where all values are the same.
    """

    epochs: int
    spearman: float | None
    count: int

    @property
    def bad(self) -> bool:
        """Whether the rung predicts badly, as far as can be told."""
        if self.spearman is None or self.count < ENOUGH:
            return False
        return self.spearman < GOOD_AGREEMENT

    def __str__(self) -> str:
        rank = "none" if self.spearman is None else f"{self.spearman:.2f}"
        remedy = "predicts badly: raise ladder.epochs or leave that rung out" if self.bad else "ok"
        return (
            f"the rung at {self.epochs} epochs has a rank correlation of {rank} with the top over "
            f"{self.count} trials ({remedy})"
        )


@dataclass(slots=True)
class _Order:
    """The best of the first `count` trials that came to a rung: their numbers, best first, and the
    place of each in that order.

    None of the first `passed` of them waits any more.
    """

    count: int = 0
    numbers: list[int] = field(default_factory=list)
    place: dict[int, int] = field(default_factory=dict)
    passed: int = 0


class Rungs:
    """Who stands on which rung, and who may climb.

    Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): whenever a slot is free,
    the best trial that waits on the highest rung and is among the first 1 / reduction there goes
    on; nobody waits for a rung to fill. What is best is decided by non-dominated sorting, ties by
    an epsilon net (Schmucker et al. 2021, arXiv:2106.12639): see `best_first`.
    """

    def __init__(self, ladder: Ladder, goal: Goal) -> None:
        self.ladder, self._goal = ladder, goal
        self._on: list[dict[int, Measurement]] = [{} for _ in ladder.epochs]
        self._top: dict[int, Measurement] = {}
        self._promoted: list[set[int]] = [set() for _ in ladder.epochs]
        self._waiting: dict[int, int] = {}
        self._order = [_Order() for _ in ladder.epochs]
        self._agreed: tuple[int, list[Agreement]] = (0, [])

    @property
    def waiting(self) -> Mapping[int, int]:
        """The rung of every trial that waits on one."""
        return self._waiting

    def knows(self, observation: Observation) -> bool:
        """Whether the trial was on this rung before."""
        return observation.rung is not None and (
            observation.trial.number in self._on[observation.rung]
        )

    def take(self, observation: Observation) -> None:
        """Note what a trial is worth on the rung that it reached, where it waits; or its end."""
        number, outcome = observation.trial.number, observation.outcome
        before = self._waiting.pop(number, None)
        if before is not None:
            self._promoted[before].add(number)
        if observation.rung is None:
            if isinstance(outcome, Measurement) and outcome.complete:
                self._top[number] = outcome
            return
        assert isinstance(outcome, Measurement), "a trial that failed is on no rung"
        self._on[observation.rung][number] = outcome
        self._waiting[number] = observation.rung

    def promotable(self) -> int | None:
        """The trial that is the next to climb; None where none may."""
        found = (self._first(rung) for rung in reversed(range(len(self._on))))
        return next((number for number in found if number is not None), None)

    def may_climb(self, number: int) -> bool:
        """Whether a trial that waits may go on."""
        rung = self._waiting[number]
        best = self._best(rung)
        return self._order[rung].place.get(number, best) < best

    def _first(self, rung: int) -> int | None:
        """The best of those that wait on a rung and may climb."""
        best, order = self._best(rung), self._order[rung]
        # who went on from a rung never waits there again
        while order.passed < best and self._waiting.get(order.numbers[order.passed]) != rung:
            order.passed += 1
        return order.numbers[order.passed] if order.passed < best else None

    def _best(self, rung: int) -> int:
        """How many of the best of a rung may climb; 0 where as many have climbed already."""
        count = len(self._on[rung])
        best = int(count / self.ladder.reduction)
        if best <= len(self._promoted[rung]):
            return 0
        if _outgrown(count, self._order[rung].count):
            most = int((1.0 + SLACK) * count / self.ladder.reduction)
            numbers = best_first(self._goal, self._on[rung], most=most)
            place = {number: at for at, number in enumerate(numbers)}
            self._order[rung] = _Order(count, numbers, place)
        return best

    def promote(self, number: int) -> None:
        """Send a trial that waits up from its rung."""
        self._promoted[self._waiting.pop(number)].add(number)

    @property
    def agreements(self) -> list[Agreement]:
        """How well every rung has predicted, as of late."""
        at, found = self._agreed
        if _outgrown(len(self._top), at):
            found = [self.agreement(rung) for rung in range(len(self._on))]
            self._agreed = len(self._top), found
        return found

    def agreement(self, rung: int) -> Agreement:
        """How well a rung has predicted what trials came to."""
        main = self._goal.main.metric
        here = self._on[rung]
        both = [
            (here[number].metrics[main], top.metrics[main])
            for number, top in self._top.items()  # of the two they are fewer
            if number in here
        ]
        early, late = np.array(both, dtype=float).reshape(-1, 2).T
        told = len(both) >= 2 and min(np.ptp(early), np.ptp(late)) > 0.0
        rank = float(spearmanr(early, late).statistic) if told else None
        return Agreement(self.ladder.epochs[rung], rank, len(both))


def _outgrown(count: int, known: int) -> bool:
    """Whether there are so many that what was worked out of the first `known` no longer holds."""
    return count > known if count <= EXACT else count >= (1.0 + SLACK) * known
