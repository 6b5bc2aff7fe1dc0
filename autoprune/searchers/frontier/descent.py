"""Networks that are near-optimal for some trade-off, under one draw of what is believed.

Axis legend: N = networks, D = dimensions, W = levels, Q = quantities.
"""

import math
from collections.abc import Sequence

import numpy as np

from autoprune.searchers.frontier.lattice import Lattice, Levels
from autoprune.searchers.frontier.terms import Tables

SWEEPS = 3
"""Times that every dimension is gone along."""


def descended(
    lattice: Lattice,
    levels_ND: Levels,  # noqa: N803
    tables: Sequence[Tables],
    rng: np.random.Generator,
) -> Levels:
    """Networks near given ones: each sweep's, distinct, of shape (at most SWEEPS x N, D).

    Each start draws its own prices of the quantities and which dimensions it may change, from a
    single one to all. Along one after the other it takes the level at which the priced sum is
    least: for sums over groups that is the knapsack of HALP (Shen et al. 2022, arXiv:2110.10811)
    in its Lagrangian form, exact where no groups meet.
    """
    levels_ND = levels_ND.copy()  # noqa: N806
    count, dimensions = levels_ND.shape
    price_NQ = 10.0 ** rng.uniform(-1.0, 1.0, (count, len(tables)))  # noqa: N806
    most_N = np.expm1(rng.uniform(0.0, math.log1p(dimensions), count))  # noqa: N806
    rank_ND = rng.random((count, dimensions)).argsort(axis=1)  # noqa: N806
    free_ND = rank_ND <= most_N[:, None]  # noqa: N806
    found = []
    for _ in range(SWEEPS):
        before_ND = levels_ND.copy()  # noqa: N806
        for dimension in rng.permutation(dimensions):
            price_NW = np.where(lattice.legal_DW[dimension], 0.0, np.inf)  # noqa: N806
            for price_N, table in zip(price_NQ.T, tables, strict=True):  # noqa: N806
                price_NW = price_NW + price_N[:, None] * table.along(dimension, levels_ND)  # noqa: N806
            free_N = free_ND[:, dimension]  # noqa: N806
            levels_ND[free_N, dimension] = price_NW.argmin(axis=1)[free_N]
        found.append(levels_ND.copy())
        if (levels_ND == before_ND).all():
            break
    return np.unique(np.vstack(found), axis=0)
