"""Proposals that were not made before: measuring a point twice wastes a trial."""

from collections import deque
from collections.abc import Container

import numpy as np

from autoprune.domain.space import PruningSpec, SearchSpace


def nearest_unseen(
    space: SearchSpace, spec: PruningSpec, seen: Container[PruningSpec], rng: np.random.Generator
) -> PruningSpec | None:
    """The spec fewest single steps away from `spec` that is not in `seen`.

    A step moves one dimension to the next or the previous of its legal values; `rng` orders the
    steps, so that equally near specs are equally likely. None where every spec of the space was
    seen. Looks at no more than ``2 d (len(seen) + 1)`` specs: only seen ones are walked through,
    and the lattice of legal values is connected.
    """
    sizes = [len(options) for options in space.options]
    start = space.indices(spec)
    queue, reached = deque([start]), {start}
    while queue:
        here = queue.popleft()
        candidate = space.at(here)
        if candidate not in seen:
            return candidate
        steps = [(axis, move) for axis in range(len(sizes)) for move in (-1, 1)]
        for i in rng.permutation(len(steps)):
            axis, move = steps[i]
            index = here[axis] + move
            there = (*here[:axis], index, *here[axis + 1 :])
            if 0 <= index < sizes[axis] and there not in reached:
                reached.add(there)
                queue.append(there)
    return None
