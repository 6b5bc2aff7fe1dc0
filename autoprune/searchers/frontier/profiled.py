"""What a profile tells of a quantity before any trial.

Axis legend: as in `lattice`; T = networks of the profile, S = smooth curves of a group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import nnls

from autoprune.domain.objective import Objective
from autoprune.domain.profile import Profile, ProfilePoint
from autoprune.domain.space import SearchSpace
from autoprune.searchers.frontier.amounts import Amounts, is_cost
from autoprune.searchers.frontier.lattice import Array, Lattice, Networks

MOST = 192
"""Points of a profile that are learnt from, spread evenly over it, to bound an ask's time."""

SHRUNK = 0.2
"""How much of what a group is thought to lose stays that of a group like all others."""


@dataclass(frozen=True)
class Profiled:
    """What a profile tells of a metric.

    `values_T` were measured of `networks`: of costs all there are, of quality the unpruned
    network's alone, since nothing else was recovered. `cut` holds the points of a group alone by
    its index, as kept shares and values without recovery.
    """

    networks: Networks
    values_T: Array  # noqa: N815
    cut: Mapping[int, tuple[Array, Array]]

    @classmethod
    def of(cls, objective: Objective, profile: Profile | None, lattice: Lattice) -> Self:
        """What it tells of an objective's metric; nothing without one."""
        metric = objective.metric
        known = None if profile is None else profile.within(lattice.space)
        whole = {} if known is None else {"speedup": 1.0, **known.baseline}
        if known is None or metric not in whole:
            return cls(lattice.alone([]), np.empty(0), {})
        if not is_cost(metric):
            return cls(
                lattice.alone([{}]), np.array([whole[metric]]), _cut(metric, known, lattice.space)
            )
        points = [point for point in (*known.points, *known.checks) if metric in _metrics(point)]
        every = -(-len(points) // MOST) or 1
        rows = [({}, whole[metric]), *((p.widths, _metrics(p)[metric]) for p in points[::every])]
        return cls(lattice.alone(w for w, _ in rows), np.array([value for _, value in rows]), {})

    def relative(self, amounts: Amounts) -> Array:
        """How much of each smooth curve each group is thought to have, of shape (S, G).

        The mean over groups and curves is 1: losses without recovery tell which groups matter
        and how steeply, and not how much recovery leaves of them.
        """
        groups = self.networks.share_NG.shape[1]
        found_SG = np.zeros((len(amounts.family.smooth), groups))  # noqa: N806
        for at, (share, values) in self.cut.items():
            curves = np.column_stack([curve(share) for curve in amounts.family.smooth])
            lost = np.maximum(amounts.of(values) - amounts.of(self.values_T), 0.0)
            found_SG[:, at], _ = nnls(curves, lost)
        if not found_SG.any():
            return np.ones_like(found_SG)
        return np.asarray(SHRUNK + (1.0 - SHRUNK) * found_SG / found_SG.mean())


def _cut(metric: str, profile: Profile, space: SearchSpace) -> dict[int, tuple[Array, Array]]:
    found = {}
    for at, group in enumerate(space.groups):
        points = [point for point in profile.of(group.name) if metric in point.metrics]
        if points:
            share = np.array([point.widths[group.name] / group.size for point in points])
            found[at] = share, np.array([point.metrics[metric] for point in points])
    return found


def _metrics(point: ProfilePoint) -> Mapping[str, float]:
    return {"speedup": point.speedup.ratio, **point.metrics}
