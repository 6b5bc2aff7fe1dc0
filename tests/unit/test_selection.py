"""Which member of a front is promoted: laws over synthetic fronts, then the messages."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Direction, Goal, Metric, Objective
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Cause, Failure, Measurement, Observation, Stage, Trial
from autoprune.orchestration.promotion.selection import Selection, choose, drop, knee
from autoprune.orchestration.view import SweepView
from tests.sweeps import (
    ACCURACY,
    PERPLEXITY,
    Quality,
    make_goal,
    make_space,
    make_sweep,
    outcome_of,
)

QUALITIES = st.sampled_from([ACCURACY, PERPLEXITY])
Points = list[tuple[float, float]]


def sweep_of(points: Points, quality: Quality = ACCURACY) -> SweepView:
    """A sweep whose trials came to exactly these (quality, speedup) values."""
    spec = make_space().uniform(0.5)
    observations = tuple(
        Observation(Trial(n, spec, n), Measurement({quality.name: value, "speedup": ratio}))
        for n, (value, ratio) in enumerate(points)
    )
    return SweepView(
        sweep_id="s-1",
        experiment="s",
        goal=make_goal(quality),
        space=make_space(),
        baseline={quality.name: quality.baseline},
        observations=observations,
    )


@st.composite
def sweeps(draw: st.DrawFn) -> SweepView:
    """Any sweep with at least one feasible trial, the metric better either way."""
    quality = draw(QUALITIES)
    values = st.floats(0.5, 1.0) if quality is ACCURACY else st.floats(10.0, 60.0)
    points = draw(st.lists(st.tuples(values, st.floats(1.0, 8.0)), min_size=1, max_size=12))
    return sweep_of(points, quality)


def metrics(observation: Observation) -> dict[str, float]:
    assert isinstance(observation.outcome, Measurement)
    return dict(observation.outcome.metrics)


def lost(view: SweepView, observation: Observation) -> float:
    main = view.goal.main
    return drop(Metric(main.metric, main.direction), view.baseline, metrics(observation))


@given(sweeps(), st.none() | st.floats(0, 0.6), st.none() | st.floats(0, 9))
def test_whatever_is_chosen_keeps_its_rule_and_none_is_better(
    view: SweepView, max_drop: float | None, min_speedup: float | None
) -> None:
    def fits(member: Observation) -> bool:
        return (max_drop is None or lost(view, member) <= max_drop + 1e-12) and (
            min_speedup is None or metrics(member)["speedup"] >= min_speedup
        )

    members = view.front.members
    selection = Selection(max_drop, min_speedup)
    if not any(map(fits, members)):
        with pytest.raises(AutopruneError, match="it offers"):
            choose(view, selection)
        return
    chosen = choose(view, selection)
    assert chosen in members
    assert fits(chosen)
    others = [member for member in members if fits(member)]
    if max_drop is not None:
        assert metrics(chosen)["speedup"] == max(metrics(m)["speedup"] for m in others)
    elif min_speedup is not None:
        assert lost(view, chosen) == min(lost(view, member) for member in others)


@given(sweeps())
def test_the_knee_is_on_the_front_and_no_line_between_its_ends_is_above_it(
    view: SweepView,
) -> None:
    members = view.front.members
    chosen = knee(view)
    assert chosen in members
    assume(len(members) > 2)
    first, last = members[0], members[-1]
    drops = lost(view, last) - lost(view, first)
    gain = metrics(last)["speedup"] - metrics(first)["speedup"]
    assume(min(drops, gain) > 1e-6)

    def height(member: Observation) -> float:
        quality = (lost(view, last) - lost(view, member)) / drops
        return quality + (metrics(member)["speedup"] - metrics(first)["speedup"]) / gain

    assert height(chosen) == pytest.approx(max(map(height, members)))


@given(sweeps(), st.randoms(use_true_random=False))
def test_the_order_in_which_trials_came_in_does_not_matter(view: SweepView, random: object) -> None:
    order = list(view.observations)
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = replace(view, observations=tuple(order))
    for selection in (Selection(), Selection(max_drop=100.0), Selection(min_speedup=0.0)):
        assert choose(shuffled, selection) == choose(view, selection)


@pytest.mark.parametrize(
    ("direction", "found", "expected"),
    [(Direction.MAX, 0.9, 0.05), (Direction.MAX, 1.0, -0.05), (Direction.MIN, 0.9, -0.05)],
)
def test_a_drop_is_positive_where_the_metric_is_worse(
    direction: Direction, found: float, expected: float
) -> None:
    metric = Metric("m", direction)
    assert drop(metric, {"m": 0.95}, {"m": found}) == pytest.approx(expected)


def test_a_drop_of_exactly_the_bound_is_within_it() -> None:
    # 0.9861 - 0.01 is not 0.9761 in binary
    view = sweep_of([(0.9761, 3.0), (0.98, 2.0)])
    assert choose(view, Selection(max_drop=0.01)).trial.number == 0


def test_a_member_is_as_fast_as_the_lower_end_of_its_interval() -> None:
    view = sweep_of([(0.97, 3.0), (0.98, 2.5)])
    unsure, sure = (
        replace(o, outcome=Measurement({**metrics(o), "speedup_low": low}))
        for o, low in zip(view.observations, (1.9, 2.4), strict=True)
    )
    view = replace(view, observations=(unsure, sure))
    assert choose(view, Selection(max_drop=0.1)).trial.number == 1
    with pytest.raises(AutopruneError, match="no member"):
        choose(view, Selection(min_speedup=2.45))


def test_the_knee_is_where_more_speed_begins_to_cost() -> None:
    view = sweep_of([(0.99, 1.0), (0.985, 1.5), (0.98, 4.0), (0.90, 4.4), (0.80, 5.0)])
    assert choose(view, Selection()).trial.number == 2


def test_of_three_objectives_the_knee_is_nearest_to_the_best_of_each() -> None:
    goal = Goal(
        (
            Objective("accuracy", Direction.MAX),
            Objective("speedup", Direction.MAX),
            Objective("size_mb", Direction.MIN),
        ),
        (0.9, 1.0, 5.0),
    )
    values = [(0.99, 1.0, 4.0), (0.97, 3.0, 1.5), (0.90, 4.0, 1.0)]
    view = replace(
        sweep_of([]),
        goal=goal,
        observations=tuple(
            Observation(
                Trial(n, make_space().uniform(0.5), n),
                Measurement(dict(zip(("accuracy", "speedup", "size_mb"), found, strict=True))),
            )
            for n, found in enumerate(values)
        ),
    )
    assert knee(view).trial.number == 1


def test_a_trial_is_chosen_by_its_number_on_the_front_or_not() -> None:
    view = sweep_of([(0.98, 3.0), (0.97, 2.0)])
    assert 1 not in view.front
    assert choose(view, Selection(trial=1)).trial.number == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trial": 3, "max_drop": 0.1}, "names one trial; leave .*max_accuracy_drop.* out"),
        ({"trial": 3, "min_speedup": 2.0}, "names one trial; leave .*min_speedup out"),
        ({"max_drop": -0.1}, r"select.max_accuracy_drop is -0.1; choose 0 or more"),
        ({"max_drop": math.nan}, "select.max_accuracy_drop is nan; choose 0 or more"),
        ({"min_speedup": -1.0}, r"select.min_speedup is -1.0; choose 0 or more"),
    ],
)
def test_a_contradictory_or_impossible_selection_is_refused(
    arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(AutopruneError, match=message):
        Selection(**arguments)  # type: ignore[arg-type]


def test_where_nothing_fits_the_message_says_what_the_front_offers() -> None:
    view = sweep_of([(0.97, 2.0), (0.95, 3.0)])
    with pytest.raises(AutopruneError, match=r"no member .* offers 0.9700 at 2.00x, 0.9500 at"):
        choose(view, Selection(min_speedup=4.0))
    with pytest.raises(
        AutopruneError, match=r"fits; .* allow a larger drop or ask for less speedup"
    ):
        choose(view, Selection(max_drop=0.001))


def test_an_empty_front_and_trials_that_cannot_be_chosen_are_said() -> None:
    with pytest.raises(AutopruneError, match="front of s-1 is empty; every trial failed or"):
        choose(sweep_of([]), Selection())
    view = make_sweep(24)
    states = {o.trial.number: outcome_of(view, o.trial.number) for o in view.observations}
    failed = next(n for n, outcome in states.items() if isinstance(outcome, Failure))
    stopped = next(
        n
        for n, outcome in states.items()
        if isinstance(outcome, Measurement) and outcome.stopped_by
    )
    with pytest.raises(AutopruneError, match=rf"trial {failed} failed .*; choose one that"):
        choose(view, Selection(trial=failed))
    with pytest.raises(AutopruneError, match=rf"trial {stopped} was stopped: it breaks speedup"):
        choose(view, Selection(trial=stopped))
    with pytest.raises(AutopruneError, match=r"has no trial 99; the front's are \["):
        choose(view, Selection(trial=99))


def test_a_front_of_failures_alone_is_empty() -> None:
    failure = Failure(Stage.PRUNE, Cause.ERROR, "no")
    trial = Trial(0, PruningSpec.of({"a": 1}), 0)
    view = replace(sweep_of([]), observations=(Observation(trial, failure),))
    with pytest.raises(AutopruneError, match="is empty"):
        choose(view, Selection(max_drop=0.1))
