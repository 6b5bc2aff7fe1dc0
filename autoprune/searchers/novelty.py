"""Proposals that were not made before: measuring a point twice wastes a trial."""

from collections import deque
from collections.abc import Container, Iterator

import numpy as np

from autoprune.domain.space import PruningSpec, SearchSpace


def nearest_first(
    space: SearchSpace, spec: PruningSpec, rng: np.random.Generator
) -> Iterator[PruningSpec]:
    """Every spec of the space, those fewest single steps away from `spec` first.

    A step moves one dimension to the next or the previous of its legal values; `rng` orders the
    steps, so that equally near specs are equally likely. Each spec is made when it is asked for.
    """
    last = [len(options) - 1 for options in space.options]
    steps = [(axis, move) for axis, most in enumerate(last) if most for move in (-1, 1)]
    start = space.indices(spec)
    queue, reached = deque([start]), {start}
    yield spec
    while queue:
        here = queue.popleft()
        for i in rng.permutation(len(steps)):
            axis, move = steps[i]
            index = here[axis] + move
            if not 0 <= index <= last[axis]:
                continue
            there = (*here[:axis], index, *here[axis + 1 :])
            if there not in reached:
                reached.add(there)
                queue.append(there)
                yield space.at(there)


def nearest_unseen(
    space: SearchSpace, spec: PruningSpec, seen: Container[PruningSpec], rng: np.random.Generator
) -> PruningSpec | None:
    """The first of `nearest_first` that is not in `seen`; None where all of the space was seen.

    Looks at no more than ``len(seen) + 1`` specs.
    """
    return next((near for near in nearest_first(space, spec, rng) if near not in seen), None)
