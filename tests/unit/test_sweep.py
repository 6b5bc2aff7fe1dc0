import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import ray
import torch

from autoprune.domain.errors import AutopruneError
from autoprune.domain.ladder import Ladder
from autoprune.domain.trial import (
    Cause,
    Failure,
    Measurement,
    Observation,
    Outcome,
    Stage,
    Trial,
)
from autoprune.orchestration.executors import cluster
from autoprune.orchestration.executors.resources import Demand
from autoprune.orchestration.executors.tune import TuneExecutor
from autoprune.orchestration.folders import find_sweep, make_folder
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.proposals import Proposals
from autoprune.orchestration.record import Asked
from autoprune.orchestration.store import Store
from autoprune.orchestration.sweep import Budget, Sweep
from autoprune.orchestration.trouble import EARLY_LOSSES_TO_STOP, SweepStoppedError
from autoprune.orchestration.view import SweepView, view_of
from autoprune.searchers.random import RandomSearcher
from tests.sweeps import make_goal, make_space

SPACE, GOAL = make_space({"a": 32, "b": 64}), make_goal()
GOOD = Measurement({"accuracy": 0.97, "speedup": 2.0})
STOPPED = Measurement({"accuracy": 0.97, "speedup": 0.5}, stopped_by="speedup >= 1")
START = SweepView("s-1", "s", GOAL, SPACE, {"accuracy": 0.98})
HEADER = {
    "sweep_id": "s-1",
    "experiment": "s",
    "goal": GOAL.to_json(),
    "space": SPACE.to_json(),
    "baseline": {"accuracy": 0.98},
    "budget": {"trials": None},
    "config": None,
    "slots": 1,
    "output": "",
    "baseline_digest": "",
    "created": "2026-01-01T00:00:00",
}


def failed(cause: Cause, stage: Stage = Stage.RECOVER) -> Failure:
    return Failure(stage, cause, f"because of {cause}")


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Heard:
    """A watcher that notes what it hears, and may raise."""

    events: list[str] = field(default_factory=list)
    raises: str = ""

    def _note(self, what: str) -> None:
        self.events.append(what)
        if self.raises and what.startswith(self.raises):
            raise OSError(f"no room for {what}")

    def on_start(self, view: SweepView) -> None:
        self._note(f"start {len(view.observations)}")

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        self._note(f"progress {trial.number} {stage} {epoch}")

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        self._note(f"outcome {observation.trial.number} of {len(view.observations)}")

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        self._note(f"finish {complete}")


@dataclass
class Bench:
    """Makes sweeps on one journal, as a sweep and its resumes do."""

    folder: Path
    clock: Clock = field(default_factory=Clock)

    @contextmanager
    def sweep(
        self, budget: Budget | None = None, *watchers: Heard, ladder: Ladder | None = None
    ) -> Iterator[Sweep]:
        path = self.folder / "journal.jsonl"
        opened = (
            Journal.open(path, timer=self.clock)
            if path.exists()
            else Journal.create(path, HEADER, timer=self.clock)
        )
        with opened as journal:
            yield Sweep(
                START,
                journal,
                Proposals(RandomSearcher(SPACE, GOAL, 0), SPACE),
                budget=budget or Budget(trials=100),
                ladder=ladder,
                watchers=watchers,
            )


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def take(sweep: Sweep) -> Trial:
    trial = sweep.next_trial()
    assert trial is not None
    return trial


def do(sweep: Sweep, outcome: Outcome = GOOD, *, seconds: float = 0.0) -> None:
    sweep.record(Observation(take(sweep), outcome, seconds=seconds))


def watch(bench: Bench, *watchers: Heard, fault: BaseException | None = None) -> None:
    """Begin a trial under the watchers' eyes, and come to a bad end or a good one."""
    with bench.sweep(None, *watchers) as sweep, sweep.watched():
        take(sweep)
        if fault is not None:
            raise fault


class TestBudget:
    def test_trials(self, bench):
        with bench.sweep(Budget(trials=2, wall_s=1e9, trial_s=1e9)) as sweep:
            do(sweep)
            do(sweep, failed(Cause.NAN_LOSS))
            assert sweep.spent
            assert sweep.next_trial() is None

    def test_wall_seconds_count_from_the_first_trial(self, bench):
        with bench.sweep(Budget(trials=9, wall_s=60)) as sweep:
            bench.clock.now += 1000
            first, second = take(sweep), take(sweep)
            bench.clock.now += 59
            third = take(sweep)
            bench.clock.now += 1
            assert sweep.next_trial() is None
            for trial in (first, second, third):
                sweep.record(Observation(trial, GOOD))
            assert sweep.spent

    def test_trial_seconds_add_up_over_trials(self, bench):
        with bench.sweep(Budget(trial_s=100)) as sweep:
            do(sweep, seconds=60)
            do(sweep, failed(Cause.ERROR), seconds=39)
            assert not sweep.spent
            do(sweep, seconds=1)
            assert sweep.next_trial() is None

    def test_the_time_between_two_sessions_does_not_count(self, bench):
        budget = Budget(wall_s=60)
        with bench.sweep(budget) as sweep:
            trial = take(sweep)
            bench.clock.now += 50
            sweep.record(Observation(trial, GOOD))
        bench.clock.now += 10_000
        with bench.sweep(budget) as sweep:
            trial = take(sweep)
            bench.clock.now += 9
            sweep.record(Observation(trial, GOOD))
            assert sweep.view.search_s == pytest.approx(59)
            assert not sweep.spent

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({}, "the budget is unbounded; set budget.trials or a time limit"),
            ({"trials": 0}, "budget.trials is 0; choose more than 0"),
            ({"wall_s": -1.0}, "budget.wall_s is -1.0; choose more than 0"),
            ({"trials": 1, "trial_s": 0}, "budget.trial_s is 0; choose more than 0"),
        ],
    )
    def test_nonsense_is_refused(self, limits, message):
        with pytest.raises(AutopruneError, match=message):
            Budget(**limits)


class TestHopeless:
    def test_three_failures_of_one_cause_and_no_success_stop_a_sweep(self, bench):
        with bench.sweep() as sweep:
            do(sweep, failed(Cause.NAN_LOSS))
            do(sweep, failed(Cause.ERROR))
            do(sweep, failed(Cause.NAN_LOSS))
            with pytest.raises(
                SweepStoppedError,
                match=r"3 trials failed \(NaN loss\).*stage recover: because of NaN loss",
            ):
                do(sweep, failed(Cause.NAN_LOSS))
            assert len(sweep.view.observations) == 4

    @pytest.mark.parametrize("success", [GOOD, STOPPED])
    def test_one_trial_that_came_through_is_hope_enough(self, bench, success):
        with bench.sweep() as sweep:
            do(sweep, failed(Cause.ERROR))
            do(sweep, success)
        with bench.sweep() as sweep:
            for _ in range(5):
                do(sweep, failed(Cause.ERROR))

    def test_failures_of_different_causes_do_not(self, bench):
        with bench.sweep() as sweep:
            for cause in (Cause.NAN_LOSS, Cause.GRAPH, Cause.RUNTIME, Cause.NAN_LOSS):
                do(sweep, failed(cause))

    def test_a_resume_gets_another_three(self, bench):
        for _ in range(2):
            with bench.sweep() as sweep:
                do(sweep, failed(Cause.ERROR))
                do(sweep, failed(Cause.ERROR))
                with pytest.raises(SweepStoppedError):
                    do(sweep, failed(Cause.ERROR))


class TestResume:
    def test_what_was_under_way_is_run_again_first_and_nothing_twice(self, bench):
        with bench.sweep(Budget(trials=6)) as sweep:
            asked = [take(sweep) for _ in range(4)]
            sweep.record(Observation(asked[2], GOOD))
            sweep.record(Observation(asked[0], failed(Cause.ERROR)))
        with bench.sweep(Budget(trials=6)) as sweep:
            again = [take(sweep) for _ in range(4)]
            assert again[:2] == [asked[1], asked[3]]
            assert [trial.number for trial in again] == [1, 3, 4, 5]
            assert sweep.next_trial() is None
            for trial in again:
                sweep.record(Observation(trial, GOOD))
            assert sweep.spent
            assert not sweep.running
        with bench.sweep(Budget(trials=6)) as sweep:
            assert sweep.next_trial() is None
            assert sweep.view.counts == {"finished": 5, "paused": 0, "stopped": 0, "failed": 1}

    def test_a_larger_budget_goes_on(self, bench):
        with bench.sweep(Budget(trials=1)) as sweep:
            do(sweep)
        with bench.sweep(Budget(trials=2)) as sweep:
            do(sweep)
            assert sweep.spent

    def test_a_searcher_that_proposes_something_else_goes_on_from_what_was_run(self, bench):
        with bench.sweep() as sweep:
            do(sweep)
            ran = sweep.view.observations
        other = Proposals(RandomSearcher(SPACE, GOAL, 1), SPACE)
        with Journal.open(bench.folder / "journal.jsonl") as journal:
            sweep = Sweep(START, journal, other, budget=Budget(9))
            assert sweep.view.observations == ran
            assert take(sweep).number == 1
        assert other.fault.startswith("trial 0 is not what the searcher proposes on replay")


class TestLadder:
    """One in two goes on; a rung before recovery and one after an epoch."""

    LADDER = Ladder((0, 1), reduction=2.0)

    def worth(self, trial: Trial, rung: int | None, accuracy: float = 0.97) -> Observation:
        outcome = Measurement({"accuracy": accuracy, "speedup": 2.0})
        return Observation(trial, outcome, seconds={0: 1.0, 1: 2.0, None: 4.0}[rung], rung=rung)

    def test_trials_pause_and_go_on(self, bench):
        watcher = Heard()
        with bench.sweep(Budget(trials=3), watcher, ladder=self.LADDER) as sweep, sweep.watched():
            first = take(sweep)
            assert not sweep.reached(self.worth(first, 0))
            assert not sweep.running
            second = take(sweep)
            assert second.number == 1
            assert sweep.reached(self.worth(second, 0, 0.98)), "one of two may go on"
            assert not sweep.reached(self.worth(second, 1, 0.98))
            third = take(sweep)
            assert not sweep.reached(self.worth(third, 0, 0.9))
            assert sweep.view.counts == {"finished": 0, "paused": 3, "stopped": 0, "failed": 0}
            # no more than one in two of a rung; but the front comes to its end
            assert not sweep.spent
            assert take(sweep) == second
            sweep.record(self.worth(second, None, 0.98))
            assert sweep.view.front.members[0].trial.number == 1
            assert sweep.spent
            assert sweep.next_trial() is None
            assert sweep.view.busy_s == 1.0 + 4.0 + 1.0
        assert watcher.events[-2:] == ["outcome 1 of 3", "finish True"]

    def test_the_front_may_stay_where_it_is(self, bench):
        ladder = Ladder((0, 1), reduction=2.0, finish_front=False)
        with bench.sweep(Budget(trials=1), ladder=ladder) as sweep:
            assert not sweep.reached(self.worth(take(sweep), 0))
            assert sweep.spent

    def test_what_runs_may_let_another_one_climb(self, bench):
        ladder = Ladder((0,), reduction=2.0, finish_front=False)
        with bench.sweep(Budget(trials=2), ladder=ladder) as sweep:
            first, second = take(sweep), take(sweep)
            assert not sweep.reached(self.worth(first, 0))
            assert not sweep.spent
            assert sweep.next_trial(wait_s=0.0) is None
            assert not sweep.reached(self.worth(second, 0, 0.9))
            assert take(sweep) == first

    def test_a_resume_stands_where_it_stood(self, bench):
        with bench.sweep(Budget(trials=4), ladder=self.LADDER) as sweep:
            trials = [take(sweep) for _ in range(4)]
            sweep.reached(self.worth(trials[0], 0))
            assert sweep.reached(self.worth(trials[1], 0, 0.98))
            sweep.record(Observation(trials[2], failed(Cause.GRAPH)))
        with bench.sweep(Budget(trials=4), ladder=self.LADDER) as sweep:
            assert take(sweep) == trials[3], "nobody knows what it is worth"
            assert take(sweep) == trials[1], "it waits on its rung, and may climb"
            assert sweep.reached(self.worth(trials[1], 0, 0.98)), "that was heard already"
            assert len(sweep.view.observations) == 3
        with bench.sweep(Budget(trials=4)) as sweep:
            assert {take(sweep).number for _ in range(3)} == {0, 1, 3}, "no ladder: to the end"

    def test_the_front_comes_to_its_end_when_time_is_up(self, bench):
        with bench.sweep(Budget(trial_s=2.0), ladder=self.LADDER) as sweep:
            trials = [take(sweep) for _ in range(3)]
            for trial, accuracy in zip(trials, (0.97, 0.9, 0.8), strict=True):
                assert not sweep.reached(self.worth(trial, 0, accuracy))
            assert not sweep.spent
            climber = take(sweep)
            assert climber == trials[0]
            assert sweep.next_trial() is None
            sweep.record(self.worth(climber, None, 0.98))
            assert sweep.spent
            assert sweep.next_trial() is None

    def test_what_was_spent_before_a_fault_counts(self, bench):
        with bench.sweep(Budget(trials=2), ladder=self.LADDER) as sweep:
            trial = take(sweep)
            sweep.reached(self.worth(trial, 0))
            sweep.reached(self.worth(take(sweep), 0, 0.9))
            again = take(sweep)
            assert again == trial
            sweep.record(Observation(again, failed(Cause.WORKER_LOST), seconds=0.25))
            assert sweep.view.busy_s == 2.0

    def test_rungs_that_predict_badly_are_told(self, bench):
        ladder = Ladder((0,), reduction=1.01, finish_front=True)
        with bench.sweep(Budget(trials=9), ladder=ladder) as sweep:
            while (trial := sweep.next_trial()) is not None:
                level = (trial.number + 1) / 1000
                if sweep.rungs.knows(self.worth(trial, 0)):
                    sweep.record(self.worth(trial, None, 0.96 - level))
                    continue
                if sweep.reached(self.worth(trial, 0, 0.96 + level)):
                    sweep.record(self.worth(trial, None, 0.96 - level))
            (doubt,) = sweep.doubts
            assert "the rung at 0 epochs has a rank correlation of -1.00 with the top" in doubt
            assert sweep.view.figures["ladder/spearman_at_0"] == pytest.approx(-1.0)


class TestLosses:
    """Trials that were lost with their workers."""

    LOST = failed(Cause.WORKER_LOST)

    def lose(self, sweep: Sweep, trial: Trial, *, again: int | None = 1) -> None:
        sweep.lost(Observation(trial, self.LOST, seconds=1.0), again=again)

    def test_they_are_run_again_before_a_new_one_is_asked(self, bench):
        heard = Heard()
        with bench.sweep(Budget(trials=3), heard) as sweep:
            first, second = take(sweep), take(sweep)
            self.lose(sweep, first)
            assert set(sweep.running) == {second.number}
            assert not sweep.spent
            assert take(sweep) == first
            sweep.record(Observation(first, GOOD))
            assert sweep.view.lost == {"worker lost": 1}
            assert sweep.view.counts["finished"] == 1
        assert heard.events == ["outcome 0 of 1"], "nobody hears of an outcome that is none"

    def test_a_trial_that_is_lost_too_often_has_failed(self, bench):
        with bench.sweep(Budget(trials=1)) as sweep:
            trial = take(sweep)
            self.lose(sweep, trial)
            assert take(sweep) == trial
            self.lose(sweep, trial)
            assert sweep.spent
            assert [o.outcome for o in sweep.view.observations] == [self.LOST]

    def test_workers_that_do_nothing_but_die_stop_a_sweep(self, bench):
        def lose(stage: Stage = Stage.PRUNE, cause: Cause = Cause.WORKER_LOST) -> None:
            sweep.lost(Observation(take(sweep), Failure(stage, cause, "no libcuda")), again=None)

        with bench.sweep(Budget(trials=2)) as sweep:
            for _ in range(EARLY_LOSSES_TO_STOP - 1):
                lose()
            sweep.progress(take(sweep), Stage.PRUNE, {}, epoch=0)
            for _ in range(EARLY_LOSSES_TO_STOP):
                lose(Stage.MEASURE)
                lose(cause=Cause.PREEMPTED)
            for _ in range(EARLY_LOSSES_TO_STOP - 1):
                lose()
            with pytest.raises(SweepStoppedError, match=r"20 workers in a row .* no libcuda; look"):
                lose()

    def test_losses_to_each_cause_are_counted_by_themselves(self, bench):
        with bench.sweep(Budget(trials=1)) as sweep:
            trial = take(sweep)
            self.lose(sweep, trial)
            for _ in range(5):
                take(sweep)
                preempted = Observation(trial, failed(Cause.PREEMPTED))
                sweep.lost(preempted, again=None)
            assert sweep.view.counts["failed"] == 0
            assert sweep.view.lost == {"worker lost": 1, "preempted": 5}

    def test_a_resume_knows_how_often(self, bench):
        with bench.sweep(Budget(trials=2)) as sweep:
            trial = take(sweep)
            self.lose(sweep, trial)
        with bench.sweep(Budget(trials=2)) as sweep:
            assert sweep.view.lost == {"worker lost": 1}
            assert take(sweep) == trial
            self.lose(sweep, trial)
            assert sweep.view.counts["failed"] == 1
            do(sweep)
            assert sweep.spent

    def test_one_that_climbs_goes_on_from_its_rung(self, bench):
        with bench.sweep(Budget(trials=1), ladder=Ladder((0,), reduction=2.0)) as sweep:
            trial = take(sweep)
            worth = Observation(trial, GOOD, seconds=1.0, rung=0)
            assert not sweep.reached(worth)
            assert take(sweep) == trial
            self.lose(sweep, trial)
            assert take(sweep) == trial
            assert sweep.reached(worth), "it was let go on before"
            sweep.record(Observation(trial, GOOD))
            assert sweep.spent


def test_a_trial_that_cannot_be_saved_stops_the_sweep_and_is_run_again(bench):
    unsaved = Failure(Stage.RECOVER, Cause.UNSAVED, "OSError: No space left on device")
    with bench.sweep() as sweep:
        do(sweep)
        trial = take(sweep)
        with pytest.raises(SweepStoppedError, match=r"trial 1 of .* cannot be saved .*space left"):
            sweep.record(Observation(trial, unsaved))
    with bench.sweep() as sweep:
        assert len(sweep.view.observations) == 1
        assert take(sweep) == trial


class TestSlowSearcher:
    def test_nobody_waits_for_it(self, bench):
        """An outcome that comes in while it works is not what its proposal builds on."""
        with bench.sweep(Budget(trials=3)) as sweep:
            first = take(sweep)
            gate = threading.Event()
            slow, ask = sweep.proposals.searcher, sweep.proposals.searcher.ask
            slow.ask = lambda number: (gate.wait(), ask(number))[1]
            assert sweep.next_trial(wait_s=0.01) is None
            assert not sweep.spent
            sweep.record(Observation(first, GOOD))
            gate.set()
            take(sweep)
            asked = [event for event in sweep.journal.events if isinstance(event, Asked)]
            assert [event.heard for event in asked] == [None, 0]
        with bench.sweep(Budget(trials=3)) as sweep:
            assert take(sweep).number == 1


class TestClock:
    def test_it_stops_where_nothing_runs(self, bench):
        with bench.sweep() as sweep:
            bench.clock.now += 5
            assert sweep.view.search_s == 0
            trial = take(sweep)
            bench.clock.now += 8
            assert sweep.view.search_s == pytest.approx(8)
            sweep.record(Observation(trial, GOOD, seconds=6))
            bench.clock.now += 30
            assert sweep.view.search_s == pytest.approx(8)
            assert sweep.view.utilisation == pytest.approx(0.75)
            assert view_of(sweep.journal).search_s == pytest.approx(8)


class TestWatchers:
    def test_they_hear_of_everything_in_order(self, bench):
        one, two = Heard(), Heard()
        with bench.sweep(Budget(trials=1), one, two) as sweep, sweep.watched():
            trial = take(sweep)
            sweep.progress(trial, Stage.RECOVER, {}, epoch=2)
            sweep.record(Observation(trial, GOOD))
        assert one.events == ["start 0", "progress 0 recover 2", "outcome 0 of 1", "finish True"]
        assert two.events == one.events

    def test_the_journal_has_an_outcome_before_they_hear_of_it(self, bench):
        watcher = Heard(raises="outcome")
        with bench.sweep(None, watcher) as sweep, pytest.raises(OSError, match="no room"):
            do(sweep)
        with bench.sweep() as sweep:
            assert len(sweep.view.observations) == 1

    @pytest.mark.parametrize("fault", [KeyboardInterrupt(), SweepStoppedError("hopeless")])
    def test_they_hear_of_the_end_whatever_happens(self, bench, fault):
        watcher = Heard()
        with pytest.raises(type(fault)):
            watch(bench, watcher, fault=fault)
        assert watcher.events[-1] == "finish False"

    def test_a_fault_of_one_keeps_nobody_from_the_end(self, bench):
        one, two = Heard(raises="finish"), Heard()
        with pytest.raises(OSError, match="no room for finish"):
            watch(bench, one, two)
        assert two.events == ["start 0", "finish False"]

    def test_who_did_not_start_hears_of_no_end(self, bench):
        one, two, three = Heard(), Heard(raises="start"), Heard()
        with pytest.raises(OSError, match="no room for start"):
            watch(bench, one, two, three)
        assert one.events == ["start 0", "finish False"]
        assert two.events == ["start 0"]
        assert three.events == []


class TestFolders:
    def write(self, output: Path, sweep_id: str, created: str) -> Path:
        folder = make_folder(output, sweep_id)
        facts = {**HEADER, "sweep_id": sweep_id, "created": created}
        Journal.create(folder / "journal.jsonl", facts).close()
        return folder

    def test_the_latest_is_the_one_begun_last(self, tmp_path):
        self.write(tmp_path, "b", "2026-01-01T00:00:00.000001+00:00")
        latest = self.write(tmp_path, "a", "2026-01-01T00:00:00.000002+00:00")
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "journal.jsonl").write_text("")  # killed before its first line
        assert find_sweep(tmp_path, "latest") == latest
        assert find_sweep(tmp_path, "b") == tmp_path / "b"

    def test_damage_to_a_journal_is_said_and_not_passed_over(self, tmp_path):
        self.write(tmp_path, "old", "2026-01-01T00:00:00.000001+00:00")
        journal = self.write(tmp_path, "new", "2026-01-01T00:00:00.000002+00:00") / "journal.jsonl"
        journal.write_bytes(journal.read_bytes().replace(b"2026-01", b"2025-01"))
        with pytest.raises(AutopruneError, match=r"new/journal.jsonl, line 1: it does not agree"):
            find_sweep(tmp_path, "latest")
        assert find_sweep(tmp_path, "old") == tmp_path / "old"

    def test_a_sweep_that_is_not_there(self, tmp_path):
        with pytest.raises(AutopruneError, match=r"no sweep in .*; set output=FOLDER"):
            find_sweep(tmp_path, "latest")
        self.write(tmp_path, "mine", "2026-01-01T00:00:00+00:00")
        with pytest.raises(AutopruneError, match=r"no sweep 'yours' in .*; the latest are mine"):
            find_sweep(tmp_path, "yours")

    def test_an_output_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(AutopruneError, match=r"cannot write to the output folder .*Not a dir"):
            make_folder(tmp_path / "file", "s")


def test_a_command_names_the_output_folder_where_it_is_not_the_default():
    assert START.command("resume") == "autoprune resume sweep=s-1"
    elsewhere = replace(START, output="/data/my sweeps")
    promote = "autoprune promote sweep=s-1 output='/data/my sweeps' select.max_accuracy_drop=0.01"
    assert elsewhere.command("promote") == promote
    from_python = replace(START, from_python=True)
    assert from_python.command("resume") == 'autoprune.search(..., resume="s-1")'
    assert from_python.command("promote") == "front.promote(max_drop=0.01)"
    assert from_python.command("dashboard") == "autoprune dashboard sweep=s-1"


def test_a_trial_that_fits_nowhere_is_refused_before_ray_starts():
    with pytest.raises(AutopruneError, match=r"asks for 1000 CPUs; there are this machine \(\d+ C"):
        TuneExecutor(demand=Demand(cpus=1000)).slots  # noqa: B018
    with pytest.raises(AutopruneError, match=r"asks for 1 CPU, 1000 GB of memory; there are this"):
        TuneExecutor(demand=Demand(memory_gb=1000)).slots  # noqa: B018
    if torch.cuda.device_count() == 0:
        with pytest.raises(AutopruneError, match=r"asks for 1 CPU, 1 GPU; there are this machine"):
            TuneExecutor(demand=Demand(gpus=1)).slots  # noqa: B018
    assert TuneExecutor().slots >= 1
    assert not ray.is_initialized()


def test_a_cluster_that_answers_and_lets_nobody_in_is_told_as_that(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("Failed to connect to Ray cluster: invalid token")

    monkeypatch.setattr(ray, "init", refuse)
    # a cluster's head speaks no HTTP, and says so at once
    monkeypatch.setattr(cluster, "is_dashboard", lambda _url: False)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        executor = TuneExecutor(address=f"127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(AutopruneError, match=r"answers and does not let .* RAY_AUTH_TOKEN"):
            executor.check(Store("/"))


def test_an_address_where_nobody_answers_is_refused_within_seconds():
    with socket.socket() as taken:  # bound but not listening: a connection is refused
        taken.bind(("127.0.0.1", 0))
        executor = TuneExecutor(address=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(AutopruneError, match=r"no Ray cluster answers at executor\.address"):
            executor.check(Store("/"))
