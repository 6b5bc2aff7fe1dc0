"""Workers that end in ways of which Ray Tune knows nothing, made known to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.execution import tune_controller


class GoneError(RayActorError):
    """A worker that is gone, as Tune knows it; `why` is the error that Ray tells of it."""

    def __init__(self, why: Exception) -> None:
        super().__init__(error_msg=str(why))
        self.args, self.why = (why,), why  # by its arguments it is pickled


class ActorManager(RayActorManager):
    """Tune's own, which breaks the whole experiment off (Ray 2.60) where a worker was ended by
    Ray's memory monitor, or with the machinery of its node: neither is an error of an actor.
    """

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        super()._actor_task_failed(tracked_actor_task, known(exception))

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        super()._actor_start_failed(tracked_actor, known(exception))


def known(error: Exception) -> Exception:
    """An error of Ray's as Tune knows it; every other one as it is."""
    is_known = isinstance(error, (RayActorError, RayTaskError))
    return error if is_known or not isinstance(error, RayError) else GoneError(error)


@contextmanager
def our_actor_manager() -> Iterator[None]:
    """Have Tune manage actors by `ActorManager`, inside."""
    vars(tune_controller)["RayActorManager"] = ActorManager
    try:
        yield
    finally:
        vars(tune_controller)["RayActorManager"] = RayActorManager
