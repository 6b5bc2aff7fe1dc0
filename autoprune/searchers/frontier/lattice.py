"""A search space as arrays.

Axis legend: G = groups, D = dimensions (the groups, then the choices of criterion, recovery and
precision), W = levels of a dimension (the most that any has), J = joints (every two groups that
meet in a layer, and each with itself), P = pairs of groups that meet in a layer, C = options of all
choices, N = networks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autoprune.domain.latency import ALIGNMENT, meeting
from autoprune.domain.space import PruningSpec, SearchSpace

Array = NDArray[np.float64]
Levels = NDArray[np.int64]


@dataclass(frozen=True)
class Networks:
    """N networks: what each keeps of each group, where that leaves the blocks, what is chosen.

    `share_NG` is the kept share, `odd_NG` 1 where the width is neither whole nor a multiple of
    `ALIGNMENT`, `chosen_NC` 1 for the options taken.
    """

    share_NG: Array  # noqa: N815
    odd_NG: Array  # noqa: N815
    chosen_NC: Array  # noqa: N815


@dataclass(frozen=True, eq=False)
class Lattice:
    """The levels of every dimension of a space, and which groups meet."""

    space: SearchSpace

    @cached_property
    def groups(self) -> int:
        """How many groups may shrink."""
        return len(self.space.axes)

    @cached_property
    def counts_D(self) -> Levels:  # noqa: N802
        """The number of levels of every dimension."""
        return np.array([len(options) for options in self.space.options])

    @cached_property
    def legal_DW(self) -> NDArray[np.bool_]:  # noqa: N802
        """Whether a dimension has a level."""
        return np.arange(self.counts_D.max()) < self.counts_D[:, None]

    @cached_property
    def widths_GW(self) -> Levels:  # noqa: N802
        """The kept units of every group at every level; whole beyond its last level."""
        widths_GW = np.repeat(self.sizes_G[:, None], self.legal_DW.shape[1], axis=1)  # noqa: N806
        for widths_W, axis in zip(widths_GW, self.space.axes, strict=True):  # noqa: N806
            widths_W[: len(axis.widths)] = axis.widths
        return widths_GW

    @cached_property
    def sizes_G(self) -> Levels:  # noqa: N802
        """The units of every group of the unpruned network."""
        return np.array([axis.group.size for axis in self.space.axes])

    @cached_property
    def joints_2J(self) -> Levels:  # noqa: N802
        """The first and the second of every two groups that meet in a layer, or are the same."""
        return np.array(meeting(self.space.groups), dtype=np.int64)

    @cached_property
    def pairs_2P(self) -> Levels:  # noqa: N802
        """Those of the joints whose groups differ."""
        first_J, second_J = self.joints_2J  # noqa: N806
        return self.joints_2J[:, first_J != second_J]

    @cached_property
    def partners(self) -> list[tuple[Levels, Levels]]:
        """For every group the pairs that it is in, and the other group of each."""
        first_P, second_P = self.pairs_2P  # noqa: N806
        found = []
        for group in range(self.groups):
            pairs = np.flatnonzero((first_P == group) | (second_P == group))
            found.append((pairs, first_P[pairs] + second_P[pairs] - group))
        return found

    def levels(self, spec: PruningSpec) -> Levels:
        """A spec's level in every dimension, of shape (D,)."""
        return np.array(self.space.indices(spec), dtype=np.int64)

    def spec(self, levels_D: Levels) -> PruningSpec:  # noqa: N803
        """The inverse of `levels`."""
        return self.space.at([int(level) for level in levels_D])

    def networks(self, levels_ND: Levels) -> Networks:  # noqa: N803
        """The networks at given levels."""
        width_NG = self.widths_GW[np.arange(self.groups), levels_ND[:, : self.groups]]  # noqa: N806
        options = self.counts_D[self.groups :]
        chosen = [
            np.eye(count)[levels_N]
            for count, levels_N in zip(options, levels_ND.T[self.groups :], strict=True)
        ]
        return self._networks(width_NG, np.hstack([np.empty((len(levels_ND), 0)), *chosen]))

    def alone(self, many: Iterable[Mapping[str, int]]) -> Networks:
        """Networks by the widths of the groups that were cut, whatever was chosen for them."""
        width_NG = np.array(  # noqa: N806
            [[widths.get(g.name, g.size) for g in self.space.groups] for widths in many]
        ).reshape(-1, self.groups)
        options = int(self.counts_D[self.groups :].sum())
        return self._networks(width_NG, np.zeros((len(width_NG), options)))

    def _networks(self, width_NG: Levels, chosen_NC: Array) -> Networks:  # noqa: N803
        odd_NG = (width_NG % ALIGNMENT != 0) & (width_NG != self.sizes_G)  # noqa: N806
        return Networks(width_NG / self.sizes_G, odd_NG.astype(float), chosen_NC)
