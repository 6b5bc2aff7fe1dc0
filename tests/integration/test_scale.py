"""The logic of sweeps far past one machine: simulated slots, trials and time, all else is real."""

from pathlib import Path

import pytest

from autoprune.domain.ladder import Ladder
from autoprune.orchestration.record import Asked, read_journal
from autoprune.orchestration.view import view_of
from autoprune.problems import known_problem
from tests.simulation import Clock, simulated


@pytest.mark.parametrize(
    ("trials", "slots", "ladder"),
    [
        (2_000, 100, None),
        pytest.param(2_000, 100, Ladder((0, 2)), marks=pytest.mark.slow),
        pytest.param(100_000, 1_000, Ladder((0, 2)), marks=pytest.mark.slow),
    ],
)
def test_no_trial_is_lost_or_run_twice_and_no_slot_is_idle(
    tmp_path: Path, trials: int, slots: int, ladder: Ladder | None
) -> None:
    problem, clock = known_problem("infeasible", 24), Clock()
    sweep, cluster = simulated(tmp_path, problem, clock, trials=trials, slots=slots, ladder=ladder)
    with sweep.journal as journal, sweep.watched():
        cluster.run(sweep)
    view = sweep.view
    assert len(view.observations) == trials
    assert {o.trial.number for o in view.observations} == set(range(trials))
    assert view.busy_s == pytest.approx(cluster.busy_s)
    assert not sweep.running
    # what a reader of the journal counts anew is what was counted on the way
    record = read_journal(journal.path)
    told = view_of(record)
    assert told.observations == view.observations
    assert told.counts == view.counts
    assert told.front.members == view.front.members
    # while there was something to ask no slot was idle; the front comes to its end afterwards
    asked_s = max(event.at for event in record.events if isinstance(event, Asked))
    assert cluster.busy_s >= asked_s * slots
    if ladder is not None:
        ended = view.counts["finished"] / (trials - view.counts["failed"])
        assert ended == pytest.approx(ladder.reduction**-2, rel=0.25)
        assert all(member.rung is None for member in view.front.members)
        # nor does the front come to its end one trial after the other
        longest_s = max(observation.seconds for observation in view.observations)
        assert clock.now - asked_s <= 2.0 * longest_s
