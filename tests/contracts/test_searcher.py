"""Every searcher keeps the contract."""

from functools import partial

from autoprune.searchers import FrontierSearcher, OptunaSearcher, RandomSearcher, UniformSearcher
from tests.contracts.searcher_contract import SearcherContract

# A GP's ask takes seconds while other trials run (its batch acquisition), so it gets few.
GP = partial(OptunaSearcher, sampler="gp", options={"n_startup_trials": 2})
TPE = partial(OptunaSearcher, sampler="tpe", options={"n_startup_trials": 6})


class TestUniform(SearcherContract):
    factory = staticmethod(UniformSearcher)
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
