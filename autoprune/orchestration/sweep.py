"""A sweep: what every executor drives, and all that runs back from a trial to the search."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from autoprune.domain.errors import AutopruneError
from autoprune.domain.ladder import Ladder, Rungs
from autoprune.domain.trial import Cause, Failure, Observation, Stage, Trial
from autoprune.orchestration.history import History
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.proposals import Proposal, Proposals, ReplayError
from autoprune.orchestration.record import Asked, Event, Lost, Told
from autoprune.orchestration.trouble import SweepStoppedError, Trouble
from autoprune.orchestration.view import SweepView


@dataclass(frozen=True, slots=True)
class Budget:
    """What a sweep may spend: trials, wall seconds, or seconds of trials added up.

    Whichever is used up first ends the sweep: no further trial starts, those that run come to
    their end. None does not bound. The seconds of a resumed sweep go on from where it stopped.
    """

    trials: int | None = None
    wall_s: float | None = None
    trial_s: float | None = None

    def __post_init__(self) -> None:
        limits = {"trials": self.trials, "wall_s": self.wall_s, "trial_s": self.trial_s}
        if all(limit is None for limit in limits.values()):
            raise AutopruneError("the budget is unbounded; set budget.trials or a time limit")
        for name, limit in limits.items():
            if limit is not None and limit <= 0:
                raise AutopruneError(f"budget.{name} is {limit}; choose more than 0")


class Watcher(Protocol):
    """Hears of everything that happens in a sweep, in the process that drives it."""

    def on_start(self, view: SweepView) -> None:
        """The sweep starts, or goes on after a resume."""
        ...

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """A trial ended a stage or an epoch."""
        ...

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        """A trial came to an outcome; the view includes it."""
        ...

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        """Nothing runs any more; `complete` tells whether the budget was used up."""
        ...


class Sweep:
    """Hands out trials and takes in observations; journals both before anyone else hears.

    Executors call `next_trial` while they have a free slot, `progress`, `reached` and `record` as
    results arrive, all from one thread, within `watched`.
    """

    def __init__(
        self,
        start: SweepView,
        journal: Journal,
        proposals: Proposals,
        *,
        budget: Budget,
        ladder: Ladder | None = None,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self.journal, self.proposals, self.budget = journal, proposals, budget
        self.rungs = None if ladder is None else Rungs(ladder, start.goal)
        self.watchers = tuple(watchers)
        self._start = replace(start, trials=budget.trials)
        self._trials: dict[int, Trial] = {}
        self._history = History(start.goal)
        self._began_at: float | None = None
        self._ended_at = 0.0
        self._pending: deque[int] = deque()
        self._running: dict[int, Trial] = {}
        self._lost: Counter[tuple[int, Cause]] = Counter()
        self._proposal: Proposal | None = None
        self._trouble = Trouble()
        self._replay()

    def _replay(self) -> None:
        """Bring everything to where the journal ends; what was under way is to be run again."""
        try:
            self.proposals.replay(self.journal.events)
        except ReplayError as error:
            raise AutopruneError(f"{self.journal.path}: {error}") from error
        for event in self.journal.events:
            self._note(event)
            match event:
                case Asked(trial=trial):
                    self._trials[trial.number] = trial
                case Told(observation=observation):
                    self._take(observation)
                    if not isinstance(observation.outcome, Failure):
                        self._trouble.came_to(observation.outcome)
                case Lost(number=number, failure=failure):
                    self._lost[number, failure.cause] += 1
        for number in self._trials:
            if self.rungs is not None and number in self.rungs.waiting:
                continue
            told = self._history.of(number)
            if told is None or told.rung is not None:
                self._pending.append(number)

    def _take(self, observation: Observation) -> None:
        self._history.take(observation)
        if self.rungs is not None:
            self.rungs.take(observation)

    @property
    def view(self) -> SweepView:
        """The sweep at this moment."""
        return replace(
            self._start,
            observations=self._history.now,
            search_s=self._search_s(),
            busy_s=self._history.busy_s,
            figures=self._figures(),
            lost=self._losses(),
        )

    def _losses(self) -> dict[str, int]:
        """How often trials were lost and run again, by cause."""
        found: Counter[str] = Counter()
        for (_, cause), times in self._lost.items():
            found[str(cause)] += times
        return dict(found)

    def _figures(self) -> dict[str, float]:
        found = {f"searcher/{name}": value for name, value in self.proposals.curves.items()}
        return found | {
            f"ladder/spearman_at_{agreement.epochs}": agreement.spearman
            for agreement in (self.rungs.agreements if self.rungs is not None else ())
            if agreement.spearman is not None
        }

    def _search_s(self) -> float:
        """Wall seconds from the first ask to now, or to the last outcome where nothing runs."""
        if self._began_at is None:
            return 0.0
        return (self.journal.clock() if self._running else self._ended_at) - self._began_at

    def _note(self, event: Event) -> None:
        """Note that something happened: for how long the sweep has searched follows from it."""
        self._ended_at = event.at
        if self._began_at is None:
            self._began_at = event.at

    @property
    def running(self) -> Mapping[int, Trial]:
        """The trials that are under way, by number."""
        return self._running

    @property
    def complete(self) -> bool:
        """Whether the sweep is over: the budget is used up, and nothing runs any more."""
        return self.spent and not self._running

    @property
    def spent(self) -> bool:
        """Whether the budget allows no further trial, nor one that waits to go on."""
        if self._may_ask() or (self._pending and not self._time_is_up()):
            return False
        # what runs may yet let another one climb
        return self.rungs is None or (not self._running and self._climber() is None)

    def _time_is_up(self) -> bool:
        budget = self.budget
        if budget.wall_s is not None and self._search_s() >= budget.wall_s:
            return True
        return budget.trial_s is not None and self._history.busy_s >= budget.trial_s

    def _may_ask(self) -> bool:
        more = self.budget.trials is None or len(self._trials) < self.budget.trials
        return more and not self._time_is_up()

    def _climber(self) -> int | None:
        """The trial on the ladder that is to go on next; once time is up only of the front."""
        if self.rungs is None:
            return None
        number = None if self._time_is_up() else self.rungs.promotable()
        if number is None and self.rungs.ladder.finish_front and not self._may_ask():
            number = self._finisher(self.rungs.waiting)
        return number

    def _finisher(self, waiting: Mapping[int, int]) -> int | None:
        """The trial that is to go on next so that all members of the front come to their end.

        What one comes to may reveal others behind it, and those again others. Slots do not wait
        for one after the other: while a member is under way, whoever would be on the front without
        all that run goes on as well, unless time is up.
        """
        members = [member.trial.number for member in self._history.front.members]
        number = next((n for n in members if n in waiting), None)
        if number is not None or self._time_is_up():
            return number
        if not any(n in self._running for n in members):
            return None
        return next((n for n in self._history.behind(self._running) if n in waiting), None)

    def next_trial(self, *, wait_s: float | None = None) -> Trial | None:
        """The next trial to start or to go on with; None where there is none, or none yet.

        None yet: it is not `spent`, but the searcher has been at work for longer than `wait_s`
        (None waits as long as it takes), or only what runs can let another one climb.
        """
        if self._pending and not self._time_is_up():
            return self._started(self._pending.popleft())
        number = self._climber()
        if number is not None:
            assert self.rungs is not None
            self.rungs.promote(number)
            return self._started(number)
        if not self._may_ask():
            return None
        return self._proposed(wait_s)

    def _proposed(self, wait_s: float | None) -> Trial | None:
        number = len(self._trials)
        if self._proposal is None:
            self._proposal = self.proposals.ask(number)
        heard, asked = self._proposal.heard, self._proposal.trial
        wait([asked], wait_s)
        if not asked.done():
            return None
        self._proposal, trial = None, asked.result()
        told = self._history.told
        self._note(self.journal.append_asked(trial, heard=heard if heard < told else None))
        self._trials[number] = trial
        return self._started(number)

    def _started(self, number: int) -> Trial:
        trial = self._running[number] = self._trials[number]
        return trial

    def progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """Pass on what a stage or epoch of a running trial found."""
        self._trouble.heard()
        for watcher in self.watchers:
            watcher.on_progress(trial, stage, metrics, epoch=epoch)

    def reached(self, worth: Observation) -> bool:
        """Take in what a running trial is worth on a rung; whether it goes on, else it pauses."""
        assert self.rungs is not None, "without a ladder there are no rungs"
        number = worth.trial.number
        self._trouble.came_to(worth.outcome)
        if self.rungs.knows(worth):  # it was let go on before, and was interrupted here
            return True
        self._hear(worth)
        if self.rungs.may_climb(number):
            self.rungs.promote(number)
            return True
        del self._running[number]
        return False

    def record(self, observation: Observation) -> None:
        """Take in an outcome.

        Raises SweepStoppedError where the first trials fail of one cause, and where a trial could
        not be saved: that is no outcome of its own, so that a resume runs it again.
        """
        number, outcome = observation.trial.number, observation.outcome
        if isinstance(outcome, Failure) and outcome.cause is Cause.UNSAVED:
            raise SweepStoppedError(
                f"trial {number} of {self.journal.path.parent.name} cannot be saved "
                f"({outcome.reason}); nothing is lost that was saved before: mend that (a full "
                "disk wants room), then resume the sweep"
            )
        del self._running[number]
        before = self._history.of(number)
        if before is not None and before.seconds > observation.seconds:
            # it failed with nobody left to tell what it had spent on lower rungs
            observation = replace(observation, seconds=before.seconds)
        self._hear(observation)
        self._trouble.came_to(outcome)

    def lost(self, observation: Observation, *, again: int | None) -> None:
        """Take in that a trial was lost with its worker, before it came to an outcome of its own.

        It is run again, from its last snapshot, unless it was lost `again` times to this cause
        before (None is as often as it takes); then it has failed. Raises SweepStoppedError where
        workers do nothing but die.
        """
        trial, failure = observation.trial, observation.outcome
        assert isinstance(failure, Failure), "a trial that came to an outcome is not lost"
        if again is not None and self._lost[trial.number, failure.cause] >= again:
            self.record(observation)
            return
        self._note(self.journal.append_lost(trial, failure))
        self._lost[trial.number, failure.cause] += 1
        del self._running[trial.number]
        self._pending.append(trial.number)
        self._trouble.lost(failure)

    def _hear(self, observation: Observation) -> None:
        self._note(self.journal.append_told(observation))
        self._take(observation)
        self.proposals.tell(observation)
        view = self.view
        for watcher in self.watchers:
            watcher.on_observation(observation, view)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the sweep found that speaks against its own settings."""
        if self.rungs is None:
            return ()
        found = map(self.rungs.agreement, range(len(self.rungs.ladder.epochs)))
        return tuple(str(agreement) for agreement in found if agreement.bad)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tell the watchers of the start, and of the end whatever happens in between."""
        started: list[Watcher] = []
        try:
            for watcher in self.watchers:
                watcher.on_start(self.view)
                started.append(watcher)
            yield
            self.proposals.close()
        finally:
            self.proposals.close(wait=False)
            self._finish(started)

    def _finish(self, watchers: Sequence[Watcher]) -> None:
        view, complete = self.view, self.complete
        with ExitStack() as calls:
            # last in, first out: they hear in the order they stand, whatever one of them raises
            for watcher in reversed(watchers):
                calls.callback(watcher.on_finish, view, complete=complete)
