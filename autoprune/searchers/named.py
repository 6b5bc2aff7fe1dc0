"""Searchers by name, for whoever has no config."""

from functools import partial

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.objective import Goal
from autoprune.domain.protocols import Searcher, SearcherFactory
from autoprune.domain.space import SearchSpace
from autoprune.searchers.optuna import OptunaSearcher
from autoprune.searchers.random import RandomSearcher
from autoprune.searchers.samplers import SAMPLERS
from autoprune.searchers.uniform import UniformSearcher

SEARCHERS: dict[str, SearcherFactory] = {
    "uniform": UniformSearcher,
    "random": RandomSearcher,
    **{name: partial(OptunaSearcher, sampler=name) for name in SAMPLERS},
}
"""The built-in searchers by name."""


def checked(factory: SearcherFactory) -> SearcherFactory:
    """A factory that raises AutopruneError where what it builds is no searcher."""

    def build(space: SearchSpace, goal: Goal, seed: int) -> Searcher:
        found = factory(space, goal, seed)
        missing = [name for name in ("ask", "tell") if not callable(getattr(found, name, None))]
        if missing:
            raise AutopruneError(
                f"the searcher is a {type(found).__name__} without {', '.join(missing)}; build "
                "a Searcher (autoprune.domain.protocols)"
            )
        return found

    return build


def searcher_named(name: str) -> SearcherFactory:
    """The built-in searcher of that name. Raises AutopruneError with the near miss."""
    if name not in SEARCHERS:
        raise unknown("searcher", name, SEARCHERS)
    return SEARCHERS[name]
