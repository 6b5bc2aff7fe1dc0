"""Which widths of groups that meet make a trial fail: a belief learnt from failures.

Axis legend: G = groups, J = joints (every two groups that meet in a layer, and each with itself),
N = networks, F = failed trials, B = bins of a group's kept share.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from autoprune.searchers.frontier.lattice import Array, Lattice, Levels

EDGES = (0.125, 0.25, 0.5)
"""The kept shares at which bins end."""

SUSPECTED = 0.1
"""The chance of failure, before any trial, of a network all of whose widths are new."""

ROUNDS = 10
"""Of expectation maximisation."""


@dataclass(frozen=True, eq=False)
class Failures:
    """A noisy-or: a trial fails where any of its joints does, each by widths of its own.

    Pearl, Probabilistic Reasoning in Intelligent Systems, 1988, section 4.3; which joint was to
    blame is not seen, so blame is shared out by expectation maximisation. `chance_JBB` is the
    chance that a joint fails, by the bins of its two groups.
    """

    lattice: Lattice
    chance_JBB: Array  # noqa: N815

    @classmethod
    def fit(cls, lattice: Lattice, failed_FD: Levels, passed_ND: Levels) -> Self:  # noqa: N803
        """What is believed after trials that failed and trials that did not."""
        joints, bins = lattice.joints_2J.shape[1], len(EDGES) + 1
        shape, doubt = (joints, bins, bins), SUSPECTED / joints
        passed_JBB = np.zeros(shape)  # noqa: N806
        np.add.at(passed_JBB, _cells(lattice, passed_ND), 1.0)
        chance_JBB = doubt / (1.0 + passed_JBB)  # noqa: N806
        cells = _cells(lattice, failed_FD)
        for _ in range(ROUNDS):
            blame_FJ = chance_JBB[cells] / chance_JBB[cells].sum(axis=1, keepdims=True)  # noqa: N806
            blame_JBB = np.zeros(shape)  # noqa: N806
            np.add.at(blame_JBB, cells, blame_FJ)
            chance_JBB = (doubt + blame_JBB) / (1.0 + passed_JBB + blame_JBB)  # noqa: N806
        return cls(lattice, chance_JBB)

    def passing(self, levels_ND: Levels) -> Array:  # noqa: N803
        """The chance that networks do not fail, of shape (N,)."""
        return np.asarray((1.0 - self.chance_JBB[_cells(self.lattice, levels_ND)]).prod(axis=1))


def _cells(lattice: Lattice, levels_ND: Levels) -> tuple[Levels, Levels, Levels]:  # noqa: N803
    """Where networks lie in every joint: the joint, and the bins of its two groups, (N, J)."""
    share_NG = lattice.networks(levels_ND).share_NG  # noqa: N806
    bin_NG = np.searchsorted(EDGES, share_NG)  # noqa: N806
    first_J, second_J = lattice.joints_2J  # noqa: N806
    joint_NJ = np.broadcast_to(np.arange(len(first_J)), (len(levels_ND), len(first_J)))  # noqa: N806
    return joint_NJ, bin_NG[:, first_J], bin_NG[:, second_J]
