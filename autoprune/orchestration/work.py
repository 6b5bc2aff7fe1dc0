"""The work of one slot: a trial with its snapshots on disk, the same for every executor."""

import socket
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError

from autoprune.domain.trial import Cause, Failure, Observation, Stage, Trial
from autoprune.evaluation import Progress, TrialContext, failure_of, trial_steps
from autoprune.orchestration.artifacts import discard_drafts, read_snapshot, save_snapshot
from autoprune.orchestration.folders import trial_folder


def work(
    trial: Trial, context: TrialContext, sweep_folder: Path
) -> Generator[Progress, None, Observation]:
    """Go through a trial from its last snapshot, saving each one before the next step.

    A snapshot that cannot be saved (a full disk) ends it with `Cause.UNSAVED`.
    """
    started = time.perf_counter()
    folder = trial_folder(sweep_folder, trial.number)
    discard_drafts(folder)
    steps = trial_steps(trial, context, resume=read_snapshot(folder))
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            observation: Observation = end.value
            return observation
        if progress.snapshot is not None:
            try:
                with context.step_guard():
                    save_snapshot(folder, progress.snapshot)
            except Exception as error:
                steps.close()
                failure = _unsaved(error, progress.stage)
                spent = time.perf_counter() - started
                return Observation(trial, failure, host=socket.gethostname(), seconds=spent)
        yield progress


def _unsaved(error: Exception, stage: Stage) -> Failure:
    failure = failure_of(error, stage)
    # torch.save has a full disk as a RuntimeError, like a want of memory
    if failure.cause is Cause.ERROR and isinstance(error, (OSError, SafetensorError, RuntimeError)):
        return replace(failure, cause=Cause.UNSAVED)
    return failure
