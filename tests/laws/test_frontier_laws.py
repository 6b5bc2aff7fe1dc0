"""Laws of what the searcher `frontier` believes: regression, sums, amounts, failures, descent."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.domain.objective import Constraint, Direction, Objective
from autoprune.domain.space import Axis, Group, SearchSpace
from autoprune.searchers.frontier.amounts import amounts_of
from autoprune.searchers.frontier.belief import Belief, Prior, Sums, heavy_tailed, likeliest
from autoprune.searchers.frontier.descent import descended
from autoprune.searchers.frontier.failures import Failures
from autoprune.searchers.frontier.lattice import Lattice
from autoprune.searchers.frontier.terms import COST, LOSS, Terms
from tests.strategies import spaces_with_indices

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from([COST, LOSS])


def chain(groups=4, size=64, step=8, **choices):
    """Groups of which each two neighbours meet in a layer."""
    layers = [(f"l{at}", f"l{at + 1}") for at in range(groups)]
    axes = (
        Axis(Group(f"g{at}", "channels", size, step, layers[at]), 1, size) for at in range(groups)
    )
    return SearchSpace(tuple(axes), **choices)


@st.composite
def regressions(draw):
    """A prior of K weights and T sums of terms that were seen."""
    rng = np.random.default_rng(draw(seeds))
    terms, trials = draw(st.integers(1, 6)), draw(st.integers(0, 8))
    prior = Prior(rng.normal(size=terms), rng.uniform(0.1, 2.0, terms), draw(st.floats(0.05, 2.0)))
    seen = Sums(
        rng.normal(size=(trials, terms)), rng.normal(size=trials), rng.uniform(0.1, 1.0, trials)
    )
    return prior, seen


def posterior(prior, seen):
    """Mean and covariance of the weights in the primal form, the common factor the last of them."""
    extended = np.column_stack([seen.terms_TK, seen.terms_TK @ prior.mean_K])
    mean = np.append(np.zeros(len(prior.mean_K)), 1.0)
    precision = np.diag(1.0 / np.append(prior.sd_K, prior.doubt) ** 2)
    noise = np.diag(1.0 / seen.sd_T**2)
    covariance = np.linalg.inv(precision + extended.T @ noise @ extended)
    return covariance @ (precision @ mean + extended.T @ noise @ seen.values_T), covariance


@quick
@given(regressions())
def test_the_mean_is_that_of_bayesian_regression_in_the_primal_form(regression):
    prior, seen = regression
    mean, covariance = posterior(prior, seen)
    belief = Belief(prior, seen)
    expected = mean[:-1] + mean[-1] * prior.mean_K
    np.testing.assert_allclose(belief.mean_K, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(belief.draw(np.random.default_rng(0), 0.0), belief.mean_K)
    squares = (mean**2 + np.diag(covariance))[:-1]
    np.testing.assert_allclose(belief.squares_K, squares, rtol=1e-4, atol=1e-5)


def test_draws_have_the_covariance_of_bayesian_regression():
    rng = np.random.default_rng(0)
    prior = Prior(np.array([1.0, -0.5, 0.2]), np.array([1.0, 0.5, 2.0]), 0.7)
    seen = Sums(rng.normal(size=(4, 3)), rng.normal(size=4), np.full(4, 0.5))
    belief = Belief(prior, seen)
    draws = np.array([belief.draw(rng, 1.0) for _ in range(20000)])
    _, covariance = posterior(prior, seen)
    fold = np.column_stack([np.eye(3), prior.mean_K])
    np.testing.assert_allclose(draws.mean(axis=0), belief.mean_K, atol=0.03)
    np.testing.assert_allclose(np.cov(draws.T), fold @ covariance @ fold.T, atol=0.03)


@pytest.mark.parametrize(("wide", "noisy"), [(1.0, 0.1), (4.0, 1.0), (0.5, 3.0)])
def test_the_likeliest_factors_are_those_that_made_the_sums(wide, noisy):
    rng = np.random.default_rng(0)
    prior = Prior(np.ones(10), np.full(10, 0.3), 0.0)
    terms = rng.normal(size=(200, 10))
    weights = prior.mean_K + wide * prior.sd_K * rng.choice([-1.0, 1.0], 10)
    values = terms @ weights + noisy * 0.2 * rng.normal(size=200)
    assert likeliest(prior, Sums(terms, values, np.full(200, 0.2))) == (wide, noisy)


@quick
@given(seeds)
def test_a_single_large_weight_is_told_better_with_heavy_tails(seed):
    rng = np.random.default_rng(seed)
    terms, truth = rng.normal(size=(12, 30)), np.zeros(30)
    truth[rng.integers(30)] = 3.0
    prior = Prior(np.zeros(30), np.full(30, 0.1), 0.0)
    seen = Sums(terms, terms @ truth, np.full(12, 0.05))
    errors = [
        np.linalg.norm(Belief(one, seen).mean_K - truth)
        for one in (prior, heavy_tailed(prior, seen))
    ]
    assert errors[1] < errors[0]


@quick
@given(spaces_with_indices())
def test_levels_and_specs_are_inverse(case):
    space, indices = case
    lattice = Lattice(space)
    spec = space.at(indices)
    assert lattice.spec(lattice.levels(spec)) == spec
    widths = lattice.widths_GW[np.arange(lattice.groups), indices[: lattice.groups]]
    assert {a.group.name: w for a, w in zip(space.axes, widths, strict=True)} == spec.widths


def some_levels(lattice, rng, count=5):
    return rng.integers(lattice.counts_D, size=(count, len(lattice.counts_D)))


CHOICES = {
    "criteria": ("l1", "l2", "taylor"),
    "recoveries": ("none", "finetune"),
    "precisions": ("fp32", "int8"),
}


@quick
@given(families, seeds, st.sampled_from([4, 8, 16]))
def test_tables_of_weights_that_are_not_negative_are_the_sums_of_terms(family, seed, step):
    rng, lattice = np.random.default_rng(seed), Lattice(chain(step=step, **CHOICES))
    terms = Terms(family, lattice)
    levels = some_levels(lattice, rng)
    rows = terms.of(lattice.networks(levels))
    weights = rng.exponential(size=rows.shape[1])
    np.testing.assert_allclose(terms.tables(weights).of(levels), rows @ weights)


@quick
@given(families, seeds)
def test_what_changes_along_a_dimension_is_the_difference_of_sums(family, seed):
    rng, lattice = np.random.default_rng(seed), Lattice(chain(**CHOICES))
    terms = Terms(family, lattice)
    levels = some_levels(lattice, rng)
    tables = terms.tables(rng.normal(size=terms.of(lattice.networks(levels)).shape[1]))
    for dimension, count in enumerate(lattice.counts_D):
        along = tables.along(dimension, levels)
        first = levels.copy()
        first[:, dimension] = 0
        for level in range(count):
            there = levels.copy()
            there[:, dimension] = level
            change = tables.of(there) - tables.of(first)
            np.testing.assert_allclose(along[:, level] - along[:, 0], change, atol=1e-9)


@quick
@given(families, seeds)
def test_costs_rise_and_losses_fall_with_every_width(family, seed):
    rng, lattice = np.random.default_rng(seed), Lattice(chain(step=16))
    terms = Terms(family, lattice)
    levels = some_levels(lattice, rng)
    tables = terms.tables(rng.normal(size=terms.of(lattice.networks(levels)).shape[1]))
    for group in range(lattice.groups):
        for narrow, wide in pairwise(tables.along(group, levels).T):
            assert (wide >= narrow - 1e-9).all() if family.rises else (wide <= narrow + 1e-9).all()


def test_widths_off_the_blocks_of_kernels_may_cost_more_than_wider_ones():
    lattice = Lattice(chain(groups=1, size=64, step=8))
    terms = Terms(COST, lattice)
    surcharged = terms.of(lattice.networks(np.array([[4]]))) != 0.0
    aligned = terms.of(lattice.networks(np.array([[5]]))) != 0.0
    weights = np.where(surcharged & ~aligned, 1.0, 0.0)[0]
    at_40, at_48 = terms.tables(weights).of(np.array([[4], [5]]))
    assert at_40 > at_48


@quick
@given(
    st.sampled_from(["speedup", "latency_ms", "params", "accuracy", "perplexity"]),
    st.lists(st.floats(0.1, 10.0), min_size=1, max_size=5),
    st.floats(0.1, 10.0),
)
def test_amounts_are_smaller_the_better_and_values_come_back(metric, values, edge):
    better = Direction.MAX if metric in ("speedup", "accuracy") else Direction.MIN
    seen = np.array(values)
    amounts = amounts_of(Objective(metric, better), edge, seen)
    found = amounts.of(seen)
    order = np.argsort(-better.sign * seen)
    assert (np.diff(found[order]) >= 0).all()
    inside = found < 4.0
    np.testing.assert_allclose(amounts.values(found)[inside], seen[inside], rtol=1e-6, atol=1e-6)
    assert np.isfinite(amounts.deviation(found)).all()


@pytest.mark.parametrize("metric", ["speedup", "params", "accuracy"])
@pytest.mark.parametrize("values", [[], [0.0], [-3.0, 0.0], [0.0, 0.0, 2.0]])
@pytest.mark.parametrize("edge", [-1.0, 0.0, 1.0])
def test_amounts_of_any_values_are_finite(metric, values, edge):
    amounts = amounts_of(Objective(metric, Direction.MAX), edge, np.array(values))
    assert np.isfinite(amounts.of(np.array([-1.0, 0.0, 1.0]))).all()
    assert np.isfinite(amounts.values(np.array([-1.0, 0.0, 1.0]))).all()


def test_blame_for_failures_goes_to_the_widths_that_no_other_trial_had():
    rng, lattice = np.random.default_rng(0), Lattice(chain(groups=5, size=16, step=1))
    levels = some_levels(lattice, rng, 300)
    share = lattice.networks(levels).share_NG
    fails = (share[:, 1] <= 0.25) & (share[:, 2] > 0.5)
    known = Failures.fit(lattice, levels[:200][fails[:200]], levels[:200][~fails[:200]])
    unseen = known.passing(levels[200:])
    assert unseen[fails[200:]].max() < unseen[~fails[200:]].min()
    assert unseen[~fails[200:]].mean() > 0.9


@quick
@given(seeds)
def test_chances_not_to_fail_are_chances_whatever_was_told(seed):
    rng, lattice = np.random.default_rng(seed), Lattice(chain())
    failed, passed = (some_levels(lattice, rng, count) for count in rng.integers(0, 9, 2))
    chance = Failures.fit(lattice, failed, passed).passing(some_levels(lattice, rng, 20))
    assert ((chance >= 0.0) & (chance <= 1.0)).all()


@pytest.mark.parametrize(
    ("bounds", "scale"),
    [((2.0, np.inf), 2.0), ((-np.inf, -3.0), 3.0), ((-4.0, 1.0), 4.0), ((0.0, 0.0), 1.0)],
)
def test_violations_compare_by_the_larger_bound(bounds, scale):
    assert Constraint("speedup", *bounds).scale == scale


@quick
@given(families, seeds)
def test_descent_by_one_quantity_never_ends_above_its_start(family, seed):
    rng, lattice = np.random.default_rng(seed), Lattice(chain(**CHOICES))
    terms = Terms(family, lattice)
    start = some_levels(lattice, rng, 1)
    tables = terms.tables(rng.normal(size=terms.of(lattice.networks(start)).shape[1]))
    found = descended(lattice, start, [tables], rng)
    assert ((found >= 0) & (found < lattice.counts_D)).all()
    assert (tables.of(found) <= tables.of(start) + 1e-9).all()
