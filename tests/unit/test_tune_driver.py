"""How a worker that ended in a way of which Ray Tune knows nothing is told of."""

import cloudpickle
import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayTaskError
from ray.tune.execution import tune_controller

from autoprune.domain.trial import Cause, Stage
from autoprune.orchestration.executors.tune_actors import ActorManager, known, our_actor_manager
from autoprune.orchestration.executors.tune_driver import _failure


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (OutOfMemoryError("Task was killed"), Cause.OUT_OF_MEMORY, "ran out of memory: Task was"),
        (NodeDiedError("the node is gone"), Cause.WORKER_LOST, "the node is gone"),
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
