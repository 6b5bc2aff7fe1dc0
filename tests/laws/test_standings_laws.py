"""What holds for every comparison of searchers."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from autoprune.domain.errors import AutopruneError
from autoprune.domain.standings import Course, Moment, mean_course, standings_of

NAMES = ("random", "nsga2", "frontier")
CURVES = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(
    lambda gains: tuple(np.maximum.accumulate(gains).tolist())
)


@st.composite
def contests(draw, min_seeds: int = 1):
    seeds = draw(st.integers(min_seeds, 5))
    return [Course(name, seed, draw(CURVES)) for name in NAMES for seed in range(seeds)]


@given(contests(), st.randoms())
def test_the_order_of_searches_never_matters(courses, random) -> None:
    shuffled = list(courses)
    random.shuffle(shuffled)
    assert standings_of(shuffled) == standings_of(courses)


@given(contests())
def test_the_best_comes_first_and_is_named(courses) -> None:
    found = standings_of(courses)
    means = [standing.mean for standing in found.standings]
    assert means == sorted(means, reverse=True)
    best = found.standings[0]
    assert found.statement.startswith(best.searcher if best.mean > 0.0 else "No trial of any")
    assert [duel.other for duel in found.duels] == [s.searcher for s in found.standings[1:]]
    assert all(duel.difference >= -1e-12 for duel in found.duels)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == json.loads(
        json.dumps(found.to_json())
    )


@given(contests(min_seeds=2))
def test_intervals_and_tests_are_students(courses) -> None:
    found = standings_of(courses)
    for standing in found.standings:
        finals = np.array(standing.hypervolume)
        low, high = standing.ci95
        assert (low + high) / 2 == pytest.approx(finals.mean())
        assert low <= standing.mean <= high
        if finals.std() > 1e-9:
            interval = stats.t.interval(0.95, len(finals) - 1, finals.mean(), stats.sem(finals))
            assert (low, high) == pytest.approx(interval)
    best = np.array(found.standings[0].hypervolume)
    for duel, standing in zip(found.duels, found.standings[1:], strict=True):
        difference = best - np.array(standing.hypervolume)
        if difference.std() > 1e-9:
            p = float(stats.ttest_rel(best, np.array(standing.hypervolume)).pvalue)
            assert duel.p == pytest.approx(min(1.0, 3 * p)), "three pairs of three searchers"
            assert (duel.low > 0.0) == duel.decided, "interval and test say the same"
    for duel in found.duels:
        assert duel.decided == (duel.p < 0.05)
        assert ("beats all others" in found.statement) == all(d.decided for d in found.duels)


@given(contests())
def test_trials_to_what_random_ends_with(courses) -> None:
    found = standings_of(courses)
    finals = [course.final for course in courses if course.searcher == "random"]
    target = float(np.mean(finals))
    for standing in found.standings:
        mean, low, high = mean_course([c for c in courses if c.searcher == standing.searcher])
        assert (low <= mean + 1e-12).all()
        assert (mean <= high + 1e-12).all()
        at = standing.trials_to_random_final
        if at is None:
            assert mean.max() < target
            continue
        assert mean[at - 1] >= target
        assert (mean[: at - 1] < target).all()
    assert next(s for s in found.standings if s.searcher == "random").trials_to_random_final


@given(CURVES, st.lists(st.floats(0, 20), min_size=1, max_size=10).map(sorted))
def test_a_search_by_the_clock_and_by_compute(curve, times) -> None:
    moments = tuple(Moment(at, 2.0 * at, value) for at, value in enumerate(curve, start=1))
    course = Course("a", 0, curve, moments)
    for stretch, seen in ((1.0, course.by_clock(times)), (2.0, course.by_compute(times))):
        for time, value in zip(times, seen.hypervolume_T, strict=True):
            done = min(int(time / stretch), len(curve))
            assert value == (curve[done - 1] if done else 0.0)
    assert course.from_json(json.loads(json.dumps(asdict(course)))) == course
    assert course.seconds == len(curve)


@given(st.lists(st.floats(0, 1), min_size=20, max_size=20))
def test_random_reaches_its_own_end(finals) -> None:
    """However sums round: with twenty seeds two ways to add up differ."""
    courses = [Course("random", seed, (0.0, value)) for seed, value in enumerate(finals)]
    assert standings_of(courses).standings[0].trials_to_random_final is not None


def test_what_is_said() -> None:
    def told(**finals: tuple[float, ...]) -> str:
        courses = [Course(n, s, (v,)) for n, own in finals.items() for s, v in enumerate(own)]
        return standings_of(courses).statement

    assert told(a=(0.5,)) == "a ran alone: there is nothing to compare it with."
    assert "One seed says nothing of chance: give more." in told(a=(0.5,), b=(0.4,))
    clear = told(a=(0.5, 0.51, 0.52), b=(0.4, 0.41, 0.425), c=(0.1, 0.1, 0.12))
    assert "a has the largest mean hypervolume, 0.51; b comes next, 0.09833 behind" in clear
    assert "It beats all others (paired t-tests over 3 seeds, corrected for all pairs" in clear
    assert "It beats c; from b the data do not tell it apart" in told(
        a=(0.5, 0.51, 0.52), b=(0.6, 0.41, 0.43), c=(0.1, 0.1, 0.12)
    )
    assert "From b the data do not" in told(a=(0.5, 0.6), b=(0.6, 0.4))
    assert "It beats all others" in told(a=(0.5, 0.6), b=(0.4, 0.5))
    assert "do not tell it apart" in told(a=(0.5, 0.6), b=(0.5, 0.6))


def test_contests_that_cannot_be_judged() -> None:
    with pytest.raises(AutopruneError, match="no search has ended: there is nothing to compare"):
        standings_of([])
    with pytest.raises(AutopruneError, match="the searchers ran with different seeds"):
        standings_of([Course("a", 0, (1.0,)), Course("b", 1, (1.0,))])
    assert Course("a", 0, ()).final == 0.0
