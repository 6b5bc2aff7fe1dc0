"""Searchers by name, for whoever has no config."""

import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points

from autoprune.domain.errors import AutopruneError, first_line, unknown
from autoprune.domain.objective import Goal
from autoprune.domain.profile import Profile
from autoprune.domain.protocols import Searcher
from autoprune.domain.ranking import Ranking
from autoprune.domain.space import SearchSpace
from autoprune.searchers.frontier import FrontierSearcher
from autoprune.searchers.optuna import OptunaSearcher
from autoprune.searchers.random import RandomSearcher
from autoprune.searchers.ranked import RankedSearcher
from autoprune.searchers.samplers import SAMPLERS
from autoprune.searchers.uniform import UniformSearcher

AnyFactory = Callable[..., Searcher]
"""A `SearcherFactory` that need not take a profile or a ranking."""

SEARCHERS: dict[str, AnyFactory] = {
    "uniform": UniformSearcher,
    "ranked": RankedSearcher,
    "random": RandomSearcher,
    "frontier": FrontierSearcher,
    **{name: partial(OptunaSearcher, sampler=name) for name in SAMPLERS},
}
"""The built-in searchers by name."""


def takes(factory: AnyFactory, knowledge: str) -> bool:
    """Whether what it builds reads the network's ``profile``, or its ``ranking``.

    Raises AutopruneError for what cannot be called.
    """
    if not callable(factory):
        raise AutopruneError(
            f"the searcher is {factory!r}; give a name, or what builds one: a class or a function "
            "that is called as factory(space, goal, seed)"
        )
    return knowledge in inspect.signature(factory).parameters


def build_searcher(
    factory: AnyFactory,
    space: SearchSpace,
    goal: Goal,
    seed: int,
    *,
    profile: Profile | None = None,
    ranking: Ranking | None = None,
) -> Searcher:
    """What `factory` builds; it is handed the profile and the ranking only where it takes them.

    Raises AutopruneError where that is no searcher, or where it cannot be built.
    """
    try:
        known = {"profile": profile, "ranking": ranking}
        taken = {name: fact for name, fact in known.items() if takes(factory, name)}
        found = factory(space, goal, seed, **taken)
    except AutopruneError:
        raise
    except Exception as error:  # code of a user's may raise anything
        raise AutopruneError(
            f"the searcher cannot be built ({type(error).__name__}: {first_line(error)}); its "
            "factory is called with space, goal and seed: mend it, or its arguments"
        ) from error
    missing = [name for name in ("ask", "tell") if not callable(getattr(found, name, None))]
    if missing:
        raise AutopruneError(
            f"the searcher is a {type(found).__name__} without {', '.join(missing)}; build "
            "a Searcher (autoprune.domain.protocols)"
        )
    return found


def searcher_named(name: str) -> AnyFactory:
    """The searcher of that name: a built-in one, or one that an installed package adds.

    A package adds a factory as an entry point of the group ``autoprune.searchers``; it is imported
    only when it is named. Raises AutopruneError with the near miss.
    """
    if name in SEARCHERS:
        return SEARCHERS[name]
    added = entry_points(group="autoprune.searchers")
    if name not in added.names:
        raise unknown("searcher", name, [*SEARCHERS, *added.names])
    factory: AnyFactory = added[name].load()
    return factory
