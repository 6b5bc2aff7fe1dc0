"""The uniform baseline: every group keeps the same ratio of its units."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Goal
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation
from autoprune.searchers.novelty import nearest_first

RATIOS = (0.5, 0.75, 0.25, 0.875, 0.625, 0.375, 0.125)
"""Eighths in the order of the van der Corput sequence, the wider first: after one, three or
seven trials the range is covered evenly, so a budget of any size spans it."""

FINEST = 1e-4
"""Ratios nearer than this are not told apart: finer than one unit of ten thousand."""


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
        check_ratios("ratios", ratios)
        if not ratios:
            raise AutopruneError("the uniform searcher has no ratio; name at least one in (0, 1]")
        self._space = space
        self._ratios = tuple(ratios)
        self._specs = self._sequence()
        rng = np.random.default_rng(seed)
        # begun once and gone on with, so that no ask walks through what was seen before
        self._beside = [nearest_first(space, space.uniform(ratio), rng) for ratio in ratios]
        self._seen: set[PruningSpec] = set()

    def ask(self, number: int) -> PruningSpec:
        """The next spec of the sequence that is new."""
        at = number % len(self._ratios)
        spec = self._new(self._specs) or self._new(self._beside[at])
        if spec is None:
            spec = self._space.uniform(self._ratios[at])
        self._seen.add(spec)
        return spec

    def _new(self, specs: Iterator[PruningSpec]) -> PruningSpec | None:
        return next((spec for spec in specs if spec not in self._seen), None)

    def tell(self, observation: Observation) -> None:
        """Take note that the spec is known."""
        self._seen.add(observation.trial.spec)

    def _sequence(self) -> Iterator[PruningSpec]:
        edges = _edges(self._space)
        known: set[int] = set()
        level = sorted(self._ratios, reverse=True)
        for ratio in self._ratios:
            known.add(bisect_right(edges, ratio))
            yield self._space.uniform(ratio)
        while True:
            finer = level[:1]
            for high, low in pairwise(level):
                above, below = bisect_right(edges, high), bisect_right(edges, low)
                if above - below > 1 and high - low > FINEST:
                    middle = (high + low) / 2
                    finer.append(middle)
                    between = bisect_right(edges, middle)
                    if between not in known:
                        known.add(between)
                        yield self._space.uniform(middle)
                finer.append(low)
            if len(finer) == len(level):
                return
            level = finer


def _edges(space: SearchSpace) -> list[float]:
    """The ratios at which some group's width changes, ascending: from edge to edge all is equal."""
    return sorted(
        {
            (narrow + wide) / (2 * axis.group.size)
            for axis in space.axes
            for narrow, wide in pairwise(axis.widths)
        }
    )


def check_ratios(name: str, ratios: Sequence[float]) -> None:
    """Raise AutopruneError unless every ratio of the setting `name` lies in (0, 1]."""
    wrong = [ratio for ratio in ratios if not 0.0 < ratio <= 1.0]
    if wrong:
        raise AutopruneError(f"{name} has {wrong}; choose kept ratios in (0, 1]")
