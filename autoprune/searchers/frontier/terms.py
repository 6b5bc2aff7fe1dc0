"""What costs and losses are sums of: curves of each group, choices, and products of two groups.

Axis legend: as in `lattice`; B = curves of a group, K = terms, laid out as a constant, B x G
curves, G surcharges (of a family that has them), C choices, P products.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoprune.searchers.frontier.belief import Prior
from autoprune.searchers.frontier.lattice import Array, Lattice, Levels, Networks

RAMPS = 16
"""Ramps of a group: steps of kernels and sudden losses are told apart to a 16th of its units."""


@dataclass(frozen=True)
class Family:
    """What is known of all sums of a kind before anything of a network is.

    `smooth` are the curves that a group usually follows, functions of its kept share, and `joint`
    the one whose products are what two groups make together; curves rise with the share where
    `rises`, otherwise they fall. `surcharged` tells whether widths off the blocks of kernels may
    cost extra. All curves and products together come to about `total` where everything is 1.
    """

    smooth: tuple[Callable[[Array], Array], ...]
    joint: Callable[[Array], Array]
    rises: bool
    surcharged: bool
    constant: float
    total: float


COST = Family(
    smooth=(lambda share: share, lambda share: share**2),
    joint=lambda share: share,
    rises=True,
    surcharged=True,
    constant=0.05,
    total=1.0,
)
"""Time, size and arithmetic: layers multiply their inputs by their outputs."""

LOSS = Family(
    smooth=(lambda share: (1 - share) ** 1.5, lambda share: (1 - share) ** 4),
    joint=lambda share: (1 - share) ** 1.5,
    rises=False,
    surcharged=False,
    constant=0.0,
    total=6.0,
)
"""Quality lost, in units of what may be lost; little at first, then more and more."""


@dataclass(frozen=True, eq=False)
class Tables:
    """One belief's weights laid out for search: each dimension's own part, and products."""

    lattice: Lattice
    constant: float
    own_DW: Array  # noqa: N815
    factor_GW: Array  # noqa: N815
    joint_P: Array  # noqa: N815

    def of(self, levels_ND: Levels) -> Array:  # noqa: N803
        """The sums of networks, of shape (N,)."""
        own_N = self.own_DW[np.arange(len(self.own_DW)), levels_ND].sum(axis=1)  # noqa: N806
        groups = len(self.factor_GW)
        factor_NG = self.factor_GW[np.arange(groups), levels_ND[:, :groups]]  # noqa: N806
        first_P, second_P = self.lattice.pairs_2P  # noqa: N806
        together_N = (factor_NG[:, first_P] * factor_NG[:, second_P]) @ self.joint_P  # noqa: N806
        return np.asarray(self.constant + own_N + together_N)

    def along(self, dimension: int, levels_ND: Levels) -> Array:  # noqa: N803
        """What changes of the sums with the level of one dimension, of shape (N, W)."""
        own_W = self.own_DW[dimension]  # noqa: N806
        if dimension >= len(self.factor_GW):
            return np.tile(own_W, (len(levels_ND), 1))
        pairs, others = self.lattice.partners[dimension]
        factor_NO = self.factor_GW[others, levels_ND[:, others]]  # noqa: N806
        slope_N = factor_NO @ self.joint_P[pairs]  # noqa: N806
        return np.asarray(own_W + slope_N[:, None] * self.factor_GW[dimension])


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of a family over a lattice."""

    family: Family
    lattice: Lattice

    def of(self, networks: Networks) -> Array:
        """The terms of networks, of shape (N, K)."""
        share_NG = networks.share_NG  # noqa: N806
        factor_NG = self.family.joint(share_NG)  # noqa: N806
        first_P, second_P = self.lattice.pairs_2P  # noqa: N806
        return np.hstack(
            [
                np.ones((len(share_NG), 1)),
                *self._curves(share_NG),
                *([networks.odd_NG * share_NG] if self.family.surcharged else []),
                networks.chosen_NC,
                factor_NG[:, first_P] * factor_NG[:, second_P],
            ]
        )

    def tables(self, weights_K: Array) -> Tables:  # noqa: N803
        """Weights as tables; curves are made monotone, surcharges and products not negative."""
        curves, surcharges, choices, joint_P = self._parts(weights_K)  # noqa: N806
        own_GW = np.einsum("bg,bgw->gw", curves, self._curves_BGW)  # noqa: N806
        if self.family.rises:
            own_GW = np.maximum.accumulate(own_GW, axis=1)  # noqa: N806
        else:
            own_GW = np.maximum.accumulate(own_GW[:, ::-1], axis=1)[:, ::-1]  # noqa: N806
        if self.family.surcharged:
            own_GW = own_GW + np.maximum(surcharges, 0.0)[:, None] * self._odd_GW  # noqa: N806
        choices_CW = np.zeros((len(self._options), own_GW.shape[1]))  # noqa: N806
        ends = np.cumsum([0, *self._options])
        for row_W, start, end in zip(choices_CW, ends, ends[1:], strict=False):  # noqa: N806
            row_W[: end - start] = choices[start:end]
        return Tables(
            self.lattice,
            float(weights_K[0]),
            np.vstack([own_GW, choices_CW]),
            self._factor_GW,
            np.maximum(joint_P, 0.0),
        )

    def prior(self, relative_SG: Array) -> Prior:  # noqa: N803
        """Sums that come to the family's total, each group's part up to much doubt.

        `relative_SG` is how much of each smooth curve each group is thought to have, of mean 1.
        """
        family, groups = self.family, self.lattice.groups
        relative_G = relative_SG.mean(axis=0)  # noqa: N806
        first_P, second_P = self.lattice.pairs_2P  # noqa: N806
        both_P = np.sqrt(relative_G[first_P] * relative_G[second_P])  # noqa: N806
        smooth = relative_SG.ravel() * family.total / relative_SG.size
        ramps = np.tile(relative_G, RAMPS) * family.total / (groups * RAMPS)
        joint_P = both_P * family.total / max(len(both_P), 1)  # noqa: N806
        surcharges = relative_G * family.total / groups if family.surcharged else np.empty(0)
        options = np.full(sum(self._options), family.total)
        # half of the total in curves, half in products; ramps correct what is smooth
        blocks = [
            ([family.constant], [max(family.constant, 0.1 * family.total)]),
            (0.5 * smooth, smooth),
            (0.0 * ramps, 0.5 * ramps),
            (0.0 * surcharges, 0.2 * surcharges),
            (0.0 * options, 0.05 * options),
            (0.5 * joint_P, 0.7 * joint_P),
        ]
        mean_K, sd_K = (np.concatenate(part) for part in zip(*blocks, strict=True))  # noqa: N806
        return Prior(mean_K, sd_K, doubt=0.5)

    def _curves(self, share: Array) -> list[Array]:
        knots = np.arange(RAMPS) / RAMPS
        ramps = [np.clip((share - knot) * RAMPS, 0.0, 1.0) for knot in knots]
        if not self.family.rises:
            ramps = [1.0 - ramp for ramp in ramps]
        return [*(curve(share) for curve in self.family.smooth), *ramps]

    def _parts(self, weights_K: Array) -> tuple[Array, Array, Array, Array]:  # noqa: N803
        """The weights of curves (B, G), surcharges (G or none), choices (C) and products (P)."""
        groups, curves = self.lattice.groups, len(self._curves_BGW)
        counts = [1, curves * groups, groups * self.family.surcharged, sum(self._options)]
        _, own, surcharges, choices, joint_P = np.split(weights_K, np.cumsum(counts))  # noqa: N806
        return own.reshape(curves, groups), surcharges, choices, joint_P

    @cached_property
    def _options(self) -> list[int]:
        return [int(count) for count in self.lattice.counts_D[self.lattice.groups :]]

    @cached_property
    def _every(self) -> Networks:
        """Every level of every group, as if levels were networks."""
        groups, levels = self.lattice.widths_GW.shape
        all_WD = np.zeros((levels, len(self.lattice.counts_D)), dtype=np.int64)  # noqa: N806
        all_WD[:, :groups] = np.arange(levels)[:, None]
        return self.lattice.networks(all_WD)

    @cached_property
    def _curves_BGW(self) -> Array:  # noqa: N802
        return np.stack(self._curves(self._every.share_NG.T))

    @cached_property
    def _odd_GW(self) -> Array:  # noqa: N802
        return np.asarray((self._every.odd_NG * self._every.share_NG).T)

    @cached_property
    def _factor_GW(self) -> Array:  # noqa: N802
        return self.family.joint(self._every.share_NG.T)
