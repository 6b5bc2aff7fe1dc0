"""What every searcher promises. Subclass `SearcherContract` and give it a factory.

    class TestMine(SearcherContract):
        factory = staticmethod(MySearcher)

`factory` is called as ``factory(space, goal, seed)``. The problem is analytic: quality falls with
the square of what is cut, speed grows with it, and a constraint asks for a minimum of speed.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import pytest

from autoprune.domain.objective import Constraint, Direction, Goal, Objective
from autoprune.domain.protocols import Searcher, SearcherFactory
from autoprune.domain.space import Axis, Group, PruningSpec, SearchSpace
from autoprune.domain.trial import (
    Cause,
    Failure,
    Measurement,
    Observation,
    Outcome,
    Stage,
    Trial,
)
from autoprune.problems import KINDS, known_problem

SPACE = SearchSpace(
    tuple(Axis(Group(f"g{i}", "channels", 16), 2, 16) for i in range(3)),
    criteria=("l1", "l2"),
)
OBJECTIVES = (Objective("accuracy", Direction.MAX), Objective("speedup", Direction.MAX))
GOAL = Goal(OBJECTIVES, (0.5, 1.0), (Constraint("speedup", low=2.0),))


def measure(spec: PruningSpec) -> Measurement:
    """The analytic trial: complete where it is at least twice as fast, else stopped."""
    kept = [width / 16 for _, width in spec.kept]
    share = sum(kept) / len(kept)
    bonus = 0.01 if spec.criterion == "l2" else 0.0
    metrics = {
        "accuracy": 0.9 + bonus - 0.4 * sum((1 - r) ** 2 for r in kept) / len(kept),
        "speedup": 1 / (0.1 + 0.9 * share),
    }
    broken = GOAL.broken(metrics)
    return Measurement(metrics, stopped_by=None if broken is None else str(broken))


def hard(spec: PruningSpec) -> Outcome:
    """Like `measure`, but one in four specs fails, and a stopped trial has no accuracy."""
    if int(spec.digest, 16) % 4 == 0:
        return Failure(Stage.RECOVER, Cause.NAN_LOSS, "the loss is NaN")
    measurement = measure(spec)
    if measurement.complete or int(spec.digest, 16) % 2:
        return measurement
    speedup = {"speedup": measurement.metrics["speedup"]}
    return Measurement(speedup, stopped_by=measurement.stopped_by)


def harder(spec: PruningSpec) -> Outcome:
    """Like `measure`, but one in three specs fails, most of which `hard` let pass."""
    if int(spec.digest, 16) % 3 == 0:
        return Failure(Stage.RECOVER, Cause.TIME_LIMIT, "no end in sight")
    return measure(spec)


@dataclass
class Driver:
    """Asks and tells like parallel workers: late, out of order, with some strangers' trials."""

    searcher: Searcher
    outcome: Callable[[PruningSpec], Outcome] = hard
    slots: int = 3
    rung: int | None = None
    space: SearchSpace = SPACE
    events: list[Trial | Observation] = field(default_factory=list)

    def run(self) -> Iterator[Trial | Observation]:
        """Yield a `Trial` after every ask and an `Observation` after every tell, for ever."""
        order, running, number = random.Random(0), list[Trial](), 0
        while True:
            if number % 7 == 3:
                yield self._tell(Trial(number, self.space.uniform(order.random()), number))
                number += 1
            while len(running) < self.slots:
                running.append(Trial(number, self.searcher.ask(number), number))
                yield running[-1]
                number += 1
            yield self._tell(running.pop(order.randrange(len(running))))

    def _tell(self, trial: Trial) -> Observation:
        observation = Observation(trial, self.outcome(trial.spec), rung=self.rung)
        self.searcher.tell(observation)
        return observation

    def climb(self) -> Iterator[Trial | Observation]:
        """Like `run`, where every trial is told again, as `harder`, once three others were told."""
        paused: list[Trial] = []
        for event in self.run():
            yield event
            if isinstance(event, Observation):
                paused.append(event.trial)
            if len(paused) > 3:
                trial = paused.pop(0)
                again = Observation(trial, harder(trial.spec))
                self.searcher.tell(again)
                yield again


def replay(searcher: Searcher, events: list[Trial | Observation]) -> None:
    """Drive a new searcher through what another one saw; its proposals must be the same."""
    for event in events:
        if isinstance(event, Trial):
            assert searcher.ask(event.number) == event.spec
        else:
            searcher.tell(event)


class SearcherContract:
    """The promises of `autoprune.domain.protocols.Searcher`.

    `budget` is about the number of proposals of the longer tests and `slots` how many trials run
    at once in them; `seeded` tells whether another seed gives other first proposals.
    """

    factory: SearcherFactory
    budget: int = 30
    slots: int = 3
    seeded: bool = True

    def build(self, seed: int = 0, *, space: SearchSpace = SPACE, goal: Goal = GOAL) -> Searcher:
        return self.factory(space, goal, seed)

    def test_proposals_are_of_the_space_new_and_repeat(self) -> None:
        """Replaying what a searcher saw into a new one is how a sweep resumes."""
        history = list(islice(Driver(self.build(seed=5), slots=self.slots).run(), 2 * self.budget))
        asked = [event.spec for event in history if isinstance(event, Trial)]
        for spec in asked:
            SPACE.check(spec)
        assert len(set(asked)) == len(asked)
        replay(self.build(seed=5), history)

    def test_a_trial_told_again_counts_as_told_last(self) -> None:
        """On a ladder of fidelities what was told at a lower rung is superseded, also by a fault:
        the proposals stay new, and repeat on a replay.
        """
        driver = Driver(self.build(seed=5), slots=self.slots, rung=0)
        history = list(islice(driver.climb(), 3 * self.budget))
        asked = [event.spec for event in history if isinstance(event, Trial)]
        for spec in asked:
            SPACE.check(spec)
        assert len(set(asked)) == len(asked)
        replay(self.build(seed=5), history)

    @pytest.mark.parametrize("seed", [0, 2**40])
    def test_any_seed_will_do(self, seed: int) -> None:
        SPACE.check(self.build(seed).ask(0))

    def test_seeds_differ(self) -> None:
        proposals = [[self.build(seed).ask(0)] for seed in range(8)]
        if self.seeded:
            assert any(proposal != proposals[0] for proposal in proposals)
        else:
            assert all(proposal == proposals[0] for proposal in proposals)

    def test_parallel_asks_before_any_tell(self) -> None:
        searcher = self.build()
        specs = [searcher.ask(number) for number in range(8)]
        assert len(set(specs)) == 8
        for number in reversed(range(8)):
            searcher.tell(Observation(Trial(number, specs[number], 0), measure(specs[number])))
        SPACE.check(searcher.ask(8))

    def test_failures_do_not_stop_it(self) -> None:
        def fail(spec: PruningSpec) -> Outcome:
            return Failure(Stage.PRUNE, Cause.GRAPH, f"{spec.digest} cannot be traced")

        driver = Driver(self.build(), outcome=fail, slots=self.slots)
        asked = [e.spec for e in islice(driver.run(), 2 * self.budget) if isinstance(e, Trial)]
        assert len(set(asked)) == len(asked)

    def test_a_trial_that_was_run_with_another_spec(self) -> None:
        searcher = self.build()
        searcher.ask(0)
        other = SPACE.uniform(0.3)
        searcher.tell(Observation(Trial(0, other, 0), measure(other)))
        SPACE.check(searcher.ask(1))

    def test_what_is_never_told_does_not_stop_it(self) -> None:
        searcher = self.build()
        for number in range(self.budget // 2):
            spec = searcher.ask(number)
            SPACE.check(spec)
            if number % 2:
                searcher.tell(Observation(Trial(number, spec, 0), measure(spec)))

    @pytest.mark.parametrize("size", [1, 2])
    def test_a_used_up_space_does_not_stop_it(self, size: int) -> None:
        space = SearchSpace((Axis(Group("g", "channels", size), 1, size),))
        driver = Driver(self.build(space=space), space=space, slots=self.slots)
        events = list(islice(driver.run(), 2 * min(self.budget, 10)))
        specs = [event.spec for event in events if isinstance(event, Trial)]
        assert len(set(specs[:size])) == size

    def test_every_choice_is_part_of_the_search(self) -> None:
        space = replace(SPACE, recoveries=("finetune", "none"), precisions=("fp32", "int8"))
        driver = Driver(self.build(space=space), space=space, slots=self.slots)
        history = list(islice(driver.run(), 2 * self.budget))
        asked = [event.spec for event in history if isinstance(event, Trial)]
        for spec in asked:
            space.check(spec)
        assert len(set(asked)) == len(asked)
        if self.seeded:  # those that draw
            assert {spec.recovery for spec in asked} == {"finetune", "none"}
            assert {spec.precision for spec in asked} == {"fp32", "int8"}
        replay(self.build(space=space), history)

    def test_one_objective_will_do(self) -> None:
        goal = Goal(OBJECTIVES[:1], (0.5,))
        driver = Driver(self.build(goal=goal), outcome=measure, slots=self.slots)
        for event in islice(driver.run(), self.budget):
            SPACE.check(event.spec if isinstance(event, Trial) else event.trial.spec)

    def test_feasible_trials_are_found(self) -> None:
        events = islice(Driver(self.build(), outcome=measure, slots=1).run(), 2 * self.budget)
        asked = [event.spec for event in events if isinstance(event, Trial)]
        assert sum(GOAL.feasible(measure(spec)) for spec in asked) >= len(asked) // 8

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_finds_something_on_every_known_problem(self, kind: str) -> None:
        """Pruning problems of formulas: what it finds is worth something, and nothing is run twice.

        A few of the trials run at once, as in a sweep.
        """
        problem = known_problem(kind, 8)
        searcher = self.build(space=problem.space, goal=problem.goal)
        running: list[Trial] = []
        told: list[Observation] = []
        for number in range(self.budget):
            running.append(Trial(number, searcher.ask(number), number))
            if len(running) == self.slots:
                told.append(problem.observe(running.pop(0)))
                searcher.tell(told[-1])
        assert len({trial.spec for trial in running} | {o.trial.spec for o in told}) == self.budget
        assert problem.hypervolume(told) > 0.0
