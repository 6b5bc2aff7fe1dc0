"""The baseline of global ranking: one ratio for the network, spent where scores are lowest."""

from collections.abc import Iterator, Sequence

import numpy as np

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Goal
from autoprune.domain.ranking import Ranking, check_normalisation
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation
from autoprune.searchers.grid import RATIOS, Grid, check_some, refined


class RankedSearcher:
    """A grid of kept ratios of the whole network; scores say how they are spread over its groups.

    For each ratio the units with the lowest normalised scores go, whatever group they are of, as
    far as legal widths allow (`autoprune.domain.ranking`); the spec names the widths that come of
    it. With several criteria each has its turn. The grid is refined as the uniform searcher's is,
    and nothing is proposed twice before the whole space is used up.

    `ranking` is what the sweep's criteria make of the trained network. Without one it can be
    built, but not asked. Raises AutopruneError for no ratio or one outside (0, 1], for a
    normalisation that there is not, and for a ranking of other groups or criteria.
    """

    def __init__(
        self,
        space: SearchSpace,
        goal: Goal,
        seed: int,
        *,
        normalisation: str = "mean",
        ratios: Sequence[float] = RATIOS,
        ranking: Ranking | None = None,
    ) -> None:
        del goal  # a grid aims at nothing
        check_some("ranked", ratios)
        check_normalisation(normalisation)
        self._grid: Grid | None = None
        if ranking is not None:
            paths = [
                ranking.path(space, criterion, normalisation=normalisation)
                for criterion in space.criteria
            ]
            self._grid = Grid(
                space,
                _in_turn([refined(tuple(ratios), path.edges, path.at) for path in paths]),
                first=[path.at(ratio) for ratio in ratios for path in paths],
                rng=np.random.default_rng(seed),
            )

    def ask(self, number: int) -> PruningSpec:
        """The next spec of the sequence that is new. Raises AutopruneError without a ranking."""
        if self._grid is None:
            raise AutopruneError(
                "the ranked searcher has no ranking of the network's units; pass one as `ranking` "
                "(autoprune.pruning.ranking.rank), or choose the uniform searcher"
            )
        return self._grid.ask(number)

    def tell(self, observation: Observation) -> None:
        """Take note that the spec is known."""
        if self._grid is not None:
            self._grid.learn(observation.trial.spec)


def _in_turn(sequences: Sequence[Iterator[PruningSpec]]) -> Iterator[PruningSpec]:
    """One of each, until all have ended."""
    left = list(sequences)
    while left:
        for specs in tuple(left):
            spec = next(specs, None)
            if spec is None:
                left.remove(specs)
            else:
                yield spec
