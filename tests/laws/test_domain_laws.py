"""Laws of the domain's facts and rules."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.domain.bounds import Bounds, build_space
from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Constraint, Direction, Goal, Objective
from autoprune.domain.pareto import ParetoFront
from autoprune.domain.space import Axis, Group, PruningSpec, SearchSpace
from autoprune.domain.trial import Failure, Measurement, Observation, Trial, trial_seed
from tests import strategies


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


@given(strategies.axes())
def test_widths_are_legal(axis: Axis) -> None:
    size, step = axis.group.size, axis.group.step
    assert list(axis.widths) == sorted(set(axis.widths))
    for width in axis.widths:
        assert axis.low <= width <= axis.high
        assert width % step == 0 or width == size
    assert all(width in axis.widths for width in range(axis.low, axis.high + 1) if not width % step)
    assert (size in axis.widths) == (axis.high == size)


@given(strategies.axes(), st.floats(-10, 400))
def test_nearest_is_nearest(axis: Axis, width: float) -> None:
    chosen = axis.nearest(width)
    best = min(abs(w - width) for w in axis.widths)
    assert chosen == max(w for w in axis.widths if abs(w - width) == best)


@given(strategies.spaces_with_indices())
def test_encoding_round_trips(case: tuple[SearchSpace, tuple[int, ...]]) -> None:
    space, indices = case
    spec = space.at(indices)
    space.check(spec)
    assert space.indices(spec) == indices
    x = space.encode(spec)
    assert x.shape == (len(space.options),)
    assert ((x >= 0) & (x <= 1)).all()
    assert space.decode(x) == spec


@given(strategies.spaces(), st.data())
def test_decode_is_total_and_clips(space: SearchSpace, data: st.DataObject) -> None:
    x = data.draw(
        st.lists(
            st.floats(allow_nan=False), min_size=len(space.options), max_size=len(space.options)
        )
    )
    spec = space.decode(x)
    space.check(spec)
    assert spec == space.decode(np.clip(x, 0.0, 1.0))


@given(strategies.spaces(), st.integers(0, 2**32))
def test_sample_is_of_the_space_and_repeats(space: SearchSpace, seed: int) -> None:
    spec = space.sample(np.random.default_rng(seed))
    space.check(spec)
    assert spec == space.sample(np.random.default_rng(seed))


@given(strategies.spaces(max_axes=2))
def test_size_counts_the_specs(space: SearchSpace) -> None:
    assert space.size == math.prod(len(options) for options in space.options)


@given(strategies.spaces(), st.floats(0, 1), st.floats(0, 1))
def test_uniform_is_monotone(space: SearchSpace, a: float, b: float) -> None:
    low, high = (space.uniform(ratio) for ratio in sorted((a, b)))
    space.check(low)
    assert all(low.widths[name] <= high.widths[name] for name in low.widths)


@given(strategies.spaces(), st.floats(0, 1))
def test_uniform_is_uniform(space: SearchSpace, ratio: float) -> None:
    assert space.is_uniform(space.uniform(ratio))


@given(strategies.spaces_with_indices())
def test_is_uniform_iff_a_ratio_gives_the_spec(case: tuple[SearchSpace, tuple[int, ...]]) -> None:
    space, indices = case
    spec = space.at(indices)
    starts = [axis.ratios(spec.widths[axis.group.name])[0] for axis in space.axes]
    assert space.is_uniform(spec) == (space.uniform(float(max(starts))).kept == spec.kept)


def test_groups_at_their_halves_are_uniform_together() -> None:
    sizes = {"a": 3, "b": 9, "c": 32}
    space = SearchSpace(tuple(Axis(Group(n, "channels", s), 1, s) for n, s in sizes.items()))
    assert all(space.is_uniform(space.uniform(step / 200)) for step in range(201))
    assert not space.is_uniform(PruningSpec.of({"a": 1, "b": 9, "c": 32}))


@given(strategies.spaces())
def test_uniform_reaches_both_ends(space: SearchSpace) -> None:
    lowest, highest = space.uniform(0.0), space.uniform(1.0)
    for axis in space.axes:
        assert lowest.widths[axis.group.name] == axis.widths[0]
        assert highest.widths[axis.group.name] == axis.widths[-1]


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=4),
    st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
)
def test_bounds_are_ratios_of_the_size(sizes: list[int], a: float, b: float) -> None:
    low, high = sorted((a, b))
    groups = [Group(f"g{i}", "channels", size) for i, size in enumerate(sizes)]
    bounds = Bounds(min_kept=low, max_kept=high)
    try:
        axes = build_space(groups, bounds).axes
    except AutopruneError:
        within = [range(math.ceil(low * s + 1e-6), math.floor(high * s - 1e-6) + 1) for s in sizes]
        assert not all(within)
        return
    for axis in axes:
        size = axis.group.size
        assert low * size - 1e-6 <= axis.low <= axis.high <= high * size + 1e-6


def test_bounds_without_a_legal_width_are_refused() -> None:
    groups = [Group("wide", "channels", 10), Group("narrow", "channels", 4)]
    message = "group 'narrow': no whole number of its 4 units lies between min_kept 0.3 and"
    with pytest.raises(AutopruneError, match=message):
        build_space(groups, Bounds(min_kept=0.3, max_kept=0.4))
    assert build_space(groups[:1], Bounds(min_kept=0.3, max_kept=0.4)).axes[0].widths == (3, 4)


@given(strategies.specs)
def test_spec_round_trips(spec: PruningSpec) -> None:
    again = PruningSpec.from_json(through_json(spec.to_json()))
    assert (again, hash(again), again.digest) == (spec, hash(spec), spec.digest)


@given(strategies.specs, strategies.specs)
def test_digests_are_equal_iff_specs_are(a: PruningSpec, b: PruningSpec) -> None:
    assert (a.digest == b.digest) == (a == b)


@given(strategies.specs, st.randoms())
def test_a_spec_forgets_the_order_of_its_groups(spec: PruningSpec, random: Any) -> None:
    items = list(spec.kept)
    random.shuffle(items)
    again = PruningSpec.of(
        dict(items),
        criterion=spec.criterion,
        recovery=spec.recovery,
        precision=spec.precision,
    )
    assert again == spec
    assert again.digest == spec.digest


def test_a_digest_stays_the_same_between_versions() -> None:
    assert PruningSpec.of({"b": 3, "a": 16}).digest == "35cc36d16044"
    assert PruningSpec.of({"b": 3, "a": 16}, precision="int8").digest == "9518047edb7a"


@given(strategies.specs)
def test_a_spec_from_before_there_were_precisions_is_one_in_fp32(spec: PruningSpec) -> None:
    written = through_json(spec.to_json())
    assert ("precision" in written) == (spec.precision != "fp32")
    old = {key: written[key] for key in ("kept", "criterion", "recovery")}
    assert PruningSpec.from_json(old) == replace(spec, precision="fp32")


@given(strategies.spaces())
def test_space_round_trips_and_old_ones_have_one_precision(space: SearchSpace) -> None:
    written = through_json(space.to_json())
    assert SearchSpace.from_json(written) == space
    assert ("precisions" in written) == (space.precisions != ("fp32",))
    old = {key: written[key] for key in ("axes", "criteria", "recoveries")}
    assert SearchSpace.from_json(old) == replace(space, precisions=("fp32",))


@given(strategies.spaces_with_indices())
def test_what_is_not_chosen_is_the_only_choice(case: tuple[SearchSpace, tuple[int, ...]]) -> None:
    space, indices = case
    spec = space.at(indices)
    chosen = iter(indices[len(space.axes) :])
    for name, choice in space.choices.items():
        expected = choice[next(chosen)] if len(choice) > 1 else choice[0]
        assert getattr(spec, name) == expected
    assert next(chosen, None) is None


@given(strategies.trials)
def test_trial_round_trips(trial: Trial) -> None:
    assert Trial.from_json(through_json(trial.to_json())) == trial


@given(strategies.observations)
def test_observation_round_trips(observation: Observation) -> None:
    assert Observation.from_json(through_json(observation.to_json())) == observation


def test_numpy_numbers_become_plain() -> None:
    measured = Measurement({"accuracy": np.float32(0.5)}, seconds={"prune": np.float32(2.0)})
    trial = Trial(0, PruningSpec.of({"a": 1}), 0)
    assert PruningSpec.of({"a": np.int64(1)}).digest == trial.spec.digest
    again = Observation.from_json(through_json(Observation(trial, measured).to_json()))
    assert again.outcome == Measurement({"accuracy": 0.5}, seconds={"prune": 2.0})


@given(strategies.goals())
def test_goal_round_trips(goal: Goal) -> None:
    assert Goal.from_json(through_json(goal.to_json())) == goal


@given(st.integers(0, 2**63), st.integers(0, 10**6))
def test_trial_seeds_are_fixed_and_spread(seed: int, number: int) -> None:
    assert trial_seed(seed, number) == trial_seed(seed, number)
    assert trial_seed(seed, number) != trial_seed(seed, number + 1)
    assert 0 <= trial_seed(seed, number) < 2**32


@given(strategies.constraints("m"), strategies.finite)
def test_violation_is_the_distance_to_the_bounds(constraint: Constraint, value: float) -> None:
    violation = constraint.violation(value)
    inside = constraint.low <= value <= constraint.high
    assert (violation == 0) == inside
    assert violation >= 0
    if math.isfinite(violation) and not inside:
        edge = constraint.low if value < constraint.low else constraint.high
        assert violation == abs(edge - value)


@given(strategies.constraints("m"), strategies.finite)
def test_a_goal_is_feasible_iff_nothing_is_violated(constraint: Constraint, value: float) -> None:
    goal = Goal((Objective("m", Direction.MAX),), (0.0,), (constraint,))
    measurement = Measurement({"m": value})
    assert goal.feasible(measurement) == (constraint.violation(value) == 0)
    assert goal.broken(measurement.metrics) == (None if goal.feasible(measurement) else constraint)
    assert goal.violations({"other": 1.0}) == (0.0,)
    assert not goal.feasible(Measurement({"m": value}, stopped_by="m"))


SPEC = PruningSpec.of({"g": 1})
GOALS = [
    Goal((Objective("a", first), Objective("b", second)), (4.0, 4.0), (Constraint("c", high=1.0),))
    for first in Direction
    for second in Direction
]
# Few values, so that ties and equal points are common.
tallies = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from(["ok", "broken", "failed"])),
    max_size=12,
)


def observe(number: int, a: float, b: float, kind: str) -> Observation:
    outcome: Measurement | Failure = Measurement({"a": a, "b": b, "c": float(kind == "broken") * 2})
    if kind == "failed":
        outcome = Observation.from_json(FAILED).outcome
    return Observation(Trial(number, SPEC, 0), outcome)


FAILED = {
    "trial": Trial(0, SPEC, 0).to_json(),
    "failure": {"stage": "prune", "cause": "graph", "reason": ""},
    "host": "",
    "seconds": 0.0,
}


def dominates(goal: Goal, one: Observation, other: Observation) -> bool:
    assert isinstance(one.outcome, Measurement)
    assert isinstance(other.outcome, Measurement)
    signs = [1 if more else -1 for more in goal.maximise]
    gains = [
        sign * (x - y)
        for sign, x, y in zip(
            signs, goal.values(one.outcome), goal.values(other.outcome), strict=True
        )
    ]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


@given(st.sampled_from(GOALS), tallies, st.randoms())
def test_the_front_ignores_the_order_of_arrival(goal: Goal, tally: Any, random: Any) -> None:
    observations = [observe(n, *row) for n, row in enumerate(tally)]
    front = ParetoFront(goal, observations)
    random.shuffle(observations)
    assert ParetoFront(goal, observations).members == front.members


@given(st.sampled_from(GOALS), tallies)
def test_the_front_holds_exactly_what_nothing_dominates(goal: Goal, tally: Any) -> None:
    observations = [observe(n, *row) for n, row in enumerate(tally)]
    front = ParetoFront(goal, observations)
    feasible = [o for o, row in zip(observations, tally, strict=True) if row[2] == "ok"]
    values = {o.trial.number: (o.outcome.metrics["a"], o.outcome.metrics["b"]) for o in feasible}  # type: ignore[union-attr]
    expected = {
        o.trial.number
        for o in feasible
        if not any(dominates(goal, other, o) for other in feasible)
        and not any(values[n] == values[o.trial.number] for n in values if n < o.trial.number)
    }
    assert {o.trial.number for o in front.members} == expected
    assert len(front) == len(expected)
    assert all(n in front for n in expected)
    sign = -1 if goal.maximise[0] else 1
    first = [sign * values[o.trial.number][0] for o in front.members]
    assert all(a <= b for a, b in pairwise(first))


@given(st.sampled_from(GOALS), tallies)
def test_hypervolume_grows_and_is_that_of_all_points(goal: Goal, tally: Any) -> None:
    front, volume = ParetoFront(goal), 0.0
    for number, row in enumerate(tally):
        joined = front.add(observe(number, *row))
        assert joined == (number in front)
        grown = front.hypervolume()
        assert grown >= volume - 1e-9
        assert joined or grown == pytest.approx(volume)
        volume = grown
    points = np.array([row[:2] for row in tally if row[2] == "ok"], dtype=float)
    whole = 0.0
    if len(points):
        whole = moocore.hypervolume(points, ref=[4.0, 4.0], maximise=list(goal.maximise))
    assert volume == pytest.approx(whole)
    assert front.hypervolume(goal.reference) == volume
