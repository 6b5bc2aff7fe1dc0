"""One episode: a walk over the groups of a network that chooses how much each of them keeps.

Axis legend: D = steps of the episode, M = objectives, F = features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autoprune.domain.errors import AutopruneError
from autoprune.domain.latency import LatencyModel
from autoprune.domain.space import Axis, PruningSpec, SearchSpace

Features = NDArray[np.float32]

CHOICE = "choice"
"""The kind of the steps that pick a criterion, a recovery or a precision."""


@dataclass(frozen=True)
class Walk:
    """The steps of an episode: one a group, in order, then one a choice, as the space encodes them.

    An action in [-1, 1] is the kept ratio from the group's lowest (-1) to its highest (1); it is
    executed at the nearest legal width. For a choice the same range counts its options.

    `latency` predicts times. `wall` is AMC's: a budget, as a share of the baseline's time, which
    no action may put out of reach. An action that would is executed at the nearest width that does
    not; where even the fastest network is over the budget, at the fastest one. None is no wall.

    An observation has these features, those of He et al. 2018 (arXiv:1802.03494) for groups in
    place of layers, latency in place of operations:

    ======================  ====  ================================================================
    feature                 size  what it is; all are in [0, 1]
    ======================  ====  ================================================================
    index                   D     which step this is, one-hot
    kind                    K     what a unit of the group is, one-hot over the kinds of the space
    size                    1     units of the group, as a share of the largest group's
    step                    1     units between two legal widths, as a share of the group's
    saved                   1     share of the baseline's time that the actions so far have saved
    to come                 1     share of it that can still be saved, from this group on
    own                     1     share of it that this group can save
    last action             1     the executed action before, from 0 (lowest) to 1; 1 at first
    kept                    D     every executed action so far, the same; 1 for what is to come
    preference              M     weights of the objectives, which sum to 1
    ======================  ====  ================================================================

    *Kept* is not AMC's. It makes the process Markov: what an action does to accuracy depends on
    what the groups before have kept.
    """

    space: SearchSpace
    latency: LatencyModel
    objectives: int
    wall: float | None = None

    def __post_init__(self) -> None:
        number = isinstance(self.wall, int | float)
        if self.wall is not None and not (number and 0.0 < self.wall <= 1.0):
            raise AutopruneError(
                f"the wall is at {self.wall!r} of the baseline's latency; choose it in (0, 1], "
                "or null for none"
            )

    def __len__(self) -> int:
        return len(self.space.options)

    @property
    def features(self) -> int:
        """How many features an observation has."""
        return 2 * len(self) + len(self._kinds) + 6 + self.objectives

    def executed(self, indices: Sequence[int], action: float) -> int:
        """What an action after those of `indices` comes to: the place of a value in its options.

        Raises AutopruneError for NaN, which is what a policy that has diverged gives.
        """
        if math.isnan(action):
            raise AutopruneError("an action is NaN; give one in [-1, 1]")
        step = len(indices)
        unit = (min(max(action, -1.0), 1.0) + 1.0) / 2.0
        if step >= len(self.space.axes):
            return round(unit * (len(self.space.options[step]) - 1))
        axis = self.space.axes[step]
        low, high = axis.widths[0], axis.widths[-1]
        wanted = low + unit * (high - low)
        if self.wall is None:
            return axis.widths.index(axis.nearest(wanted))
        reached = self._within_wall(indices, axis, self.wall)
        return min(reached, key=lambda at: (abs(axis.widths[at] - wanted), at))

    def action(self, step: int, index: int) -> float:
        """The action that executes a value at a step: the inverse of `executed` without a wall."""
        options = self.space.options[step]
        if len(options) == 1:
            return 1.0
        if step >= len(self.space.axes):
            return 2.0 * index / (len(options) - 1) - 1.0
        low, width, high = (float(options[at]) for at in (0, index, -1))
        return 2.0 * (width - low) / (high - low) - 1.0

    def actions(self, spec: PruningSpec) -> list[float]:
        """The actions of the episode that ends with `spec`. AutopruneError for another space's."""
        return [self.action(step, index) for step, index in enumerate(self.space.indices(spec))]

    def observation(self, indices: Sequence[int], preference: Sequence[float]) -> Features:
        """What the agent sees after the actions of `indices`, of shape (F,).

        After the last one no step is marked, nothing is to come, and the facts of a group are 0.
        """
        features: Features = self._features(indices, [len(indices)], preference)[0]
        return features

    def observations(self, spec: PruningSpec, preference: Sequence[float]) -> Features:
        """What the agent saw at every step of the episode that ends with `spec`: (D, F)."""
        return self._features(self.space.indices(spec), range(len(self)), preference)

    def _features(
        self, indices: Sequence[int], steps: Sequence[int], preference: Sequence[float]
    ) -> Features:
        at, d = np.array(steps), len(self)
        taken = np.ones(d)
        for step, index in enumerate(indices):
            taken[step] = (self.action(step, index) + 1.0) / 2.0
        return np.hstack(
            [
                np.eye(d + 1, d)[at],
                self._facts[at],
                self._times(indices, steps),
                np.append(1.0, taken)[at, None],
                np.where(np.arange(d) < at[:, None], taken, 1.0),
                np.tile(preference, (len(at), 1)),
            ]
        ).astype(np.float32)

    @cached_property
    def _facts(self) -> NDArray[np.float64]:
        """Kind, size and step of every step's group, of shape (D + 1, K + 2); the last row is 0."""
        kinds = self._kinds
        found = np.zeros((len(self) + 1, len(kinds) + 2))
        largest = max(group.size for group in self.space.groups)
        for row, group in zip(found, self.space.groups, strict=False):
            row[kinds.index(group.kind)] = 1.0
            row[-2:] = group.size / largest, group.step / max(group.step, group.size)
        if CHOICE in kinds:
            found[len(self.space.axes) : -1, kinds.index(CHOICE)] = 1.0
        return found

    @cached_property
    def _kinds(self) -> list[str]:
        kinds = sorted({group.kind for group in self.space.groups})
        return [*kinds, CHOICE] if len(self) > len(self.space.axes) else kinds

    @cached_property
    def _fastest(self) -> list[int]:
        """The width at which each group alone makes the network fastest; it need not be least."""
        return [
            axis.widths[
                int(self.latency.shares([{axis.group.name: w} for w in axis.widths]).argmin())
            ]
            for axis in self.space.axes
        ]

    def _times(self, indices: Sequence[int], steps: Sequence[int]) -> NDArray[np.float64]:
        """Saved, to come and own at each of the steps, of shape (len(steps), 3)."""
        axes = self.space.axes
        fastest = {a.group.name: width for a, width in zip(axes, self._fastest, strict=True)}
        nets: list[dict[str, int]] = []
        for step in steps:
            done = self._widths(indices[:step])
            here = [axis.group.name for axis in axes[step : step + 1]]
            nets += [done, done | {name: fastest[name] for name in here}, fastest | done]
        share = self.latency.shares(nets).reshape(-1, 3)
        saved = np.clip(1.0 - share[:, 0], 0.0, 1.0)
        to_come = np.clip(share[:, 0] - share[:, 2], 0.0, 1.0 - saved)
        own = np.clip(share[:, 0] - share[:, 1], 0.0, to_come)
        return np.stack([saved, to_come, own], axis=1)

    def _within_wall(self, indices: Sequence[int], axis: Axis, wall: float) -> list[int]:
        """The places of the widths from which the wall can still be reached, or of the fastest."""
        step = len(indices)
        axes = self.space.axes[step + 1 :]
        fixed = self._widths(indices) | {
            other.group.name: fast
            for other, fast in zip(axes, self._fastest[step + 1 :], strict=True)
        }
        share = self.latency.shares([fixed | {axis.group.name: width} for width in axis.widths])
        fast = axis.widths.index(self._fastest[step])
        return [int(at) for at in np.flatnonzero(share <= max(wall, share[fast]))]

    def _widths(self, indices: Sequence[int]) -> dict[str, int]:
        return {
            axis.group.name: axis.widths[index]
            for axis, index in zip(self.space.axes, indices, strict=False)
        }
