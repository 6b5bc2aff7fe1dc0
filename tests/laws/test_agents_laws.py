"""Laws of an episode: what is executed is legal, costs add up, and the wall is kept."""

import numpy as np
import pytest
from autoprune_agents.outcomes import Outcomes
from autoprune_agents.rewards import Scalarised
from autoprune_agents.walk import Walk
from hypothesis import given, settings
from hypothesis import strategies as st

from autoprune.domain.latency import LatencyModel, Timing
from autoprune.domain.space import SearchSpace
from tests.strategies import spaces, spaces_with_indices

quick = settings(max_examples=60, deadline=None)
shares = st.floats(0.05, 1.0)
OPEN = st.none()
actions = st.floats(-2.0, 2.0)


@st.composite
def walks(draw: st.DrawFn, walls: st.SearchStrategy[float | None] = OPEN) -> Walk:
    """A walk over some space whose latency model has seen each group alone."""
    space: SearchSpace = draw(spaces())
    timings = [Timing({a.group.name: a.widths[0]}, draw(shares)) for a in space.axes]
    return Walk(space, LatencyModel.fit(space.groups, timings), 2, draw(walls))


def walked(walk: Walk, data: st.DataObject) -> list[int]:
    """The executed values of an episode of any actions."""
    indices: list[int] = []
    for _ in range(len(walk)):
        indices.append(walk.executed(indices, data.draw(actions)))
    return indices


@quick
@given(walks(st.one_of(st.none(), shares)), st.data())
def test_what_is_executed_is_legal(walk: Walk, data: st.DataObject) -> None:
    walk.space.check(walk.space.at(walked(walk, data)))


@quick
@given(walks(), st.data())
def test_the_actions_of_a_spec_are_executed_as_that_spec(walk: Walk, data: st.DataObject) -> None:
    indices = walked(walk, data)
    spec = walk.space.at(indices)
    again: list[int] = []
    for action in walk.actions(spec):
        again.append(walk.executed(again, action))
    assert again == indices


@quick
@given(walks(), st.data())
def test_a_replay_sees_what_the_episode_saw(walk: Walk, data: st.DataObject) -> None:
    indices = walked(walk, data)
    seen = [walk.observation(indices[:step], [0.3, 0.7]) for step in range(len(walk))]
    replayed = walk.observations(walk.space.at(indices), [0.3, 0.7])
    np.testing.assert_allclose(replayed, np.array(seen), rtol=1e-5, atol=1e-6)
    assert replayed.shape == (len(walk), walk.features)
    assert replayed.min() >= 0.0
    assert replayed.max() <= 1.0


@quick
@given(walks(), st.data())
def test_saved_and_to_come_add_up(walk: Walk, data: st.DataObject) -> None:
    """All that can be saved is saved, or to come, or forgone by the actions so far."""
    indices = walked(walk, data)
    saved, to_come, own = np.split(walk._times(indices, range(len(walk) + 1)), 3, axis=1)
    assert (saved + to_come <= 1.0 + 1e-9).all()
    assert (own <= to_come + 1e-9).all()
    assert to_come[-1] == pytest.approx(0.0, abs=1e-9)
    widths = walk.space.at(indices).widths
    assert saved[-1] == pytest.approx(max(0.0, 1.0 - walk.latency.share(widths)), abs=1e-9)


@quick
@given(walks(shares), st.data())
def test_the_wall_is_kept_where_it_can_be(walk: Walk, data: st.DataObject) -> None:
    assert walk.wall is not None
    fastest = dict(zip((g.name for g in walk.space.groups), walk._fastest, strict=True))
    reachable = max(walk.wall, walk.latency.share(fastest))
    found = walk.space.at(walked(walk, data))
    assert walk.latency.share(found.widths) <= reachable + 1e-9


@quick
@given(spaces_with_indices(), st.floats(-1.0, 1.0))
def test_a_higher_action_never_keeps_less(
    pair: tuple[SearchSpace, tuple[int, ...]], action: float
) -> None:
    space, _ = pair
    walk = Walk(space, LatencyModel.fit(space.groups, []), 1)
    assert walk.executed([], action) <= walk.executed([], min(1.0, action + 0.3))


gains = st.floats(-3.0, 1.0)


@quick
@given(gains, gains, st.floats(0.0, 1.0), st.floats(0.01, 1.0))
def test_a_gain_in_any_objective_never_lowers_the_reward(
    one: float, other: float, weight: float, more: float
) -> None:
    gain_NM = np.array([[one, other], [one + more, other], [one, other + more]])  # noqa: N806
    nothing = np.zeros(3)
    found = Outcomes(gain_NM, nothing, nothing, nothing)
    rewards = Scalarised()(found, np.tile([weight, 1.0 - weight], (3, 1)))
    assert (rewards[1:] > rewards[0]).all()
