"""Laws of paired measurement, of the estimate and of the costs."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autoprune.measurement.cost import costs
from autoprune.measurement.estimate import PREPARATION, estimate_ratio
from autoprune.measurement.prepared import repeated

times = st.floats(1e-6, 10.0)
pairs = st.lists(st.tuples(times, times), min_size=1, max_size=20).map(np.array)
runs = st.lists(pairs, min_size=2, max_size=8)
quick = settings(max_examples=50, deadline=None)


def medians(found):
    return [float(np.median(np.log(run[:, 0] / run[:, 1]))) for run in found]


def covered(rng, *, runs, pairs, between, within, times=400):
    """How often the interval contains a ratio of 2; runs differ by `between`, pairs by `within`."""
    hits = 0
    for _ in range(times):
        made = []
        for _ in range(runs):
            offset = rng.normal(scale=between)
            noise = np.exp(rng.normal(scale=within, size=(pairs, 2)))
            made.append(noise * [2.0 * np.exp(offset), 1.0])
        found = estimate_ratio(made)
        hits += found.low <= 2.0 <= found.high
    return hits / times


@quick
@given(runs)
def test_the_interval_contains_the_ratio_which_lies_among_those_of_the_runs(runs):
    found = estimate_ratio(runs)
    assert found.low <= found.ratio <= found.high
    assert np.exp(min(medians(runs))) * (1 - 1e-9) <= found.ratio
    assert found.ratio <= np.exp(max(medians(runs))) * (1 + 1e-9)
    assert found.noise >= 0.0


@quick
@given(runs)
def test_swapping_baseline_and_candidate_gives_the_inverse(runs):
    there = estimate_ratio(runs)
    back = estimate_ratio([run[:, ::-1] for run in runs])
    assert back.ratio == pytest.approx(1 / there.ratio)
    assert back.low == pytest.approx(1 / there.high)
    assert back.high == pytest.approx(1 / there.low)


@quick
@given(runs)
def test_another_preparation_is_less_certain_and_swaps_like_the_ratio(runs):
    found = estimate_ratio(runs)
    wider = found.of_any_preparation()
    assert wider.ratio == found.ratio
    assert wider.low < found.low * (1 + 1e-12)
    assert wider.high > found.high * (1 - 1e-12)
    assert np.log(wider.high / wider.ratio) >= 1.95 * PREPARATION
    back = estimate_ratio([run[:, ::-1] for run in runs]).of_any_preparation()
    assert (back.low, back.high) == (pytest.approx(1 / wider.high), pytest.approx(1 / wider.low))


@quick
@given(runs, st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(runs, unit):
    a, b = estimate_ratio(runs), estimate_ratio([unit * run for run in runs])
    for name in ("ratio", "low", "high", "noise"):
        assert getattr(b, name) == pytest.approx(getattr(a, name), rel=1e-6, abs=1e-9)


@quick
@given(runs, st.floats(1e-2, 1e2))
def test_a_baseline_slower_by_a_factor_scales_ratio_and_interval(runs, factor):
    a, b = estimate_ratio(runs), estimate_ratio([run * [factor, 1.0] for run in runs])
    for name in ("ratio", "low", "high"):
        assert getattr(b, name) == pytest.approx(factor * getattr(a, name))


@quick
@given(times, st.lists(pairs, min_size=2, max_size=6))
def test_noise_that_both_share_cancels(ratio, disturbances):
    shared = [run[:, :1] * [ratio, 1.0] for run in disturbances]
    found = estimate_ratio(shared)
    assert found.ratio == pytest.approx(ratio)
    assert found.half_width == pytest.approx(0.0, abs=1e-9)
    assert found.noise == pytest.approx(0.0, abs=1e-9)


@quick
@given(runs, st.randoms(use_true_random=False))
def test_neither_the_order_of_runs_nor_that_of_pairs_matters(runs, random):
    shuffled = [run[random.sample(range(len(run)), len(run))] for run in runs]
    random.shuffle(shuffled)
    a, b = estimate_ratio(runs), estimate_ratio(shuffled)
    for name in ("ratio", "low", "high"):
        assert getattr(b, name) == pytest.approx(getattr(a, name))


@pytest.mark.parametrize("between", [0.0, 0.02, 0.1])
def test_the_interval_covers_the_truth_as_often_as_it_says_however_runs_differ(between):
    rng = np.random.default_rng(0)
    share = covered(rng, runs=6, pairs=10, between=between, within=0.05)
    assert 0.92 <= share <= 0.98


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
