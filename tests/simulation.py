"""A cluster that does not exist: real sweep logic on simulated slots, trials and time."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from autoprune.domain.ladder import Ladder
from autoprune.domain.trial import Measurement, Observation, Trial, trial_seed
from autoprune.orchestration.journal import Journal
from autoprune.orchestration.proposals import Proposals
from autoprune.orchestration.sweep import Budget, Sweep
from autoprune.orchestration.view import SweepView
from autoprune.problems import ChainProblem
from autoprune.searchers.random import RandomSearcher

RUNG_NOISE = 0.01
"""How far a rung's accuracy is from that at the end, as a standard deviation."""


@dataclass
class Clock:
    """Seconds that pass only when something happens."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(order=True)
class _Event:
    """A trial comes to a rung of the ladder, or to its end (None)."""

    at: float
    order: int
    trial: Trial = field(compare=False)
    rung: int | None = field(compare=False)
    seconds: float = field(compare=False)


@dataclass
class SimulatedCluster:
    """Slots in which trials of a known problem take simulated time; an executor of sweeps.

    A trial takes about a minute for each rung of the ladder and each to the end of it. `busy_s` is
    the time that slots spent on trials, `on_outcome` hears how many outcomes there were.
    """

    problem: ChainProblem
    slots: int
    clock: Clock
    seed: int = 0
    on_outcome: Callable[[int], None] = lambda _: None
    busy_s: float = 0.0

    def run(self, sweep: Sweep) -> None:
        """Run the sweep to the end of its budget."""
        events: list[_Event] = []
        rng = np.random.default_rng(self.seed)
        reached: dict[int, tuple[int, float]] = {}  # the rung and the seconds of every trial
        order = outcomes = 0

        def proceed(trial: Trial) -> None:
            nonlocal order
            rung, seconds = reached.get(trial.number, (-1, 0.0))
            rungs = 0 if sweep.rungs is None else len(sweep.rungs.ladder.epochs)
            took = float(rng.lognormal(np.log(60.0), 0.3))
            self.busy_s += took
            following = rung + 1 if rung + 1 < rungs else None
            order += 1
            heapq.heappush(
                events, _Event(self.clock.now + took, order, trial, following, seconds + took)
            )

        while True:
            while len(events) < self.slots and (trial := sweep.next_trial()) is not None:
                proceed(trial)
            if not events:
                assert sweep.spent
                return
            event = heapq.heappop(events)
            self.clock.now = event.at
            outcome = replace(self.problem.observe(event.trial), seconds=event.seconds)
            if event.rung is None or not isinstance(outcome.outcome, Measurement):
                sweep.record(outcome)
            else:
                reached[event.trial.number] = (event.rung, event.seconds)
                if sweep.reached(self._worth(outcome, event.rung)):
                    proceed(event.trial)
            outcomes += 1
            self.on_outcome(outcomes)

    def _worth(self, outcome: Observation, rung: int) -> Observation:
        """What a trial that will come to `outcome` looks like on a rung."""
        assert isinstance(outcome.outcome, Measurement)
        rng = np.random.default_rng(trial_seed(outcome.trial.seed, rung))
        metrics = dict(outcome.outcome.metrics)
        metrics["accuracy"] += float(rng.normal(0.0, RUNG_NOISE / (rung + 1)))
        return replace(outcome, outcome=replace(outcome.outcome, metrics=metrics), rung=rung)


def simulated(
    folder: Path,
    problem: ChainProblem,
    clock: Clock,
    *,
    trials: int,
    slots: int,
    ladder: Ladder | None,
    seed: int = 0,
) -> tuple[Sweep, SimulatedCluster]:
    """A sweep of random search with its journal in a folder, and the slots that are to run it."""
    header = {
        "sweep_id": "s",
        "experiment": "s",
        "goal": problem.goal.to_json(),
        "space": problem.space.to_json(),
        "baseline": {},
        "budget": {"trials": trials},
        "slots": slots,
        "output": "",
        "config": None,
    }
    sweep = Sweep(
        SweepView("s", "s", problem.goal, problem.space, {}, slots=slots),
        Journal.create(folder / "journal.jsonl", header, timer=clock),
        Proposals(RandomSearcher(problem.space, problem.goal, seed), problem.space, seed=seed),
        budget=Budget(trials=trials),
        ladder=ladder,
    )
    return sweep, SimulatedCluster(problem, slots, clock, seed)
