"""The work of one slot: a trial with the snapshots that it saves, the same for every executor."""

import socket
import time
from collections.abc import Generator
from functools import partial

from autoprune.domain.trial import Observation, Stage, Trial
from autoprune.evaluation import Progress, TrialContext, failure_of, trial_steps
from autoprune.orchestration.storage import Storage
from autoprune.orchestration.store import retried


def work(
    trial: Trial, context: TrialContext, storage: Storage
) -> Generator[Progress, None, Observation]:
    """Go through a trial from its last snapshot, saving each one before the next step.

    Where a storage stays out of reach, or does not take a snapshot (a full disk), the trial fails
    as it does of any other fault.
    """
    started = time.perf_counter()

    def failed(error: Exception, stage: Stage) -> Observation:
        spent = time.perf_counter() - started
        failure = failure_of(error, stage)
        return Observation(trial, failure, host=socket.gethostname(), seconds=spent)

    try:
        last = retried(partial(storage.read, trial.number), guard=context.step_guard)
    except Exception as error:
        return failed(error, Stage.PRUNE)
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
            except Exception as error:  # torch.save has a full disk as a RuntimeError
                steps.close()
                return failed(error, progress.stage)
        yield progress
