"""Every searcher keeps the contract, alone and with the uniform points first."""

from functools import partial

from autoprune.searchers import OptunaSearcher, RandomSearcher, UniformSearcher, uniform_first
from tests.contracts.searcher_contract import SearcherContract

# A GP's ask takes seconds while other trials run (its batch acquisition), so it gets few.
GP = partial(OptunaSearcher, sampler="gp", options={"n_startup_trials": 2})
TPE = partial(OptunaSearcher, sampler="tpe", options={"n_startup_trials": 6})


class TestUniform(SearcherContract):
    factory = staticmethod(UniformSearcher)
    seeded = False


class TestRandom(SearcherContract):
    factory = staticmethod(RandomSearcher)


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


class FirstContract(SearcherContract):
    """The first proposals are the same whatever the seed."""

    seeded = False


class TestFirstUniform(FirstContract):
    factory = staticmethod(partial(uniform_first, inner=UniformSearcher))


class TestFirstRandom(FirstContract):
    factory = staticmethod(partial(uniform_first, inner=RandomSearcher))


class TestFirstNsga2(FirstContract):
    factory = staticmethod(partial(uniform_first, inner=OptunaSearcher))


class TestFirstNsga3(FirstContract):
    factory = staticmethod(partial(uniform_first, inner=partial(OptunaSearcher, sampler="nsga3")))


class TestFirstTpe(FirstContract):
    factory = staticmethod(partial(uniform_first, inner=TPE))
    budget = 16


class TestFirstGp(FirstContract):
    factory = staticmethod(partial(uniform_first, inner=GP))
    budget, slots = 4, 1
