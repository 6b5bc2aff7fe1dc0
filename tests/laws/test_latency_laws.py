"""Laws of the latency model and of the profile it learns from."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.domain.errors import AutopruneError
from autoprune.domain.latency import ALIGNMENT, LatencyModel, Timing, unseen_error
from autoprune.domain.profile import Profile, ProfilePoint, profile_widths
from autoprune.domain.space import Axis, Group
from autoprune.domain.trial import Speedup

quick = settings(max_examples=40, deadline=None)


def chain(sizes):
    """Groups of a chain of layers, of which each two neighbours meet in one."""
    return [
        Group(f"g{i}", "channels", size, layers=(f"g{i}", f"g{i + 1}"))
        for i, size in enumerate(sizes)
    ]


sizes = st.lists(st.integers(2, 64).map(lambda n: 8 * n), min_size=1, max_size=6)
groups = sizes.map(chain)


def true_share(groups, costs, widths):
    """The time of a chain whose layers multiply their inputs by their outputs."""
    kept = [widths.get(group.name, group.size) / group.size for group in groups]
    ratios = [1.0, *kept, 1.0]
    times = [cost * a * b for cost, (a, b) in zip(costs, pairwise(ratios), strict=True)]
    return (0.1 + sum(times)) / (0.1 + sum(costs))


def profiled(groups, costs):
    """Every group alone, as a profile cuts it."""
    for group in groups:
        for width in profile_widths(Axis(group, 1, group.size)):
            yield Timing({group.name: width}, true_share(groups, costs, {group.name: width}))


@st.composite
def chains(draw):
    made = draw(groups)
    costs = draw(st.lists(st.floats(0.1, 1.0), min_size=len(made) + 1, max_size=len(made) + 1))
    return made, costs


@quick
@given(chains(), st.randoms(use_true_random=False))
def test_what_layers_multiply_is_learnt_from_single_groups_and_some_specs(chain, random):
    made, costs = chain

    def some():
        widths = {group.name: random.randint(1, group.size) for group in made}
        return Timing(widths, true_share(made, costs, widths))

    model = LatencyModel.fit(made, [*profiled(made, costs), *(some() for _ in range(30))])
    assert model.error([some() for _ in range(20)]).median < 0.1


@quick
@given(chains())
def test_the_whole_network_takes_the_time_one(chain):
    made, costs = chain
    model = LatencyModel.fit(made, profiled(made, costs))
    assert model.share({}) == pytest.approx(1.0, abs=0.05)
    assert model.share({g.name: g.size for g in made}) == model.share({})


@quick
@given(chains(), st.data())
def test_fewer_units_never_take_longer_on_the_same_alignment(chain, data):
    made, costs = chain
    model = LatencyModel.fit(made, profiled(made, costs))
    wide = {g.name: data.draw(st.integers(1, g.size // 8)) * 8 for g in made}
    name = data.draw(st.sampled_from(sorted(wide)))
    narrow = wide | {name: max(1, wide[name] - ALIGNMENT)}
    if wide[name] > ALIGNMENT and wide[name] != {g.name: g.size for g in made}[name]:
        assert model.share(narrow) <= model.share(wide) + 1e-9
    assert model.speedup(wide) == pytest.approx(1 / model.share(wide))
    assert model.share(wide) > 0


@quick
@given(chains(), st.randoms(use_true_random=False))
def test_the_order_of_timings_does_not_matter(chain, random):
    made, costs = chain
    timings = list(profiled(made, costs))
    shuffled = random.sample(timings, len(timings))
    a, b = LatencyModel.fit(made, timings), LatencyModel.fit(made, shuffled)
    for timing in timings:
        assert a.share(timing.widths) == pytest.approx(b.share(timing.widths), rel=1e-6)


def test_a_penalty_for_widths_off_the_kernels_blocks_is_learnt():
    made = chain([64, 64])
    odd = [Timing({"g0": width}, 0.5 + width / 128 + 0.3) for width in (19, 37, 50)]
    even = [Timing({"g0": width}, 0.5 + width / 128) for width in (16, 32, 48)]
    model = LatencyModel.fit(made, [*odd, *even])
    assert model.share({"g0": 33}) > model.share({"g0": 48}) + 0.1


def test_a_sure_timing_counts_more_than_one_that_did_not_settle():
    made = chain([64])
    sure, unsure = Timing({"g0": 32}, 0.5), Timing({"g0": 32}, 0.9, error=0.5)
    assert LatencyModel.fit(made, [sure, unsure]).share({"g0": 32}) == pytest.approx(0.5, abs=0.05)


def test_the_error_is_of_what_the_model_has_not_seen():
    made, rng = chain([64, 128]), np.random.default_rng(0)
    noise = [
        Timing({"g0": int(a), "g1": int(b)}, float(share))
        for a, b, share in zip(
            rng.integers(1, 64, 30),
            rng.integers(1, 128, 30),
            rng.uniform(0.2, 1.0, 30),
            strict=True,
        )
    ]
    found = unseen_error(made, [], noise)
    assert found.count == 30
    assert found.median > 0.15
    assert abs(found.spearman) < 0.5


def test_times_that_are_all_the_same_have_no_rank_correlation():
    same = [Timing({"g0": width}, 0.5) for width in (3, 4, 5)]
    assert unseen_error(chain([8]), [], same).spearman is None


def test_a_timing_of_other_groups_is_refused():
    with pytest.raises(AutopruneError, match=r"asked about \['head'\]; profile the network anew"):
        LatencyModel.fit(chain([8]), [Timing({"head": 3}, 0.5)])


@quick
@given(st.integers(1, 600), st.sampled_from([1, 2, 8, 16]))
def test_profiled_widths_are_legal_and_narrower_than_the_whole(size, step):
    size = size * step
    axis = Axis(Group("g", "channels", size, step=step), 1, size)
    widths = profile_widths(axis)
    assert widths == sorted(set(widths), reverse=True)
    assert all(width in axis.widths and width < size for width in widths)
    assert len(widths) <= 6
    if size >= 8 * ALIGNMENT:
        assert sum(width % ALIGNMENT == 0 for width in widths) >= 3
        assert any(width % ALIGNMENT for width in widths) == (step % ALIGNMENT != 0)


def test_a_profile_survives_json():
    speed = Speedup(
        2.0,
        1.9,
        2.1,
        baseline_ms=2.0,
        candidate_ms=1.0,
        samples=9,
        runtime="r",
        device="d",
        noise=0,
    )
    point = ProfilePoint({"g0": 4}, speed, {"accuracy": 0.5})
    found = Profile(tuple(chain([8, 8])), {"accuracy": 0.9})
    found = found.plus(point, check=False)
    found = found.plus(ProfilePoint({"g0": 4, "g1": 2}, speed, {"accuracy": 0.1}), check=True)
    assert Profile.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert found.of("g0") == [point]
    assert len(found.checks) == 1
    assert found.timings == [Timing({"g0": 4}, 0.5, pytest.approx(0.05))]
