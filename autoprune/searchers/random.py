"""The random baseline: every dimension drawn uniformly over its legal values."""

import numpy as np

from autoprune.domain.objective import Goal
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation
from autoprune.searchers.novelty import nearest_unseen

TRIES = 32
"""Draws before the nearest new spec is taken: enough while half of the space is new."""


class RandomSearcher:
    """Independent draws, each from a generator of its own seeded by (seed, number).

    Which outcomes came when has no influence, so parallel and resumed sweeps propose what a
    sequential one does. A spec that was proposed already is drawn again, at most `TRIES` times,
    then replaced by the nearest new one; a used-up space repeats itself.
    """

    def __init__(self, space: SearchSpace, goal: Goal, seed: int) -> None:
        del goal  # random search aims at nothing
        self._space = space
        self._seed = seed
        self._seen: set[PruningSpec] = set()

    def ask(self, number: int) -> PruningSpec:
        """Draw trial `number`."""
        rng = np.random.default_rng([self._seed, number])
        draws = (self._space.sample(rng) for _ in range(TRIES))
        spec = next((spec for spec in draws if spec not in self._seen), None)
        if spec is None:
            spec = self._space.sample(rng)
            if len(self._seen) < self._space.size:
                spec = nearest_unseen(self._space, spec, self._seen, rng) or spec
        self._seen.add(spec)
        return spec

    def tell(self, observation: Observation) -> None:
        """Nothing to learn: outcomes do not change what is drawn."""
        del observation
