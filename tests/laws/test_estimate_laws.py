"""Laws of estimates: what a predicted speedup and an expected quality promise, they keep."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.domain.expectation import expected_after
from autoprune.domain.latency import Timing, predicted_speedups
from autoprune.domain.space import Group

quick = settings(max_examples=60, deadline=None)
worth = st.floats(0.0, 1.0, allow_nan=False)
pairs = st.lists(st.tuples(worth, worth), min_size=1, max_size=40)

CHAIN = [Group(f"g{i}", "channels", 64, layers=(f"g{i}", f"g{i + 1}")) for i in range(3)]


def measured(rng, count, noise):
    """Networks of a chain of layers, timed with some noise."""
    found = []
    for _ in range(count):
        widths = {group.name: 16 * int(rng.integers(1, 5)) for group in CHAIN}
        a, b, c = (widths[group.name] / group.size for group in CHAIN)
        share = (0.2 + a + a * b + b * c + c) / 4.2
        found.append(Timing(widths, share * float(np.exp(noise * rng.normal()))))
    return found


def test_the_interval_holds_a_further_measurement_as_often_as_it_says():
    rng, hits, times = np.random.default_rng(0), 0, 150
    for _ in range(times):
        *known, last = measured(rng, 13, 0.05)
        (found,) = predicted_speedups(CHAIN, measured(rng, 8, 0.05), known, [last.widths])
        assert found.unseen == 12
        hits += found.low <= 1.0 / last.share <= found.high
    assert 0.9 <= hits / times <= 1.0


def test_noise_widens_the_interval_and_it_lies_evenly_around_the_prediction():
    widths = []
    for noise in (0.01, 0.2):
        rng = np.random.default_rng(0)
        known = measured(rng, 12, noise)
        (found,) = predicted_speedups(CHAIN, [], known, [{"g0": 32}])
        assert found.low * found.high == pytest.approx(found.ratio**2)
        widths.append(found.high / found.low)
    assert 1.0 < widths[0] < widths[1] / 1.5


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_measurements_give_no_interval(count):
    known = measured(np.random.default_rng(0), count, 0.0)
    (found,) = predicted_speedups(CHAIN, measured(np.random.default_rng(1), 9, 0.0), known, [{}])
    assert (found.low, found.high, found.unseen) == (None, None, count)
    assert found.ratio == pytest.approx(1.0, rel=0.02)


@quick
@given(pairs, worth, st.randoms(use_true_random=False))
def test_an_expectation_lies_in_its_interval_and_the_order_does_not_matter(known, before, random):
    found = expected_after(known, before)
    shuffled = list(known)
    random.shuffle(shuffled)
    assert expected_after(shuffled, before) == found
    assert found.low is None or found.low <= found.value
    assert found.high is None or found.value <= found.high
    assert (found.low is None) == all(worth > before for worth, _ in known)
    assert (found.high is None) == all(worth < before for worth, _ in known)
    assert 0.0 <= found.level < 1.0
    assert found.count == len(known)


@quick
@given(pairs, worth, worth)
def test_who_is_worth_more_before_is_not_expected_to_be_worth_less_after(known, one, other):
    low, high = sorted((one, other))
    rising = sorted(zip(sorted(w for w, _ in known), sorted(a for _, a in known), strict=True))
    assert expected_after(rising, low).value <= expected_after(rising, high).value + 1e-12


def test_nobody_tells_nothing():
    assert expected_after([], 0.5) is None


def test_the_level_of_an_expectation_is_kept():
    """Worth after rises with worth before, with luck: the interval holds it as often as it says."""
    rng, hits, levels = np.random.default_rng(0), 0, []
    for _ in range(400):
        before = rng.uniform(size=26)
        after = 0.9 + 0.1 * before + 0.02 * rng.normal(size=26)
        known = list(zip(before[1:].tolist(), after[1:].tolist(), strict=True))
        found = expected_after(known, float(before[0]))
        levels.append(found.level)
        low = -np.inf if found.low is None else found.low
        high = np.inf if found.high is None else found.high
        hits += low <= after[0] <= high
    assert hits / 400 >= np.mean(levels) - 0.02


def test_many_that_were_hit_as_hard_raise_the_level_and_not_the_interval_to_the_very_worst():
    known = [(0.5, 0.9 + 0.001 * n) for n in range(100)]
    found = expected_after(known, 0.5)
    assert found.low == pytest.approx(0.901)
    assert found.high == pytest.approx(0.998)
    assert found.level == pytest.approx(1 - 4 / 101)
