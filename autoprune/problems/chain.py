"""A pruning problem in which groups act on each other along a chain, and its exact solution.

Axis legend: G = groups, H = G - 1 joints between neighbours, L = legal widths of a group from the
narrowest to the whole one, N = points of a front.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import moocore
import numpy as np
from numpy.typing import NDArray

from autoprune.domain.objective import Direction, Goal, Objective
from autoprune.domain.pareto import ParetoFront
from autoprune.domain.profile import Profile, ProfilePoint, profile_widths
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import (
    Cause,
    Failure,
    Measurement,
    Observation,
    Outcome,
    Speedup,
    Stage,
    Trial,
)

Floats = NDArray[np.float64]
Ticks = NDArray[np.int64]

ACCURACY = 0.95
"""Of the whole network."""

TOLERANCE = 0.05
"""The loss of accuracy at which a network stops being of use."""

UNRECOVERED, UNRECOVERED_SPREAD = 3.0, 0.5
"""How many times as much a cut loses before recovery, and the deviation of that factor's log."""

GOAL = Goal(
    (Objective("accuracy", Direction.MAX), Objective("speedup", Direction.MAX)),
    (ACCURACY - TOLERANCE, 1.0),
)


@dataclass(frozen=True, slots=True)
class Noise:
    """What a trial's figures are off by: accuracy by a normal with this deviation, speedup by a
    log-normal with this one.
    """

    accuracy: float = 0.0
    speedup: float = 0.0


@dataclass(frozen=True, eq=False)
class ChainProblem:
    """Accuracy lost and time taken are sums over groups and over neighbours in a chain.

    Times are whole numbers of ticks, so that the best front can be found exactly. `lost_GL` and
    `ticks_GL` are what each group loses and takes at each width, `lost_HLL` and `ticks_HLL` what
    two neighbours lose and take together; trials of widths that are `broken_HLL` fail.
    """

    name: str
    space: SearchSpace
    lost_GL: Floats  # noqa: N815
    ticks_GL: Ticks  # noqa: N815
    lost_HLL: Floats  # noqa: N815
    ticks_HLL: Ticks  # noqa: N815
    broken_HLL: NDArray[np.bool_]  # noqa: N815
    fixed_ticks: int
    noise: Noise = field(default_factory=Noise)

    @property
    def goal(self) -> Goal:
        """Accuracy and speedup, from the edge of what anyone would deploy."""
        return GOAL

    def observe(self, trial: Trial) -> Observation:
        """Run a trial; its seed decides the noise."""
        return Observation(trial, self._outcome(trial), seconds=1.0)

    def true(self, spec: PruningSpec) -> Measurement | None:
        """What a trial would measure without noise; None where it fails."""
        levels = np.array(self.space.indices(spec)[: len(self.ticks_GL)])
        groups, joints = np.arange(len(levels)), np.arange(len(levels) - 1)
        pairs = (joints, levels[:-1], levels[1:])
        if self.broken_HLL[pairs].any():
            return None
        lost = self.lost_GL[groups, levels].sum() + self.lost_HLL[pairs].sum()
        ticks = self.ticks_GL[groups, levels].sum() + self.ticks_HLL[pairs].sum()
        ticks += self.fixed_ticks
        return Measurement({"accuracy": ACCURACY - lost, "speedup": self._whole_ticks / ticks})

    def hypervolume(self, observations: Iterable[Observation]) -> float:
        """What the front of a search is worth: the true values of its members."""
        members = ParetoFront(self.goal, observations).members
        true = [self.true(member.trial.spec) for member in members]
        points = [self.goal.values(one) for one in true if one is not None]
        return _hypervolume(np.array(points).reshape(-1, 2))

    @cached_property
    def best_hypervolume(self) -> float:
        """Of the best front there is."""
        return _hypervolume(self.front_N2)

    def profile(self, seed: int) -> Profile:
        """What each group alone costs and gives, without noise in speed and without recovery.

        Unrecovered, a cut loses `UNRECOVERED` times as much, up to a log-normal factor of its own.
        """
        rng = np.random.default_rng(seed)
        whole = {axis.group.name: axis.high for axis in self.space.axes}
        alone = [
            {axis.group.name: width} for axis in self.space.axes for width in profile_widths(axis)
        ]
        found = [(widths, self.true(PruningSpec.of(whole | widths))) for widths in alone]
        points = [_unrecovered(widths, true, rng) for widths, true in found if true is not None]
        return Profile(self.space.groups, {"accuracy": ACCURACY, "speedup": 1.0}, tuple(points))

    @cached_property
    def front_N2(self) -> Floats:  # noqa: N802
        """The best front: accuracy and speedup of every network that no other one beats.

        By dynamic programming over the chain: the least loss of the groups so far for every
        number of ticks and every width of the last of them.
        """
        least_LT = np.full((self.lost_GL.shape[1], self._whole_ticks + 1), np.inf)  # noqa: N806
        for level, (lost, ticks) in enumerate(zip(self.lost_GL[0], self.ticks_GL[0], strict=True)):
            least_LT[level, self.fixed_ticks + ticks] = lost
        for group in range(1, len(self.lost_GL)):
            least_LT = self._extended(least_LT, group)  # noqa: N806
        least_T = least_LT.min(axis=0)  # noqa: N806
        ticks_N = np.flatnonzero(least_T < np.minimum.accumulate(np.r_[np.inf, least_T[:-1]]))  # noqa: N806
        points_N2 = np.column_stack([ACCURACY - least_T[ticks_N], self._whole_ticks / ticks_N])  # noqa: N806
        return points_N2[points_N2[:, 0] > self.goal.reference[0]]

    def _extended(self, least_LT: Floats, group: int) -> Floats:  # noqa: N803
        found = np.full_like(least_LT, np.inf)
        joint = group - 1
        for before, after in np.argwhere(~self.broken_HLL[joint]):
            ticks = self.ticks_GL[group, after] + self.ticks_HLL[joint, before, after]
            lost = self.lost_GL[group, after] + self.lost_HLL[joint, before, after]
            kept = least_LT[before, : least_LT.shape[1] - ticks] + lost
            np.minimum(found[after, ticks:], kept, out=found[after, ticks:])
        return found

    @cached_property
    def _whole_ticks(self) -> int:
        whole = self.ticks_GL[:, -1].sum() + self.ticks_HLL[:, -1, -1].sum()
        return self.fixed_ticks + int(whole)

    def _outcome(self, trial: Trial) -> Outcome:
        true = self.true(trial.spec)
        if true is None:
            return Failure(Stage.RECOVER, Cause.NAN_LOSS, "neighbours of such widths do not train")
        rng = np.random.default_rng(trial.seed)
        accuracy = true.metrics["accuracy"] + rng.normal(0.0, self.noise.accuracy)
        speedup = true.metrics["speedup"] * np.exp(rng.normal(0.0, self.noise.speedup))
        return Measurement({"accuracy": float(accuracy), "speedup": float(speedup)})


def _unrecovered(
    widths: Mapping[str, int], true: Measurement, rng: np.random.Generator
) -> ProfilePoint:
    ratio = true.metrics["speedup"]
    speedup = Speedup(ratio, ratio, ratio, 1.0, 1.0 / ratio, 8, "formula", "none", noise=0.0)
    lost = UNRECOVERED * rng.lognormal(0.0, UNRECOVERED_SPREAD)
    accuracy = ACCURACY - lost * (ACCURACY - true.metrics["accuracy"])
    return ProfilePoint(widths, speedup, {"accuracy": max(accuracy, 0.0), "speedup": ratio})


def _hypervolume(points_N2: Floats) -> float:  # noqa: N803
    if not len(points_N2):
        return 0.0
    return float(moocore.hypervolume(points_N2, ref=list(GOAL.reference), maximise=[True, True]))
