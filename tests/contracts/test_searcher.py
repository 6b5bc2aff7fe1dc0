"""Every searcher keeps the contract."""

from functools import partial

import numpy as np
from autoprune_agents import agent

from autoprune.domain.objective import Goal
from autoprune.domain.protocols import Searcher
from autoprune.domain.ranking import Ranking
from autoprune.domain.space import SearchSpace
from autoprune.searchers import (
    FrontierSearcher,
    OptunaSearcher,
    RandomSearcher,
    RankedSearcher,
    UniformSearcher,
)
from autoprune.searchers.named import AnyFactory
from tests.contracts.searcher_contract import SearcherContract

# A GP's ask takes seconds while other trials run (its batch acquisition), so it gets few.
GP = partial(OptunaSearcher, sampler="gp", options={"n_startup_trials": 2})
TPE = partial(OptunaSearcher, sampler="tpe", options={"n_startup_trials": 6})
SMALL = {"batch_size": 16, "learning_rate": 0.01, "policy_kwargs": {"net_arch": [16]}}


class TestUniform(SearcherContract):
    factory = staticmethod(UniformSearcher)
    seeded = False


def ranked(space: SearchSpace, goal: Goal, seed: int) -> Searcher:
    """Global ranking by scores that differ from group to group and by criterion."""
    rng = np.random.default_rng(0)
    scores = {
        criterion: {g.name: tuple(np.sort(rng.random(g.size)).tolist()) for g in space.groups}
        for criterion in space.criteria
    }
    return RankedSearcher(space, goal, seed, ranking=Ranking(scores))


class TestRanked(SearcherContract):
    factory = staticmethod(ranked)
    seeded = False


class TestRandom(SearcherContract):
    factory = staticmethod(RandomSearcher)


class TestFrontier(SearcherContract):
    factory = staticmethod(FrontierSearcher)


class TestNsga2(SearcherContract):
    factory = staticmethod(partial(OptunaSearcher, sampler="nsga2"))


class TestNsga3(SearcherContract):
    factory = staticmethod(partial(OptunaSearcher, sampler="nsga3"))


class TestTpe(SearcherContract):
    factory = staticmethod(TPE)
    budget = 16


class TestGp(SearcherContract):
    factory = staticmethod(GP)
    budget, slots = 4, 2


def quick(algorithm: str) -> AnyFactory:
    """An agent that learns early and little."""
    learning = {"algorithm": algorithm, "warm_up": 6, "gradient_steps": 2, "options": SMALL}
    learning["actor_learning_rate"] = None
    return partial(agent, learning=learning)


class TestSac(SearcherContract):
    factory = staticmethod(quick("sac"))
    budget = 18


class TestTd3(SearcherContract):
    factory = staticmethod(quick("td3"))
    budget = 18


class TestDdpg(SearcherContract):
    factory = staticmethod(quick("ddpg"))
    budget = 18
