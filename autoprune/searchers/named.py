"""Searchers by name, for whoever has no config."""

import inspect
from collections.abc import Callable
from functools import partial

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.objective import Goal
from autoprune.domain.profile import Profile
from autoprune.domain.protocols import Searcher
from autoprune.domain.space import SearchSpace
from autoprune.searchers.frontier import FrontierSearcher
from autoprune.searchers.optuna import OptunaSearcher
from autoprune.searchers.random import RandomSearcher
from autoprune.searchers.samplers import SAMPLERS
from autoprune.searchers.uniform import UniformSearcher

AnyFactory = Callable[..., Searcher]
"""A `SearcherFactory` that need not take a profile."""

SEARCHERS: dict[str, AnyFactory] = {
    "uniform": UniformSearcher,
    "random": RandomSearcher,
    "frontier": FrontierSearcher,
    **{name: partial(OptunaSearcher, sampler=name) for name in SAMPLERS},
}
"""The built-in searchers by name."""


def build_searcher(
    factory: AnyFactory,
    space: SearchSpace,
    goal: Goal,
    seed: int,
    *,
    profile: Profile | None = None,
) -> Searcher:
    """What `factory` builds; it is handed the profile only where it takes one.

    Raises AutopruneError where that is no searcher.
    """
    takes_profile = "profile" in inspect.signature(factory).parameters
    known = {"profile": profile} if takes_profile else {}
    found = factory(space, goal, seed, **known)
    missing = [name for name in ("ask", "tell") if not callable(getattr(found, name, None))]
    if missing:
        raise AutopruneError(
            f"the searcher is a {type(found).__name__} without {', '.join(missing)}; build "
            "a Searcher (autoprune.domain.protocols)"
        )
    return found


def searcher_named(name: str) -> AnyFactory:
    """The built-in searcher of that name. Raises AutopruneError with the near miss."""
    if name not in SEARCHERS:
        raise unknown("searcher", name, SEARCHERS)
    return SEARCHERS[name]
