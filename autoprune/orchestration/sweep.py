"""A sweep: what every executor drives, and all that runs back from a trial to the search."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from autoprune.domain.errors import AutopruneError
from autoprune.domain.protocols import Searcher
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import (
    Cause,
    Failure,
    Observation,
    Outcome,
    Stage,
    Trial,
    trial_seed,
)
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.record import Asked
from autoprune.orchestration.view import SweepView

SAME_FAILURES_TO_STOP = 3


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


class SweepStoppedError(AutopruneError):
    """The sweep gave up: several trials failed of one cause before any came through."""


class Sweep:
    """Hands out trials and takes in observations; journals both before anyone else hears.

    Executors call `next_trial` while they have a free slot, and `progress` and `record` as
    results arrive, all from one thread.
    """

    def __init__(
        self,
        start: SweepView,
        journal: Journal,
        searcher: Searcher,
        *,
        budget: Budget,
        seed: int,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self.journal, self.searcher, self.budget = journal, searcher, budget
        self.seed, self.watchers = seed, tuple(watchers)
        self._start = replace(start, trials=budget.trials)
        self._observations: list[Observation] = []
        self._pending: deque[Trial] = deque()
        self._running: dict[int, Trial] = {}
        self._asked = 0
        # failures of this session by cause, None once any trial of the sweep came through
        self._failed_first: Counter[Cause] | None = Counter()
        self._replay()

    def _replay(self) -> None:
        """Bring the searcher to where the journal ends; what was under way is to be run again."""
        unfinished: dict[int, Trial] = {}
        for event in self.journal.events:
            if isinstance(event, Asked):
                trial = event.trial
                proposed = self.searcher.ask(trial.number)
                if proposed != trial.spec:
                    raise AutopruneError(
                        f"{self.journal.path}: trial {trial.number} is not what the searcher "
                        "proposes on replay; resume with the versions and settings it began with"
                    )
                unfinished[trial.number] = trial
                self._asked = trial.number + 1
            else:
                self.searcher.tell(event.observation)
                self._observations.append(event.observation)
                del unfinished[event.observation.trial.number]
                if not isinstance(event.observation.outcome, Failure):
                    self._failed_first = None
        self._pending.extend(unfinished.values())

    @property
    def view(self) -> SweepView:
        """The sweep at this moment."""
        return replace(
            self._start,
            observations=tuple(self._observations),
            search_s=self._search_s(),
            busy_s=sum(o.seconds for o in self._observations),
        )

    def _search_s(self) -> float:
        """Wall seconds from the first ask to now, or to the last outcome where nothing runs."""
        events = self.journal.events
        if not events:
            return 0.0
        end = self.journal.clock() if self._running else events[-1].at
        return end - events[0].at

    @property
    def running(self) -> Mapping[int, Trial]:
        """The trials that are under way, by number."""
        return self._running

    @property
    def spent(self) -> bool:
        """Whether the budget allows no further trial."""
        budget = self.budget
        if budget.trials is not None and self._asked >= budget.trials and not self._pending:
            return True
        if budget.wall_s is not None and self._search_s() >= budget.wall_s:
            return True
        busy = sum(o.seconds for o in self._observations)
        return budget.trial_s is not None and busy >= budget.trial_s

    def next_trial(self) -> Trial | None:
        """The next trial to start, or None where the budget is used up."""
        if self.spent:
            return None
        if self._pending:
            trial = self._pending.popleft()
        else:
            number = self._asked
            spec = self.searcher.ask(number)
            if not isinstance(spec, PruningSpec):
                raise AutopruneError(
                    f"the searcher proposed {spec!r} for trial {number}; `ask` returns a "
                    "PruningSpec of the space"
                )
            self._start.space.check(spec)
            trial = Trial(number, spec, trial_seed(self.seed, number))
            self.journal.append_asked(trial)
            self._asked += 1
        self._running[trial.number] = trial
        return trial

    def progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """Pass on what a stage or epoch of a running trial found."""
        for watcher in self.watchers:
            watcher.on_progress(trial, stage, metrics, epoch=epoch)

    def record(self, observation: Observation) -> None:
        """Take in an outcome. Raises SweepStoppedError where the first trials fail of one cause."""
        self.journal.append_told(observation)
        del self._running[observation.trial.number]
        self._observations.append(observation)
        self.searcher.tell(observation)
        view = self.view
        for watcher in self.watchers:
            watcher.on_observation(observation, view)
        self._stop_if_hopeless(observation.outcome)

    def _stop_if_hopeless(self, outcome: Outcome) -> None:
        if not isinstance(outcome, Failure):
            self._failed_first = None
        if self._failed_first is None or not isinstance(outcome, Failure):
            return
        self._failed_first[outcome.cause] += 1
        if self._failed_first[outcome.cause] >= SAME_FAILURES_TO_STOP:
            raise SweepStoppedError(
                f"{SAME_FAILURES_TO_STOP} trials failed ({outcome.cause}) and none came through; "
                f"the last one in stage {outcome.stage}: {outcome.reason}"
            )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tell the watchers of the start, and of the end whatever happens in between."""
        started: list[Watcher] = []
        try:
            for watcher in self.watchers:
                watcher.on_start(self.view)
                started.append(watcher)
            yield
        finally:
            self._finish(started)

    def _finish(self, watchers: Sequence[Watcher]) -> None:
        view, complete = self.view, self.spent and not self._running
        with ExitStack() as calls:
            # last in, first out: they hear in the order they stand, whatever one of them raises
            for watcher in reversed(watchers):
                calls.callback(watcher.on_finish, view, complete=complete)
