"""What the searcher `frontier` does beyond the contract."""

from dataclasses import replace

import numpy as np
import pytest

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Constraint, Direction, Goal, Objective
from autoprune.domain.profile import Profile
from autoprune.domain.space import Axis, Group, PruningSpec, SearchSpace
from autoprune.domain.trial import (
    Cause,
    Failure,
    Measurement,
    Observation,
    Outcome,
    Stage,
    Trial,
    trial_seed,
)
from autoprune.problems import ChainProblem, known_problem
from autoprune.searchers import FrontierSearcher, RandomSearcher

SPACE = SearchSpace(
    tuple(
        Axis(Group(f"g{at}", "channels", 64, 8, (f"l{at}", f"l{at + 1}")), 1, 64) for at in range(6)
    )
)
ACCURACY = Objective("accuracy", Direction.MAX)
SPEEDUP = Objective("speedup", Direction.MAX)
PARAMS = Objective("params", Direction.MIN)
GOAL = Goal((ACCURACY, SPEEDUP), (0.85, 1.0))


def metrics(spec: PruningSpec) -> dict[str, float]:
    """Of a network whose later groups matter less and take more time."""
    kept = np.array([spec.widths[f"g{at}"] / 64 for at in range(6)])
    lost = 0.08 * ((1 - kept) ** 2) @ np.array([0.5, 0.3, 0.2, 0.1, 0.1, 0.1])
    share = 0.1 + 0.9 * kept @ np.arange(1, 7) / 21
    size = 10.0 * (kept[:-1] * kept[1:]).mean()
    better = 0.02 if spec.criterion == "l2" else 0.0
    if spec.precision == "int8":
        share, better = 0.5 * share, better - 0.002
    return {
        "accuracy": float(0.9 - lost + better),
        "speedup": float(1 / share),
        "params": 1e6 * size,
        "size_mb": size,
        "zero": 0.0,
        "gain": 0.1 - float(lost),
    }


def outcome(spec: PruningSpec, goal: Goal) -> Measurement:
    found = metrics(spec)
    broken = goal.broken(found)
    return Measurement(found, stopped_by=None if broken is None else str(broken))


def searched(searcher: FrontierSearcher, goal: Goal, trials: int) -> list[PruningSpec]:
    specs = []
    for number in range(trials):
        specs.append(searcher.ask(number))
        trial = Trial(number, specs[-1], 0)
        searcher.tell(Observation(trial, outcome(specs[-1], goal)))
    return specs


def share_of_best(searcher, problem: ChainProblem, trials: int, seed: int) -> float:
    told = []
    for number in range(trials):
        spec = searcher.ask(number)
        told.append(problem.observe(Trial(number, spec, trial_seed(seed, number))))
        searcher.tell(told[-1])
    return problem.hypervolume(told) / problem.best_hypervolume


@pytest.mark.parametrize("kind", ["coupled", "infeasible", "noisy"])
def test_a_quarter_of_the_trials_gives_more_than_random_search_finds(kind: str) -> None:
    problem = known_problem(kind, 8)
    args = problem.space, problem.goal
    ours = share_of_best(FrontierSearcher(*args, 0), problem, 30, 0)
    assert ours > share_of_best(RandomSearcher(*args, 0), problem, 120, 0)


def test_a_profile_makes_few_trials_worth_more() -> None:
    problem = known_problem("coupled", 8)
    args, shares = (problem.space, problem.goal), {True: 0.0, False: 0.0}
    for seed in range(4):
        for known in shares:
            profile = problem.profile(seed) if known else None
            searcher = FrontierSearcher(*args, seed, profile=profile)
            shares[known] += share_of_best(searcher, problem, 15, seed)
    assert shares[True] > shares[False]


def test_a_profile_of_other_groups_and_metrics_does_no_harm() -> None:
    problem = known_problem("coupled", 8)
    profile = problem.profile(0)
    fewer = SearchSpace(problem.space.axes[2:])
    for known in (profile, replace(profile, baseline={}), Profile(profile.groups, {"f1": 0.5})):
        searcher = FrontierSearcher(fewer, problem.goal, 0, profile=known)
        for number in range(6):
            spec = searcher.ask(number)
            fewer.check(spec)
            figures = {"accuracy": 0.94 - 0.01 * number, "speedup": 1.0 + number}
            searcher.tell(Observation(Trial(number, spec, 0), Measurement(figures)))


def test_most_proposals_keep_a_constraint_on_what_is_no_objective() -> None:
    goal = replace(GOAL, constraints=(Constraint("size_mb", high=3.0), Constraint("speedup", 1.5)))
    specs = searched(FrontierSearcher(SPACE, goal, 0), goal, 40)
    kept = [goal.broken(metrics(spec)) is None for spec in specs]
    assert sum(kept[10:]) >= 20


def test_a_region_that_meets_the_constraints_is_found_from_outside() -> None:
    goal = replace(GOAL, constraints=(Constraint("speedup", low=4.0),))
    specs = searched(FrontierSearcher(SPACE, goal, 0), goal, 25)
    kept = [goal.broken(metrics(spec)) is None for spec in specs]
    assert not any(kept[:4])
    assert any(kept)


@pytest.mark.parametrize(
    ("objectives", "reference"),
    [
        ((ACCURACY,), (0.85,)),
        ((ACCURACY, PARAMS), (0.85, 1e7)),
        ((ACCURACY, SPEEDUP, PARAMS), (0.85, 1.0, 1e7)),
        ((Objective("gain", Direction.MAX), SPEEDUP), (0.0, 0.0)),
        ((Objective("gain", Direction.MIN), SPEEDUP), (-1.0, -2.0)),
        ((Objective("zero", Direction.MAX), Objective("zero2", Direction.MIN)), (0.0, 0.0)),
        ((ACCURACY, SPEEDUP), (5.0, 100.0)),
    ],
)
def test_any_objectives_and_any_reference_will_do(
    objectives: tuple[Objective, ...], reference: tuple[float, ...]
) -> None:
    searcher, asked = FrontierSearcher(SPACE, Goal(objectives, reference), 0), []
    for number in range(12):
        asked.append(searcher.ask(number))
        figures = {**metrics(asked[-1]), "zero2": 0.0}
        searcher.tell(Observation(Trial(number, asked[-1], 0), Measurement(figures)))
    assert len(set(asked)) == 12


def test_the_better_criterion_is_learnt() -> None:
    space = replace(SPACE, criteria=("l1", "l2", "random"))
    specs = searched(FrontierSearcher(space, GOAL, 0), GOAL, 40)
    assert sum(spec.criterion == "l2" for spec in specs[20:]) >= 15


def test_it_is_learnt_that_int8_is_worth_it() -> None:
    space = replace(SPACE, precisions=("fp32", "int8"))
    specs = searched(FrontierSearcher(space, GOAL, 0), GOAL, 40)
    assert sum(spec.precision == "int8" for spec in specs[20:]) >= 15


def told_all(outcomes: list[tuple[int, Outcome]]) -> PruningSpec:
    """The proposal after outcomes of the trials that a new searcher asks for first."""
    searcher = FrontierSearcher(SPACE, GOAL, 0)
    specs = [searcher.ask(number) for number in range(6)]
    for number, found in outcomes:
        searcher.tell(Observation(Trial(number, specs[number], 0), found))
    return searcher.ask(6)


def first_outcomes() -> list[tuple[int, Outcome]]:
    searcher = FrontierSearcher(SPACE, GOAL, 0)
    return [(number, Measurement(metrics(searcher.ask(number)))) for number in range(6)]


def test_what_is_told_last_of_a_trial_takes_the_place_of_what_was_told_before() -> None:
    last = first_outcomes()
    early = [(0, Measurement({"accuracy": 0.2, "speedup": 3.0})), last[1]]
    failed = [(2, Failure(Stage.RECOVER, Cause.NAN_LOSS, "the loss is NaN"))]
    assert told_all([early[0], *last[1:], last[0]]) == told_all(last)
    assert told_all([*last[:2], *failed, *last[3:], last[2]]) == told_all(last)
    assert told_all([*last[1:], early[0]]) != told_all([*last[1:], last[0]])


def test_quality_that_was_not_recovered_is_not_learnt() -> None:
    def told(accuracy: float, speedup: float, stopped_by: str | None) -> PruningSpec:
        found = Measurement({"accuracy": accuracy, "speedup": speedup}, stopped_by=stopped_by)
        return told_all([*first_outcomes()[:5], (5, found)])

    assert told(0.1, 2.0, "speedup >= 3") == told(0.88, 2.0, "speedup >= 3")
    assert told(0.1, 2.0, None) != told(0.88, 2.0, None)
    assert told(0.1, 2.0, "speedup >= 3") != told(0.1, 2.9, "speedup >= 3")


def test_widths_that_fail_are_avoided() -> None:
    def fails(spec: PruningSpec) -> bool:
        return spec.widths["g1"] <= 16 or spec.widths["g4"] <= 8

    searcher, failed = FrontierSearcher(SPACE, GOAL, 0), []
    for number in range(80):
        spec = searcher.ask(number)
        failed.append(fails(spec))
        found = Failure(Stage.RECOVER, Cause.NAN_LOSS, "the loss is NaN")
        told = found if failed[-1] else outcome(spec, GOAL)
        searcher.tell(Observation(Trial(number, spec, 0), told))
    assert sum(failed) >= 1
    assert sum(failed[-40:]) <= 10


def test_a_spec_of_another_space_is_refused() -> None:
    searcher = FrontierSearcher(SPACE, GOAL, 0)
    spec = PruningSpec.of({"g0": 8})
    with pytest.raises(AutopruneError, match="the spec and the space differ in groups"):
        searcher.tell(Observation(Trial(0, spec, 0), Measurement({"accuracy": 0.9})))


def test_groups_of_a_single_width_and_groups_that_do_not_meet_will_do() -> None:
    space = SearchSpace(
        (
            Axis(Group("fixed", "channels", 8, 8), 8, 8),
            Axis(Group("half", "channels", 100, 7), 7, 50),
            Axis(Group("wide", "neurons", 4096), 1, 4096),
        ),
        recoveries=("short", "long"),
    )
    searcher = FrontierSearcher(space, GOAL, 0)
    for number in range(10):
        spec = searcher.ask(number)
        space.check(spec)
        kept = spec.widths["wide"] / 4096
        found = Measurement({"accuracy": 0.8 + 0.1 * kept, "speedup": 1 / (0.1 + kept)})
        searcher.tell(Observation(Trial(number, spec, 0), found))
