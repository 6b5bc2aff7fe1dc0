"""The uniform baseline: every group keeps the same ratio of its units."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Goal
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation
from autoprune.searchers.novelty import nearest_unseen

RATIOS = (0.5, 0.75, 0.25, 0.875, 0.625, 0.375, 0.125)
"""Eighths in the order of the van der Corput sequence, the wider first: after one, three or
seven trials the range is covered evenly, so a budget of any size spans it."""

FINEST = 1e-4
"""Ratios nearer than this are not told apart: finer than one unit of ten thousand."""


class UniformSearcher:
    """A grid of equal kept ratios, refined between its points when it is used up.

    Asks `ratios` in the order given, then halves every gap between neighbours, level by level
    and from wide to narrow, skipping gaps whose two ends are the same spec. When no uniform spec
    is left it proposes the specs nearest to the grid's. Nothing is proposed twice, nor anything
    it was told of, before the whole space is used up. The seed orders only what is equally near.

    Raises AutopruneError for no ratio or one outside (0, 1].
    """

    def __init__(
        self, space: SearchSpace, goal: Goal, seed: int, *, ratios: Sequence[float] = RATIOS
    ) -> None:
        del goal  # a grid aims at nothing
        check_ratios("ratios", ratios)
        if not ratios:
            raise AutopruneError("the uniform searcher has no ratio; name at least one in (0, 1]")
        self._space = space
        self._ratios = tuple(ratios)
        self._rng = np.random.default_rng(seed)
        self._specs = self._sequence()
        self._seen: set[PruningSpec] = set()

    def ask(self, number: int) -> PruningSpec:
        """The next spec of the sequence that is new."""
        spec = next((spec for spec in self._specs if spec not in self._seen), None)
        if spec is None:
            spec = self._beside(number)
        self._seen.add(spec)
        return spec

    def tell(self, observation: Observation) -> None:
        """Take note that the spec is known."""
        self._seen.add(observation.trial.spec)

    def _sequence(self) -> Iterator[PruningSpec]:
        specs = {ratio: self._space.uniform(ratio) for ratio in self._ratios}
        yield from specs.values()
        level = sorted(specs, reverse=True)
        while len(level) > 1:
            finer = []
            for high, low in pairwise(level):
                finer.append(high)
                # `uniform` is monotone: between equal ends there is nothing new.
                if specs[high] != specs[low] and high - low > FINEST:
                    middle = (high + low) / 2
                    specs[middle] = self._space.uniform(middle)
                    finer.append(middle)
                    yield specs[middle]
            finer.append(level[-1])
            if len(finer) == len(level):
                return
            level = finer

    def _beside(self, number: int) -> PruningSpec:
        spec = self._space.uniform(self._ratios[number % len(self._ratios)])
        return nearest_unseen(self._space, spec, self._seen, self._rng) or spec


def check_ratios(name: str, ratios: Sequence[float]) -> None:
    """Raise AutopruneError unless every ratio of the setting `name` lies in (0, 1]."""
    wrong = [ratio for ratio in ratios if not 0.0 < ratio <= 1.0]
    if wrong:
        raise AutopruneError(f"{name} has {wrong}; choose kept ratios in (0, 1]")
