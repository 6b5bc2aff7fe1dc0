"""A grid of ratios: what searchers share that propose by ratio and learn nothing."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.searchers.novelty import nearest_first

RATIOS = (0.5, 0.75, 0.25, 0.875, 0.625, 0.375, 0.125)
"""Eighths in the order of the van der Corput sequence, the wider first: after one, three or
seven trials the range is covered evenly, so a budget of any size spans it."""

FINEST = 1e-4
"""Ratios nearer than this are not told apart: finer than one unit of ten thousand."""

AtRatio = Callable[[float], PruningSpec]


class Grid:
    """Specs in the order given, and when they are used up those nearest to the first of them.

    Nothing is proposed twice, nor anything that is known, before the whole space is used up.
    """

    def __init__(
        self,
        space: SearchSpace,
        specs: Iterator[PruningSpec],
        *,
        first: Sequence[PruningSpec],
        rng: np.random.Generator,
    ) -> None:
        self._specs, self._first = specs, tuple(first)
        # begun once and gone on with, so that no ask walks through what was seen before
        self._beside = [nearest_first(space, spec, rng) for spec in first]
        self._seen: set[PruningSpec] = set()

    def ask(self, number: int) -> PruningSpec:
        """The next spec that is new."""
        at = number % len(self._first)
        spec = self._new(self._specs) or self._new(self._beside[at]) or self._first[at]
        self._seen.add(spec)
        return spec

    def learn(self, spec: PruningSpec) -> None:
        """Take note that a spec is known."""
        self._seen.add(spec)

    def _new(self, specs: Iterator[PruningSpec]) -> PruningSpec | None:
        return next((spec for spec in specs if spec not in self._seen), None)


def refined(ratios: Sequence[float], edges: Sequence[float], at: AtRatio) -> Iterator[PruningSpec]:
    """The specs at `ratios`, in order, then at the middle of every gap between neighbours, level
    by level and from wide to narrow, skipping gaps with no other spec inside.

    `edges` are the ratios at which the spec changes, ascending.
    """
    known: set[int] = set()
    level = sorted(ratios, reverse=True)
    for ratio in ratios:
        known.add(bisect_right(edges, ratio))
        yield at(ratio)
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
                    yield at(middle)
            finer.append(low)
        if len(finer) == len(level):
            return
        level = finer


def check_ratios(name: str, ratios: Sequence[float]) -> None:
    """Raise AutopruneError unless every ratio of the setting `name` lies in (0, 1]."""
    wrong = [ratio for ratio in ratios if not 0.0 < ratio <= 1.0]
    if wrong:
        raise AutopruneError(f"{name} has {wrong}; choose kept ratios in (0, 1]")


def check_some(name: str, ratios: Sequence[float]) -> None:
    """Raise AutopruneError unless the searcher `name` has ratios, all of them in (0, 1]."""
    check_ratios("ratios", ratios)
    if not ratios:
        raise AutopruneError(f"the {name} searcher has no ratio; name at least one in (0, 1]")
