"""The agents as factories of searchers, which say what is missing without the extra rl."""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.objective import Goal
from autoprune.domain.profile import Profile
from autoprune.domain.protocols import Searcher
from autoprune.domain.space import SearchSpace
from autoprune_agents.learning import LEARNING, Aim, Learning

EXTRA = ("gymnasium", "stable_baselines3")
"""The packages of the extra rl."""


def agent(
    space: SearchSpace,
    goal: Goal,
    seed: int,
    *,
    profile: Profile | None = None,
    aim: Mapping[str, Any] | None = None,
    learning: Mapping[str, Any] | None = None,
) -> Searcher:
    """A searcher that an agent of Stable-Baselines3 steers: SAC, where nothing else is said.

    `aim` are fields of `Aim` and `learning` of `Learning`, by name; those left out are the
    algorithm's own, which ``conf/searcher/`` spells out. Raises AutopruneError where the extra rl
    is not installed, for an unknown algorithm, reward, objective or field, and for values out of
    range.
    """
    given = _known("learning", learning or {}, Learning)
    algorithm = given.get("algorithm", "sac")
    if algorithm not in LEARNING:
        raise unknown("algorithm of an agent", algorithm, LEARNING)
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise AutopruneError(
            f"searcher={algorithm} needs the packages of the extra rl ({' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not installed); pip install 'autoprune[rl]'"
        )
    # not above: without the extra it cannot be imported
    from autoprune_agents.searcher import AgentSearcher

    return AgentSearcher(
        space,
        goal,
        seed,
        profile=profile,
        aim=Aim(**_known("aim", aim or {}, Aim)),
        learning=replace(LEARNING[algorithm], **given),
    )


sac = partial(agent, learning={"algorithm": "sac"})
"""Soft actor-critic (Haarnoja et al. 2018, arXiv:1801.01290), the default."""

td3 = partial(agent, learning={"algorithm": "td3"})
"""Twin delayed DDPG (Fujimoto et al. 2018, arXiv:1802.09477)."""

ddpg = partial(agent, learning={"algorithm": "ddpg"})
"""DDPG with the hyper-parameters of AMC (He et al. 2018, arXiv:1802.03494), its reference."""


def _known(what: str, given: Mapping[str, Any], record: type[Any]) -> Mapping[str, Any]:
    """`given`, where it names fields of a record only."""
    names = [field.name for field in fields(record)]
    for name in given:
        if name not in names:
            raise unknown(f"setting {what} of an agent", name, names)
    return given
