"""What a sweep shows: one line a trial, a bar on a terminal, the front at the end."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from autoprune.domain.trial import Failure, Measurement
from autoprune.orchestration.reports.console import (
    WIDE,
    ConsoleWatcher,
    count,
    outcome_line,
    short,
    show_front,
    state_line,
    stdout,
)
from autoprune.orchestration.view import SweepView
from tests.sweeps import make_goal, make_sweep, unsettled


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=140, force_terminal=terminal)


def said(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def watched(on: Console, view: SweepView) -> str:
    watcher = ConsoleWatcher(on)
    watcher.on_start(replace(view, observations=()))
    for number, observation in enumerate(view.observations, start=1):
        watcher.on_observation(observation, replace(view, observations=view.observations[:number]))
    watcher.on_finish(view, complete=True)
    return said(on)


def test_without_a_terminal_there_are_plain_lines_one_a_trial() -> None:
    view = make_sweep(24)
    lines = watched(console(), view).splitlines()
    assert [line[:8] for line in lines] == [f"[{n:>3}/24]"[:8] for n in range(1, 25)]
    assert sum("failed in recover (" in line for line in lines) == view.counts["failed"]
    assert sum("stopped: breaks speedup >= 1" in line for line in lines) == view.counts["stopped"]
    assert not any("\x1b" in line for line in lines)


def test_on_a_terminal_there_is_a_bar_with_the_state_of_the_sweep() -> None:
    view = make_sweep(24)
    out = watched(console(terminal=True), view)
    assert "0/24 trials" in out
    assert "24/24 trials" in out
    assert f"front {len(view.front)}  hypervolume {view.hypervolume:.4g}" in out
    assert "\x1b[?25h" in out  # the cursor is back


def test_the_time_left_is_told_once_a_trial_is_done() -> None:
    view = make_sweep(12)
    half = replace(view, observations=view.observations[:6], search_s=90.0)
    assert state_line(half).startswith("about 1:30 left")
    assert "left" not in state_line(replace(view, observations=()))
    assert "left" not in state_line(replace(half, trials=None))
    assert state_line(replace(half, trials=3)).startswith("about 0:00 left")


def test_members_of_the_front_are_marked() -> None:
    view = make_sweep(24)
    marked = [o.trial.number for o in view.observations if " * " in outcome_line(o, view)]
    assert marked == sorted(member.trial.number for member in view.front.members)


def test_a_speed_that_did_not_settle_is_marked_and_explained() -> None:
    view = make_sweep(24)
    member = view.front.members[0]
    number = member.trial.number
    on = console()
    show_front(on, view)
    assert "~" not in said(on)
    marked = [unsettled(o) if o.trial.number == number else o for o in view.observations]
    view = replace(view, observations=tuple(marked))
    show_front(on, view)
    assert f"~ the speed of {number} did not settle" in said(on)
    assert said(on).count("~") == 2
    assert "~" in outcome_line(unsettled(member), view)


def test_a_front_of_two_kinds_of_machine_is_said() -> None:
    view = make_sweep(24)
    first = view.front.members[0]
    assert isinstance(first.outcome, Measurement)
    assert first.outcome.speedup is not None
    there = replace(first.outcome, speedup=replace(first.outcome.speedup, device="another"))
    moved = [replace(o, outcome=there) if o == first else o for o in view.observations]
    on = console()
    show_front(on, replace(view, observations=tuple(moved)))
    assert "measured on 2 kinds of machine (another and cpu)" in said(on)


def test_a_machine_whose_own_speed_moved_is_told_of() -> None:
    view = make_sweep(24)
    measured = next(o for o in view.observations if isinstance(o.outcome, Measurement))
    assert isinstance(measured.outcome, Measurement)
    assert measured.outcome.speedup is not None

    def shown_with(baseline_ms: float, *, device: str = "cpu", **place: str) -> str:
        assert isinstance(measured.outcome, Measurement)
        assert measured.outcome.speedup is not None
        speedup = replace(measured.outcome.speedup, baseline_ms=baseline_ms, device=device)
        slower = replace(measured, outcome=replace(measured.outcome, speedup=speedup), **place)
        on = console()
        others = [slower if o == measured else o for o in view.observations]
        show_front(on, replace(view, observations=tuple(others)))
        return said(on)

    took_ms = measured.outcome.speedup.baseline_ms
    told = f"moved by 30% during the sweep (beside the trials the baseline took {took_ms:.3g} to"
    assert told in shown_with(1.3 * took_ms)
    assert "moved" not in shown_with(1.1 * took_ms)
    assert "moved" not in shown_with(1.3 * took_ms, host="another")
    assert "moved" not in shown_with(1.3 * took_ms, device="another")


def test_the_front_is_shown_with_its_baseline_and_what_the_search_gained() -> None:
    view = make_sweep(24)
    on = console()
    show_front(on, view)
    out = said(on)
    assert "baseline" in out
    assert f"{view.baseline['accuracy']:.4f}" in out
    for member in view.front.members:
        assert f"│ {member.trial.number:>8} │" in out
    finished = view.counts["finished"]
    assert f"{finished} finished, " in out
    assert "slots busy 91% of the time" in out
    assert "uniform" not in out  # none was asked


def uniform_sweep(*, gained: bool) -> SweepView:
    """A sweep whose only front member is a uniform point, or is not."""
    view = make_sweep(24)
    best = max(view.front.members, key=lambda m: m.trial.number)
    others = [o for o in view.observations if o.trial.number not in view.front]
    failed = [o for o in others if isinstance(o.outcome, Failure)]
    fixed = view.space.uniform(0.5)
    uniform = replace(best, trial=replace(best.trial, spec=fixed, number=0))
    worst = replace(others[0], trial=replace(others[0].trial, spec=fixed, number=0))
    return replace(view, observations=(best, worst) if gained else (uniform, *failed))


def test_whether_the_search_beats_equal_ratios_is_said_either_way() -> None:
    on = console()
    show_front(on, uniform_sweep(gained=True))
    assert "uniform points it started from, the search gained hypervolume" in said(on)
    on = console()
    show_front(on, uniform_sweep(gained=False))
    assert "The search did not beat the 1 uniform points it started from" in said(on)


def test_a_uniform_point_that_the_search_proposed_is_its_own() -> None:
    view = uniform_sweep(gained=True)
    best, worst = view.observations
    late = replace(worst, trial=replace(worst.trial, number=99))
    on = console()
    show_front(on, replace(view, observations=(best, late)))
    assert "uniform points" not in said(on)


def test_an_empty_front_says_which_constraint_nobody_met() -> None:
    view = make_sweep(24, goal=make_goal(min_speedup=90.0))
    on = console()
    show_front(on, view)
    assert re.search(
        r"The front is empty: no trial met speedup >= 90 \(the nearest had \d", said(on)
    )
    assert "did not beat" not in said(on)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(12, "12"), (1234, "1.23k"), (38_700_000, "38.7M"), (4.1e9, "4.1G"), (0.5, "0.5")],
)
def test_counts_are_short(value: float, expected: str) -> None:
    assert short(value) == expected


def test_sizes_of_spaces_are_told_by_their_order() -> None:
    assert count(841) == "841"
    assert count(10**25) == "about 10^25"


@pytest.mark.usefixtures("capsys")
def test_an_output_that_is_no_terminal_is_wide() -> None:
    assert stdout().width == WIDE
