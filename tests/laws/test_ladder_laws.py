"""What holds for every ladder, whoever climbs it and in whatever order."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.domain.errors import AutopruneError
from autoprune.domain.ladder import ENOUGH, Agreement, Ladder, Rungs
from autoprune.domain.objective import Constraint, Direction, Goal, Objective
from autoprune.domain.pareto import ParetoFront, best_first
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Cause, Failure, Measurement, Observation, Stage, Trial
from autoprune.problems import known_problem
from tests.simulation import Clock, simulated

GOAL = Goal(
    (Objective("accuracy", Direction.MAX), Objective("latency_ms", Direction.MIN)),
    (0.5, 10.0),
    (Constraint("latency_ms", high=8.0),),
)
SPEC = PruningSpec.of({"g": 1})
POINTS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 12)).map(lambda p: (p[0] / 12, float(p[1]))),
    min_size=1,
    max_size=40,
)


def measured(accuracy: float, latency_ms: float) -> Measurement:
    return Measurement({"accuracy": accuracy, "latency_ms": latency_ms})


def seen(number: int, outcome: Measurement | Failure, rung: int | None) -> Observation:
    return Observation(Trial(number, SPEC, number), outcome, rung=rung)


@given(POINTS, st.randoms())
def test_the_order_of_outcomes_never_matters(points, random) -> None:
    outcomes = {number: measured(*point) for number, point in enumerate(points)}
    shuffled = list(outcomes.items())
    random.shuffle(shuffled)
    order = best_first(GOAL, outcomes)
    assert sorted(order) == sorted(outcomes)
    assert best_first(GOAL, dict(shuffled)) == order


@given(POINTS)
def test_none_comes_before_one_that_beats_it(points) -> None:
    outcomes = {number: measured(*point) for number, point in enumerate(points)}
    order = best_first(GOAL, outcomes)
    place = {number: at for at, number in enumerate(order)}
    for a, (accuracy, latency) in enumerate(points):
        for b, (other, slower) in enumerate(points):
            if accuracy >= other and latency <= slower and points[a] != points[b] and latency <= 8:
                assert place[a] < place[b]
    front = ParetoFront(GOAL, (seen(n, o, None) for n, o in outcomes.items()))
    alike = {points[m.trial.number] for m in front.members}
    first = [n for n in order if points[n] in alike]
    assert order[: len(first)] == first


def test_the_first_of_a_front_are_spread_over_it() -> None:
    line = {n: measured(n / 10, 0.5 + n / 2) for n in range(11)}
    assert best_first(GOAL, line)[:3] == [10, 0, 5]


LADDERS = st.builds(
    Ladder,
    st.sampled_from([(0,), (0, 1), (1, 2, 5)]),
    st.sampled_from([1.5, 2.0, 3.0, 4.0]),
)


@settings(max_examples=60)
@given(LADDERS, POINTS, st.randoms(), st.booleans())
def test_no_more_climb_than_may_and_all_who_may_do(ladder, points, random, failing) -> None:
    """A sweep of one slot: whoever may climb does, until nobody may."""
    rungs = Rungs(ladder, GOAL)
    reached: list[set[int]] = [set() for _ in ladder.epochs]
    ended: set[int] = set()

    def run(number: int, rung: int) -> None:
        """A trial that works its way up from a rung, as long as it may."""
        while rung < len(ladder.epochs):
            rungs.take(seen(number, measured(*points[number]), rung))
            reached[rung].add(number)
            if not rungs.may_climb(number):
                return
            rungs.promote(number)
            rung += 1
        failed = Failure(Stage.RECOVER, Cause.ERROR, "it broke")
        lost = failing and random.random() < 0.5
        rungs.take(seen(number, failed if lost else measured(*points[number]), None))
        ended.add(number)

    for number in range(len(points)):
        while (climber := rungs.promotable()) is not None:
            rung = rungs.waiting[climber]
            rungs.promote(climber)
            run(climber, rung + 1)
        run(number, 0)
    while (climber := rungs.promotable()) is not None:
        rung = rungs.waiting[climber]
        rungs.promote(climber)
        run(climber, rung + 1)

    above = [*(len(on) for on in reached[1:]), len(ended)]
    for here, higher in zip(reached, above, strict=True):
        assert higher <= len(here) / ladder.reduction
    assert set(rungs.waiting) == set(range(len(points))) - ended
    if len(points) >= ladder.reduction:
        assert above[0] >= 1


@given(st.sets(st.integers(0, 12), min_size=1, max_size=4), st.floats(1.5, 8.0), st.integers(0, 12))
def test_mean_epochs_are_those_of_the_shares_that_reach_each_epoch(rungs, reduction, epochs):
    ladder = Ladder(tuple(sorted(rungs)), reduction)
    shares = [reduction ** -sum(rung <= epoch for rung in rungs) for epoch in range(epochs)]
    assert ladder.mean_epochs(epochs) == pytest.approx(sum(shares))


def test_a_replayed_ladder_stands_as_it_stood() -> None:
    told = [seen(n, measured(n / 10, 2.0), 0) for n in range(6)]
    told += [seen(5, measured(0.6, 2.0), 1), seen(4, measured(0.5, 2.0), 1)]
    rungs = Rungs(Ladder((0, 1), 3.0), GOAL)
    for observation in told:
        rungs.take(observation)
    assert rungs.knows(told[-1])
    assert not rungs.knows(seen(3, measured(0.3, 2.0), 1))
    assert rungs.waiting == {0: 0, 1: 0, 2: 0, 3: 0, 5: 1, 4: 1}
    assert rungs.promotable() is None  # two of six went on already
    rungs.take(seen(6, measured(0.9, 2.0), 1))
    assert rungs.promotable() == 6


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30, unique=True), st.booleans())
def test_agreement_is_of_ranks(values, upside_down) -> None:
    rungs = Rungs(Ladder((0,), 2.0), GOAL)
    for number, value in enumerate(values):
        rungs.take(seen(number, measured(value, 2.0), 0))
        late = 1.0 - value if upside_down else value / 2
        rungs.take(seen(number, measured(late, 2.0), None))
    found = rungs.agreement(0)
    distinct = len({1.0 - v if upside_down else v / 2 for v in values}) == len(values)
    if distinct:
        assert found.spearman == pytest.approx(-1.0 if upside_down else 1.0)
    assert found.count == len(values)
    if distinct:
        assert found.bad == (upside_down and len(values) >= ENOUGH)


def test_what_an_agreement_says() -> None:
    bad = Agreement(1, 0.2, 12)
    assert str(bad) == (
        "the rung at 1 epochs has a rank correlation of 0.20 with the top over 12 trials "
        "(predicts badly: raise ladder.epochs or leave that rung out)"
    )
    assert not replace(bad, count=ENOUGH - 1).bad
    assert not replace(bad, spearman=0.9).bad
    assert not replace(bad, spearman=None).bad
    assert "none" in str(replace(bad, spearman=None))


@pytest.mark.parametrize(
    ("epochs", "reduction", "message"),
    [
        ((), 3.0, r"ladder.epochs is \[\]; give epochs of recovery from 0 on, at least one"),
        ((3, 1), 3.0, r"ladder.epochs is \[3, 1\]; give epochs"),
        ((1, 1), 3.0, r"ladder.epochs is \[1, 1\]; give epochs"),
        ((-1,), 3.0, r"ladder.epochs is \[-1\]; give epochs"),
        ((0,), 1.0, "ladder.reduction is 1; choose more than 1"),
        ((0,), math.nan, "ladder.reduction is nan; choose more than 1"),
    ],
)
def test_ladders_that_cannot_be(epochs, reduction, message) -> None:
    with pytest.raises(AutopruneError, match=message):
        Ladder(epochs, reduction)


def test_nobody_beats_a_better_one_by_being_infeasible() -> None:
    outcomes = {0: measured(1.0, 9.0), 1: measured(0.1, 7.0), 2: measured(1.0, 8.5)}
    assert best_first(GOAL, outcomes) == [1, 2, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 99), LADDERS)
def test_every_member_of_the_final_front_came_to_its_end(trials, slots, seed, ladder) -> None:
    """Also where slots that would be idle go on with trials that may yet join the front."""
    problem, clock = known_problem("infeasible", 4), Clock()
    with tempfile.TemporaryDirectory() as folder:
        sweep, cluster = simulated(
            Path(folder), problem, clock, trials=trials, slots=slots, seed=seed, ladder=ladder
        )
        with sweep.journal, sweep.watched():
            cluster.run(sweep)
    assert len(sweep.view.observations) == trials
    assert all(member.rung is None for member in sweep.view.front.members)
    best = ParetoFront(problem.goal, (o for o in sweep.view.observations if o.rung is None))
    assert sweep.view.front.members == best.members
