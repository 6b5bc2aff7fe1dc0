"""What each searcher does beyond the contract."""

import logging
import re
import warnings
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Constraint, Goal
from autoprune.domain.protocols import SearcherFactory
from autoprune.domain.space import Axis, Group, PruningSpec, SearchSpace
from autoprune.domain.trial import Cause, Failure, Measurement, Observation, Outcome, Stage, Trial
from autoprune.problems import known_problem
from autoprune.searchers import (
    SAMPLERS,
    OptunaSearcher,
    RandomSearcher,
    UniformSearcher,
    nearest_unseen,
)
from autoprune.settings.compose import compose_config, plain
from autoprune.settings.targets import build_target
from tests.contracts.searcher_contract import GOAL, OBJECTIVES, SPACE, Driver, measure

WIDE = SearchSpace(tuple(Axis(Group(f"g{i}", "channels", 64), 4, 64) for i in range(6)))
OPEN = Goal(OBJECTIVES, (0.5, 1.0))


def kept(spec: PruningSpec) -> float:
    return sum(width for _, width in spec.kept) / (64 * len(spec.kept))


def tell(searcher: OptunaSearcher, number: int, spec: PruningSpec, outcome: Outcome) -> None:
    searcher.tell(Observation(Trial(number, spec, 0), outcome))


# Uniform


def test_a_small_budget_of_uniform_points_spans_the_range() -> None:
    searcher = UniformSearcher(WIDE, OPEN, 0)
    ratios = [kept(searcher.ask(number)) for number in range(7)]
    assert ratios == [0.5, 0.75, 0.25, 0.875, 0.625, 0.375, 0.125]


def test_the_uniform_grid_is_refined_between_its_points() -> None:
    searcher = UniformSearcher(WIDE, OPEN, 0, ratios=(0.25, 0.75))
    assert [kept(searcher.ask(n)) for n in range(5)] == [0.25, 0.75, 0.5, 0.625, 0.375]
    rest = [searcher.ask(n) for n in range(5, 33)]
    assert {kept(spec) for spec in rest} | {0.25, 0.75, 0.5, 0.625, 0.375} == {
        width / 64 for width in range(16, 49)
    }
    beside = searcher.ask(33)
    assert len({width for _, width in beside.kept}) == 2


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ((), "the uniform searcher has no ratio; name at least one in (0, 1]"),
        ((0.5, 1.2, 0.0), "ratios has [1.2, 0.0]; choose kept ratios in (0, 1]"),
    ],
)
def test_uniform_ratios_that_cannot_be(ratios: tuple[float, ...], message: str) -> None:
    with pytest.raises(AutopruneError, match=re.escape(message)):
        UniformSearcher(WIDE, OPEN, 0, ratios=ratios)


# Random


def test_a_random_proposal_depends_on_seed_and_number_only() -> None:
    one, other = RandomSearcher(WIDE, OPEN, 3), RandomSearcher(WIDE, OPEN, 3)
    asked = {number: one.ask(number) for number in range(20)}
    assert {number: other.ask(number) for number in range(5, 20)} == {
        number: asked[number] for number in range(5, 20)
    }


# Uniform points first


# New proposals


@pytest.mark.parametrize("build", [UniformSearcher, RandomSearcher])
@pytest.mark.parametrize("groups", [24, 100])
def test_a_proposal_takes_little_work_however_many_there_were(
    build: SearcherFactory, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Specs are what it takes: making one of 100 groups takes up to 4 ms."""
    problem, made = known_problem("coupled", groups), [0]
    at, uniform = SearchSpace.at, SearchSpace.uniform

    def counted(make: Callable[..., PruningSpec]) -> Callable[..., PruningSpec]:
        def count(space: SearchSpace, value: Any) -> PruningSpec:
            made[0] += 1
            return make(space, value)

        return count

    searcher = build(problem.space, problem.goal, 0)
    monkeypatch.setattr(SearchSpace, "at", counted(at))
    monkeypatch.setattr(SearchSpace, "uniform", counted(uniform))
    work = []
    for number in range(300):
        before = made[0]
        searcher.ask(number)
        work.append(made[0] - before)
    assert max(work) <= 8


def test_the_nearest_new_spec_is_found_until_there_is_none() -> None:
    space = SearchSpace(
        (Axis(Group("a", "channels", 3), 1, 3), Axis(Group("b", "channels", 2), 1, 2))
    )
    seen: set[PruningSpec] = set()
    start, rng, distances = space.at((0, 0)), np.random.default_rng(0), []
    while (spec := nearest_unseen(space, start, seen, rng)) is not None:
        distances.append(sum(space.indices(spec)))
        seen.add(spec)
    assert distances == [0, 1, 1, 2, 2, 3]
    assert len(seen) == space.size


# Optuna


def test_optuna_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    # Optuna's own handler does not propagate, so listen to its root.
    logging.getLogger("optuna").addHandler(caplog.handler)
    levels = {name: logging.getLogger(name).level for name in ("optuna", "optuna.storages")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for name in SAMPLERS:
                searcher = OptunaSearcher(SPACE, GOAL, 0, sampler=name)
                list(islice(Driver(searcher, slots=1).run(), 16))
    finally:
        logging.getLogger("optuna").removeHandler(caplog.handler)
    assert caplog.records == []
    assert {name: logging.getLogger(name).level for name in levels} == levels


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            partial(OptunaSearcher, sampler="ngsa2"),
            "sampler 'ngsa2' is not known; did you mean 'nsga2'? Otherwise choose from "
            "['gp', 'nsga2', 'nsga3', 'tpe']",
        ),
        (
            partial(OptunaSearcher, options={"population": 12}),
            "option of sampler 'nsga2' 'population' is not known; did you mean 'population_size'?",
        ),
        (
            partial(OptunaSearcher, sampler="tpe", options={"seed": 12}),
            "option of sampler 'tpe' 'seed' is not known",
        ),
        (
            partial(OptunaSearcher, sampler="tpe", options={"multivariate": "no"}),
            "option 'multivariate' of sampler 'tpe' is 'no'; choose true or false",
        ),
        (
            partial(OptunaSearcher, options={"population_size": 2.5}),
            "option 'population_size' of sampler 'nsga2' is 2.5; choose a whole number",
        ),
        (
            partial(OptunaSearcher, sampler="nsga3", options={"dividing_parameter": 0}),
            "option 'dividing_parameter' of sampler 'nsga3' is 0; choose a whole number from 1 on",
        ),
        (
            partial(OptunaSearcher, sampler="tpe", options={"n_startup_trials": -1}),
            "option 'n_startup_trials' of sampler 'tpe' is -1; choose a whole number from 0 on",
        ),
        (
            partial(OptunaSearcher, sampler="tpe", options={"group": True, "multivariate": False}),
            "sampler 'tpe' refuses {'group': True, 'multivariate': False}: ``group`` option can "
            "only be enabled when ``multivariate`` is enabled",
        ),
        (
            partial(OptunaSearcher, options={"population_size": 1}),
            "sampler 'nsga2' refuses {'population_size': 1}: `population_size` must be greater "
            "than or equal to 2.; see optuna.samplers.NSGAIISampler for the values it takes",
        ),
    ],
)
def test_a_sampler_that_cannot_be(build: Callable[..., OptunaSearcher], message: str) -> None:
    with pytest.raises(AutopruneError, match=re.escape(message)):
        build(SPACE, GOAL, 0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_options_that_configs_show_are_the_defaults(name: str) -> None:
    shown = plain(compose_config("sweep", [f"searcher={name}"]))["searcher"]["options"]
    assert shown == {option: SAMPLERS[name].options[option] for option in shown}


def test_options_are_the_arguments_of_the_sampler() -> None:
    words = ["searcher=tpe", "searcher.options.multivariate=false", "+searcher.options.gamma=null"]
    config = plain(compose_config("sweep", words))["searcher"]
    searcher = build_target("searcher", config, partial=True)(SPACE, GOAL, 0)
    assert searcher._sampler._multivariate is False


def test_a_spec_of_another_space_is_refused() -> None:
    searcher = OptunaSearcher(SPACE, GOAL, 0)
    with pytest.raises(AutopruneError, match="differ in groups"):
        tell(searcher, 0, WIDE.uniform(0.5), Measurement({"accuracy": 0.5, "speedup": 2.0}))


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3"])
def test_the_population_takes_in_trials_it_did_not_propose(sampler: str) -> None:
    """With a first generation of strangers, all alike in two groups, the children are alike too."""
    searcher = OptunaSearcher(
        WIDE, OPEN, 0, sampler=sampler, options={"population_size": 8, "mutation_prob": 0.0}
    )
    for number in range(8):
        widths = {f"g{i}": 20 if i < 2 else 10 + 5 * number + i for i in range(6)}
        metrics = {"accuracy": 0.5 + number / 100, "speedup": 3.0 - number / 10}
        tell(searcher, number, PruningSpec.of(widths), Measurement(metrics))
    for number in range(8, 16):
        spec = searcher.ask(number)
        assert (spec.widths["g0"], spec.widths["g1"]) == (20, 20)


@pytest.mark.parametrize("sampler", ["nsga2", "nsga3", "tpe"])
def test_constraints_steer_the_search(sampler: str) -> None:
    """A band of one group's widths, which serves no objective, is found only where it is told."""
    band = Goal(OBJECTIVES, (0.5, 1.0), (Constraint("params", 8, 10),))

    def outcome(spec: PruningSpec) -> Measurement:
        return Measurement({**measure(spec).metrics, "params": float(spec.widths["g0"])})

    def late_share(goal: Goal) -> float:
        searcher = OptunaSearcher(SPACE, goal, 0, sampler=sampler)
        events = islice(Driver(searcher, outcome=outcome, slots=2).run(), 160)
        late = [event.spec for event in events if isinstance(event, Trial)][30:]
        return sum(band.feasible(outcome(spec)) for spec in late) / len(late)

    assert late_share(band) > late_share(OPEN) + 0.2


class TestHowOutcomesReachOptuna:
    """Read from the study, which is what the samplers learn from."""

    SPEC = SPACE.uniform(0.5)
    GOAL = Goal(
        OBJECTIVES, (0.5, 1.0), (Constraint("speedup", low=2.0), Constraint("macs", high=50))
    )

    def state(self, outcome: Outcome) -> tuple[str, list[float] | None, list[float]]:
        searcher = OptunaSearcher(SPACE, self.GOAL, 0)
        tell(searcher, 0, self.SPEC, outcome)
        (trial,) = searcher._study.trials
        return trial.state.name, trial.values, list(trial.constraints.values())

    def test_finished(self) -> None:
        metrics = {"accuracy": 0.8, "speedup": 2.5, "macs": 40.0}
        assert self.state(Measurement(metrics)) == ("COMPLETE", [0.8, 2.5], [0.0, 0.0])

    def test_infeasible_in_shares_of_the_bound(self) -> None:
        metrics = {"accuracy": 0.8, "speedup": 1.5, "macs": 100.0}
        assert self.state(Measurement(metrics)) == ("COMPLETE", [0.8, 1.5], [0.25, 1.0])

    def test_stopped_with_every_objective(self) -> None:
        metrics = {"accuracy": 0.7, "speedup": 1.5}
        stopped = Measurement(metrics, stopped_by="speedup >= 2")
        assert self.state(stopped) == ("COMPLETE", [0.7, 1.5], [0.25, 0.0])

    def test_stopped_before_an_objective_was_known(self) -> None:
        stopped = Measurement({"speedup": 1.5}, stopped_by="speedup >= 2")
        assert self.state(stopped) == ("FAIL", None, [])

    def test_stopped_without_a_broken_constraint(self) -> None:
        """Proxy values that no constraint marks must not pass for results."""
        stopped = Measurement({"accuracy": 0.7, "speedup": 2.5}, stopped_by="the scheduler")
        assert self.state(stopped) == ("FAIL", None, [])

    def test_failed(self) -> None:
        assert self.state(Failure(Stage.PRUNE, Cause.GRAPH, "no graph")) == ("FAIL", None, [])

    def test_told_again(self) -> None:
        """What is told last takes the place of what was told before, whatever that was."""
        finished = Measurement({"accuracy": 0.8, "speedup": 2.5, "macs": 40.0})
        infeasible = Measurement({"accuracy": 0.9, "speedup": 1.5, "macs": 100.0})
        failed = Failure(Stage.RECOVER, Cause.NAN_LOSS, "the loss is NaN")
        searcher = OptunaSearcher(SPACE, self.GOAL, 0)
        trial = Trial(0, searcher.ask(0), 0)
        for outcome, expected in [
            (finished, ("COMPLETE", [0.8, 2.5], [0.0, 0.0])),
            (infeasible, ("COMPLETE", [0.9, 1.5], [0.25, 1.0])),
            (failed, ("FAIL", None, [])),
            (finished, ("COMPLETE", [0.8, 2.5], [0.0, 0.0])),
        ]:
            searcher.tell(Observation(trial, outcome))
            (known,) = searcher._study.trials
            constraints = list(known.constraints.values())
            assert (known.state.name, known.values, constraints) == expected

    def test_told_again_with_another_spec(self) -> None:
        searcher = OptunaSearcher(SPACE, self.GOAL, 0)
        finished = Measurement({"accuracy": 0.8, "speedup": 2.5, "macs": 40.0})
        for spec in (self.SPEC, SPACE.uniform(0.25)):
            tell(searcher, 0, spec, finished)
        assert [trial.state.name for trial in searcher._study.trials] == ["FAIL", "COMPLETE"]

    def test_a_bound_of_zero_has_no_share(self) -> None:
        goal = Goal(OBJECTIVES, (0.5, 1.0), (Constraint("gain", low=0.0),))
        searcher = OptunaSearcher(SPACE, goal, 0)
        tell(searcher, 0, self.SPEC, Measurement({"accuracy": 0.8, "speedup": 2.5, "gain": -0.5}))
        assert list(searcher._study.trials[0].constraints.values()) == [0.5]
