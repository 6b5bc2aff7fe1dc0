"""The work of one slot: a trial with the snapshots that it saves, the same for every executor."""

import socket
import time
from collections.abc import Generator
from dataclasses import replace
from functools import partial

from safetensors import SafetensorError

from autoprune.domain.trial import Cause, Failure, Observation, Stage, Trial
from autoprune.evaluation import Progress, TrialContext, failure_of, trial_steps
from autoprune.orchestration.storage import Storage
from autoprune.orchestration.store import StoreError, retried


def work(
    trial: Trial, context: TrialContext, storage: Storage
) -> Generator[Progress, None, Observation]:
    """Go through a trial from its last snapshot, saving each one before the next step.

    Where a storage cannot be read the trial fails as it does of any other fault; where it does not
    take a snapshot (a full disk), with `Cause.UNSAVED`.
    """
    started = time.perf_counter()

    def failed(failure: Failure) -> Observation:
        spent = time.perf_counter() - started
        return Observation(trial, failure, host=socket.gethostname(), seconds=spent)

    try:
        last = retried(partial(storage.read, trial.number), guard=context.step_guard)
    except Exception as error:
        return failed(failure_of(error, Stage.PRUNE))
    steps = trial_steps(trial, context, resume=last)
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            observation: Observation = end.value
            return observation
        snapshot = progress.snapshot
        if snapshot is not None:
            try:
                save = partial(storage.save, trial.number, snapshot)
                retried(save, guard=context.step_guard)
            except Exception as error:
                steps.close()
                return failed(_unsaved(error, progress.stage))
        yield progress


def _unsaved(error: Exception, stage: Stage) -> Failure:
    failure = failure_of(error, stage)
    # torch.save (2.13) raises RuntimeError for a full disk, as it does where memory runs out
    unsaved = (OSError, SafetensorError, RuntimeError, StoreError)
    if failure.cause is Cause.ERROR and isinstance(error, unsaved):
        return replace(failure, cause=Cause.UNSAVED)
    return failure
