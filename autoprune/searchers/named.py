"""Searchers by name, for whoever has no config."""

from functools import partial

from autoprune.domain.errors import unknown
from autoprune.domain.protocols import SearcherFactory
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


def searcher_named(name: str) -> SearcherFactory:
    """The built-in searcher of that name. Raises AutopruneError with the near miss."""
    if name not in SEARCHERS:
        raise unknown("searcher", name, SEARCHERS)
    return SEARCHERS[name]
