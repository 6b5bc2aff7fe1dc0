"""The known problems: their fronts are those of every network there is, their troubles are real."""

import itertools

import moocore
import numpy as np
import pytest

from autoprune.domain.errors import AutopruneError
from autoprune.domain.pareto import ParetoFront
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Failure, Measurement, Observation, Trial, trial_seed
from autoprune.problems import KINDS, SIZES, ChainProblem, known_problem


def all_specs(problem: ChainProblem):
    options = problem.space.options
    for levels in itertools.product(*(range(len(widths)) for widths in options)):
        yield problem.space.at(levels)


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_front_is_that_of_every_network_there_is(kind):
    problem = known_problem(kind, 3, seed=1)
    found = [problem.true(spec) for spec in all_specs(problem)]
    points = np.array([problem.goal.values(one) for one in found if one is not None])
    useful = points[points[:, 0] > problem.goal.reference[0]]
    best = useful[moocore.is_nondominated(useful, maximise=True, keep_weakly=False)]
    best = best[np.argsort(best[:, 1])]
    front_N2 = problem.front_N2[np.argsort(problem.front_N2[:, 1])]  # noqa: N806
    np.testing.assert_allclose(front_N2, best, rtol=1e-12, atol=1e-12)
    volume = moocore.hypervolume(best, ref=list(problem.goal.reference), maximise=True)
    assert problem.best_hypervolume == pytest.approx(volume, rel=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_network_is_the_unit_and_half_of_it_is_still_of_use(kind, size):
    problem = known_problem(kind, size)
    whole = problem.true(problem.space.uniform(1.0))
    assert whole.metrics == {"accuracy": pytest.approx(0.95), "speedup": pytest.approx(1.0)}
    half = problem.true(problem.space.uniform(0.5))
    assert half.metrics["accuracy"] > problem.goal.reference[0]
    assert half.metrics["speedup"] > 1.5
    tried = [observed(problem, n, problem.space.uniform(r)) for n, r in enumerate((0.5, 0.25))]
    assert 0.1 < problem.hypervolume(tried) / problem.best_hypervolume < 0.9


def observed(problem, number, spec, seed=0) -> Observation:
    return problem.observe(Trial(number, spec, trial_seed(seed, number)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_gives_the_same_again_and_no_front_is_better_than_the_best(kind):
    problem, rng = known_problem(kind, 8), np.random.default_rng(0)
    specs = [problem.space.sample(rng) for _ in range(200)]
    found = [observed(problem, number, spec) for number, spec in enumerate(specs)]
    assert found == [observed(problem, number, spec) for number, spec in enumerate(specs)]
    assert 0 < problem.hypervolume(found) <= problem.best_hypervolume
    assert problem.hypervolume([]) == 0.0


def test_only_noise_tells_other_than_the_truth():
    rng = np.random.default_rng(0)
    for kind in KINDS:
        problem = known_problem(kind, 24)
        off = []
        for number in range(100):
            spec = problem.space.sample(rng)
            told, true = observed(problem, number, spec).outcome, problem.true(spec)
            if true is None:
                assert isinstance(told, Failure)
                continue
            assert isinstance(told, Measurement)
            off.append(told.metrics["accuracy"] - true.metrics["accuracy"])
        assert (np.std(off) > 0.001) == (kind == "noisy")
        assert (len(off) < 100) == (kind == "infeasible")


def test_noise_in_what_is_told_does_not_flatter_a_search():
    problem, rng = known_problem("noisy", 8), np.random.default_rng(1)
    found = [observed(problem, n, problem.space.sample(rng)) for n in range(300)]
    assert problem.hypervolume(found) < ParetoFront(problem.goal, found).hypervolume()


def test_coupled_neighbours_lose_more_together_than_one_by_one():
    problem = known_problem("coupled", 8)
    whole = {axis.group.name: axis.group.size for axis in problem.space.axes}

    def lost(*cut):
        widths = whole | {name: whole[name] // 4 for name in cut}
        return 0.95 - problem.true(PruningSpec.of(widths)).metrics["accuracy"]

    assert lost("g000", "g001") > lost("g000") + lost("g001") + 1e-4
    assert lost("g000", "g005") == pytest.approx(lost("g000") + lost("g005"))


@pytest.mark.parametrize(
    ("kind", "groups", "message"),
    [
        ("clif", 8, "kind of problem 'clif' is not known; did you mean 'cliff'"),
        ("cliff", 1, "a problem of 1 groups; choose 2 or more"),
    ],
)
def test_problems_that_there_are_not(kind, groups, message):
    with pytest.raises(AutopruneError, match=message):
        known_problem(kind, groups)


def test_a_profile_holds_every_group_alone_as_it_is_before_recovery():
    problem = known_problem("coupled", 8)
    profile = problem.profile(seed=0)
    assert profile == problem.profile(seed=0) != problem.profile(seed=1)
    assert profile.within(problem.space) == profile
    whole = problem.space.uniform(1.0)
    factors = []
    for point in profile.points:
        ((name, width),) = point.widths.items()
        assert width < whole.widths[name]
        true = problem.true(PruningSpec.of(whole.widths | point.widths)).metrics
        assert point.speedup.ratio == point.metrics["speedup"] == true["speedup"]
        factors.append((0.95 - point.metrics["accuracy"]) / (0.95 - true["accuracy"]))
    assert {name for point in profile.points for name in point.widths} == set(whole.widths)
    assert np.exp(np.mean(np.log(factors))) == pytest.approx(3.0, rel=0.3)
