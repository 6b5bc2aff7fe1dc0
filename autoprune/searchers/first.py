"""Uniform points first: hard to beat, so every search starts from them."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from autoprune.domain.objective import Goal
from autoprune.domain.protocols import Searcher, SearcherFactory
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation
from autoprune.searchers.novelty import nearest_unseen
from autoprune.searchers.uniform import RATIOS, UniformSearcher, check_ratios

FIRST = RATIOS[:3]
"""Half, three quarters, a quarter: they span the range and leave most of a small budget."""


class UniformFirst:
    """Proposes one uniform spec a ratio, then whatever `inner` proposes.

    `inner` hears of every outcome, those of the uniform specs too. Until such an outcome is in,
    `inner` may propose the same spec; the nearest spec not proposed yet is then run in its place
    and told to `inner`. Equal specs (in a narrow space) are asked once.
    """

    def __init__(
        self, space: SearchSpace, inner: Searcher, *, ratios: Sequence[float] = FIRST
    ) -> None:
        check_ratios(ratios)
        self._space, self._inner = space, inner
        self._first = deque(dict.fromkeys(map(space.uniform, ratios)))
        self._uniform = frozenset(self._first)
        self._proposed: set[PruningSpec] = set()

    def ask(self, number: int) -> PruningSpec:
        """The next uniform spec while there is one, then `inner`'s proposal."""
        spec = self._first.popleft() if self._first else self._inner_spec(number)
        self._proposed.add(spec)
        return spec

    def tell(self, observation: Observation) -> None:
        """Pass the outcome on."""
        self._inner.tell(observation)

    def _inner_spec(self, number: int) -> PruningSpec:
        spec = self._inner.ask(number)
        if spec not in self._uniform:
            return spec
        rng = np.random.default_rng(number)
        return nearest_unseen(self._space, spec, self._proposed, rng) or spec


def uniform_first(
    space: SearchSpace,
    goal: Goal,
    seed: int,
    *,
    inner: SearcherFactory,
    ratios: Sequence[float] = FIRST,
) -> Searcher:
    """A factory: what `inner` builds, with the uniform specs of `ratios` asked first.

    No ratios leave it as it is. So does a `UniformSearcher`: its own grid comes first anyway.
    Raises AutopruneError for a ratio outside (0, 1].
    """
    check_ratios(ratios)
    searcher = inner(space, goal, seed)
    if not ratios or isinstance(searcher, UniformSearcher):
        return searcher
    return UniformFirst(space, searcher, ratios=ratios)
