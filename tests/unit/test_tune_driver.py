"""What Ray Tune is told of a sweep, and how a worker is told of that ended without its knowing."""

from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    RuntimeEnvSetupError,
)
from ray.tune.execution import tune_controller
from ray.tune.search import Searcher

from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Cause, Stage, Trial
from autoprune.orchestration.executors.tune_actors import ActorManager, known, our_actor_manager
from autoprune.orchestration.executors.tune_driver import Adapter, _failure


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (OutOfMemoryError("Task was killed"), Cause.OUT_OF_MEMORY, "ran out of memory: Task was"),
        (NodeDiedError("the node is gone"), Cause.WORKER_LOST, "the node is gone"),
        (
            RuntimeEnvSetupError("pip failed"),
            Cause.WORKER_LOST,
            "a node could not set up a worker (pip failed)",
        ),
    ],
)
def test_its_cause_is_told_though_tune_pickles_it(error, cause, reason):
    failure = _failure(cloudpickle.loads(cloudpickle.dumps(known(error))), Stage.RECOVER)
    assert (failure.stage, failure.cause) == (Stage.RECOVER, cause)
    assert reason in failure.reason


@pytest.mark.parametrize(
    "error", [ActorDiedError(), RayTaskError("f", "trace", ValueError("x")), OSError("ours")]
)
def test_what_tune_knows_and_what_is_no_error_of_rays_stays_as_it_is(error):
    assert known(error) is error


def test_tune_manages_actors_by_ours_within_a_sweep_alone():
    before = tune_controller.RayActorManager
    with our_actor_manager():
        assert tune_controller.RayActorManager is ActorManager
    assert tune_controller.RayActorManager is before


class LastTrial:
    """A sweep of one trial, which is run again when it is lost."""

    spent = False

    def __init__(self) -> None:
        self.pending = [Trial(0, PruningSpec.of({"conv": 8}), seed=0)]

    def next_trial(self, *, wait_s: float) -> Trial | None:
        self.spent = len(self.pending) <= 1
        return self.pending.pop() if self.pending else None

    def lost(self, observation: Any, *, again: int | None) -> None:
        self.pending.append(observation.trial)
        self.spent = False


def test_the_last_trial_of_a_sweep_is_run_again_when_its_worker_is_lost():
    """Tune never asks a searcher again that has told it once that it has finished."""
    interrupt: Any = SimpleNamespace(requested=False)
    sweep: Any = LastTrial()
    adapter = Adapter(sweep, lambda: 2, interrupt)
    first = adapter.suggest("a")
    assert adapter.suggest("b") is None, "the other slot is free, and the trial may yet be lost"
    adapter.failed("a", ActorDiedError())
    assert adapter.suggest("c") == first
    del adapter.live["c"]
    assert adapter.suggest("d") == Searcher.FINISHED
