"""The work of one slot: a trial with its snapshots on disk, the same for every executor."""

import socket
import time
from collections.abc import Generator
from pathlib import Path

from autoprune.domain.trial import Observation, Trial
from autoprune.evaluation import Progress, TrialContext, failure_of, trial_steps
from autoprune.orchestration.artifacts import read_snapshot, save_snapshot
from autoprune.orchestration.folders import trial_folder


def work(
    trial: Trial, context: TrialContext, sweep_folder: Path
) -> Generator[Progress, None, Observation]:
    """Go through a trial from its last snapshot, saving each one before the next step.

    A snapshot that cannot be saved (a full disk) fails the trial like any other fault of it.
    """
    started = time.perf_counter()
    folder = trial_folder(sweep_folder, trial.number)
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
            except Exception as error:  # torch.save has a full disk as a RuntimeError
                steps.close()
                failure = failure_of(error, progress.stage)
                spent = time.perf_counter() - started
                return Observation(trial, failure, host=socket.gethostname(), seconds=spent)
        yield progress
