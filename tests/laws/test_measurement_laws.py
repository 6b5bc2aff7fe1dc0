"""Laws of paired measurement, of the estimate and of the costs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.measurement.cost import costs
from autoprune.measurement.estimate import estimate_ratio
from autoprune.measurement.latency import repeated

times = st.floats(1e-6, 10.0)
pairs = st.lists(st.tuples(times, times), min_size=1, max_size=60).map(np.array)
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=50, deadline=None)


@quick
@given(pairs, seeds)
def test_the_interval_contains_the_ratio_and_lies_among_the_ratios(pairs, seed):
    found = estimate_ratio(pairs[:, 0], pairs[:, 1], seed=seed)
    ratios = pairs[:, 0] / pairs[:, 1]
    assert found.low <= found.ratio <= found.high
    assert ratios.min() * (1 - 1e-9) <= found.low
    assert found.high <= ratios.max() * (1 + 1e-9)
    assert found.noise >= 0.0


@quick
@given(pairs, seeds)
def test_swapping_baseline_and_candidate_gives_the_inverse(pairs, seed):
    there = estimate_ratio(pairs[:, 0], pairs[:, 1], seed=seed)
    back = estimate_ratio(pairs[:, 1], pairs[:, 0], seed=seed)
    assert back.ratio == pytest.approx(1 / there.ratio)
    assert back.low == pytest.approx(1 / there.high)
    assert back.high == pytest.approx(1 / there.low)


@quick
@given(pairs, seeds, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(pairs, seed, unit):
    a = estimate_ratio(pairs[:, 0], pairs[:, 1], seed=seed)
    b = estimate_ratio(unit * pairs[:, 0], unit * pairs[:, 1], seed=seed)
    for name in ("ratio", "low", "high", "noise"):
        assert getattr(b, name) == pytest.approx(getattr(a, name), rel=1e-6, abs=1e-9)


@quick
@given(pairs, seeds, st.floats(1e-2, 1e2))
def test_a_baseline_slower_by_a_factor_scales_ratio_and_interval(pairs, seed, factor):
    a = estimate_ratio(pairs[:, 0], pairs[:, 1], seed=seed)
    b = estimate_ratio(factor * pairs[:, 0], pairs[:, 1], seed=seed)
    for name in ("ratio", "low", "high"):
        assert getattr(b, name) == pytest.approx(factor * getattr(a, name))


@quick
@given(times, st.lists(st.floats(0.5, 2.0), min_size=1, max_size=40), seeds)
def test_noise_that_both_share_cancels(ratio, disturbance, seed):
    shared = np.array(disturbance)
    found = estimate_ratio(ratio * shared, shared, seed=seed)
    assert found.ratio == pytest.approx(ratio)
    assert found.half_width == pytest.approx(0.0, abs=1e-9)
    assert found.noise == pytest.approx(0.0, abs=1e-9)


@quick
@given(pairs, seeds)
def test_the_same_seed_gives_the_same_interval(pairs, seed):
    first = estimate_ratio(pairs[:, 0], pairs[:, 1], seed=seed)
    assert estimate_ratio(pairs[:, 0], pairs[:, 1], seed=seed) == first


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        noise = rng.lognormal(sigma=0.1, size=(40, 2))
        found = estimate_ratio(2.0 * noise[:, 0], noise[:, 1], seed=seed)
        covered += found.low <= 2.0 <= found.high
    assert 0.90 <= covered / 300 <= 0.99


@quick
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_a_repeated_example_is_itself_over_and_over(batch, rows, columns):
    example = torch.randn(1, rows, columns)
    for made in (
        repeated(example, batch),
        repeated((example,), batch)[0],
        repeated({"x": example}, batch)["x"],
    ):
        assert made.shape == (batch, rows, columns)
        assert all(torch.equal(row, example[0]) for row in made)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.data())
def test_a_network_with_fewer_neurons_costs_less(widths, data):
    narrowed = list(widths)
    layer = data.draw(st.integers(0, len(widths) - 2)) + 1
    narrowed[layer] = data.draw(st.integers(1, widths[layer]))

    def cost(sizes: list[int]) -> dict[str, float]:
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        return costs(nn.Sequential(*layers), torch.zeros(1, sizes[0]))

    wide, narrow = cost(widths), cost(narrowed)
    assert wide["macs"] == sum(a * b for a, b in pairwise(widths))
    for name, value in narrow.items():
        assert value <= wide[name]
        assert (value < wide[name]) == (narrowed[layer] < widths[layer]) or (
            name == "peak_memory_mb"
        )
