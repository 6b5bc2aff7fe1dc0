"""Laws of a sweep's history: a look at any moment is what counting everything anew would give."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from autoprune.domain.pareto import ParetoFront
from autoprune.domain.trial import Cause, Failure, Measurement, Observation, Stage, Trial, latest
from autoprune.orchestration.history import STATES, History, state_of
from tests.sweeps import make_goal, make_space

GOAL, SPACE = make_goal(), make_space({"a": 32})
SPEC = SPACE.uniform(0.5)

values = st.sampled_from([0.95, 0.96, 0.97, 0.98])
speeds = st.sampled_from([0.5, 1.5, 2.0, 3.0])
measured = st.builds(
    lambda accuracy, speedup: Measurement({"accuracy": accuracy, "speedup": speedup}),
    values,
    speeds,
)
outcomes = st.one_of(measured, st.just(Failure(Stage.RECOVER, Cause.ERROR, "a fault")))


@st.composite
def tellings(draw) -> list[Observation]:
    """Up to six trials, each told from rung to rung or at once at its end, in any order."""
    found = []
    for number in draw(st.lists(st.integers(0, 5), max_size=14)):
        rung = draw(st.sampled_from([None, 0, 1]))
        outcome = draw(measured if rung is not None else outcomes)
        seconds = draw(st.integers(0, 9))
        found.append(Observation(Trial(number, SPEC, 0), outcome, seconds=seconds, rung=rung))
    return found


@given(tellings())
def test_every_moment_is_what_counting_anew_gives(told):
    history = History(GOAL)
    moments = []
    for observation in told:
        history.take(observation)
        moments.append((history.now, history.front.hypervolume(), history.busy_s))
    for count, (now, hypervolume, busy_s) in enumerate(moments, start=1):
        last = latest(told[:count])
        front = ParetoFront(GOAL, last.values())
        assert now == tuple(last.values())
        assert len(now) == len(last)
        assert now.front.members == front.members
        assert hypervolume == front.hypervolume()
        states = Counter(map(state_of, last.values()))
        assert now.counts == {state: states[state] for state in STATES}
        assert busy_s == sum(o.seconds for o in last.values())


@given(tellings(), st.sets(st.integers(0, 5)))
def test_behind_the_front_stands_what_would_be_without_those_that_run(told, running):
    history = History(GOAL)
    for observation in told:
        history.take(observation)
    running &= {observation.trial.number for observation in told}
    rest = [o for n, o in latest(told).items() if n not in running]
    found = ParetoFront(GOAL, rest).members
    assert sorted(history.behind(running)) == sorted(o.trial.number for o in found)


@given(tellings())
def test_what_comes_later_changes_no_look_at_an_earlier_moment(told):
    history = History(GOAL)
    for observation in told[: len(told) // 2]:
        history.take(observation)
    before, members = history.now, history.front.members
    for observation in told[len(told) // 2 :]:
        history.take(observation)
    assert tuple(before) == tuple(latest(told[: len(told) // 2]).values())
    assert before.front.members == members


def test_a_look_can_be_sliced_and_compared_like_a_tuple():
    history = History(GOAL)
    first, second = (
        Observation(Trial(n, SPEC, 0), Measurement({"accuracy": 0.97, "speedup": 2.0}))
        for n in range(2)
    )
    history.take(first)
    history.take(second)
    now = history.now
    assert (now[0], now[-1], now[:1]) == (first, second, (first,))
    assert now == (first, second)
    assert now != (second, first)
