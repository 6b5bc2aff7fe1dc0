"""The uniform baseline: every group keeps the same ratio of its units."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from autoprune.domain.objective import Goal
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation
from autoprune.searchers.grid import RATIOS, Grid, check_some, refined


class UniformSearcher:
    """A grid of equal kept ratios, refined between its points when it is used up.

    Asks `ratios` in the order given, then halves every gap between neighbours, level by level
    and from wide to narrow, skipping gaps with no other spec inside. When no uniform spec is left
    it proposes the specs nearest to the grid's. Nothing is proposed twice, nor anything
    it was told of, before the whole space is used up. The seed orders only what is equally near.

    Raises AutopruneError for no ratio or one outside (0, 1].
    """

    def __init__(
        self, space: SearchSpace, goal: Goal, seed: int, *, ratios: Sequence[float] = RATIOS
    ) -> None:
        del goal  # a grid aims at nothing
        check_some("uniform", ratios)
        self._grid = Grid(
            space,
            refined(tuple(ratios), _edges(space), space.uniform),
            first=[space.uniform(ratio) for ratio in ratios],
            rng=np.random.default_rng(seed),
        )

    def ask(self, number: int) -> PruningSpec:
        """The next spec of the sequence that is new."""
        return self._grid.ask(number)

    def tell(self, observation: Observation) -> None:
        """Take note that the spec is known."""
        self._grid.learn(observation.trial.spec)


def _edges(space: SearchSpace) -> list[float]:
    """The ratios at which some group's width changes, ascending: from edge to edge all is equal."""
    return sorted(
        {
            (narrow + wide) / (2 * axis.group.size)
            for axis in space.axes
            for narrow, wide in pairwise(axis.widths)
        }
    )
