"""What a trial knows of itself while it runs: metrics, times, and what it tells of them."""

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from autoprune.domain.trial import (
    Cause,
    Failure,
    Measurement,
    Observation,
    Outcome,
    Speedup,
    Stage,
    Trial,
    TrialError,
)
from autoprune.evaluation.networks import settled_steps
from autoprune.evaluation.records import Progress, Snapshot, TrialContext
from autoprune.measurement.prepared import out_of_memory


class Logbook:
    """Where a trial is, what it knows, and how long it took, what was before a resume included."""

    def __init__(self, trial: Trial, context: TrialContext, resume: Snapshot | None) -> None:
        self.stage = Stage.PRUNE if resume is None else Stage.RECOVER
        self.metrics: dict[str, float] = dict(resume.metrics) if resume else {}
        self.seconds: dict[str, float] = dict(resume.seconds) if resume else {}
        self._trial, self._context = trial, context
        self._started = time.perf_counter()
        self._news: dict[str, float] = {}
        self._carried = sum(self.seconds.values())

    def elapsed(self) -> float:
        """Seconds spent on the trial, those before a resume included."""
        return self._carried + time.perf_counter() - self._started

    def learn(self, found: Mapping[str, float]) -> None:
        """Take note of metrics, which the next progress tells."""
        self.metrics |= found
        self._news |= found

    def measurement(self, speedup: Speedup, stopped_by: str | None = None) -> Measurement:
        """What the trial has come to, as of now."""
        return Measurement(
            dict(self.metrics), speedup, stopped_by=stopped_by, seconds=dict(self.seconds)
        )

    def observation(self, outcome: Outcome, *, rung: int | None = None) -> Observation:
        """The trial with an outcome, as of now."""
        host = socket.gethostname()
        return Observation(self._trial, outcome, host=host, seconds=self.elapsed(), rung=rung)

    def progress(
        self,
        stage: Stage,
        snapshot: Snapshot | None = None,
        *,
        epoch: int = 0,
        worth: Observation | None = None,
    ) -> Progress:
        """A step that is over, with what is new since the one before."""
        news, self._news = self._news, {}
        return Progress(stage, news, epoch=epoch, snapshot=snapshot, worth=worth)

    @contextmanager
    def timed(self, stage: Stage) -> Iterator[None]:
        """A part of a stage, whose seconds are counted."""
        self.stage = stage
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    @contextmanager
    def guard(self) -> Iterator[None]:
        """The node's quiet gate around a step, and the trial's time limit before it."""
        limit = self._context.limits.time_limit_s
        if limit is not None and self.elapsed() > limit:
            raise TrialError(
                Cause.TIME_LIMIT,
                f"trial {self._trial.number} took longer than its {limit:g} s "
                f"(in stage {self.stage}); raise budget.trial_limit_s or shorten recovery",
            )
        with settled_steps(self._context.step_guard, self._context.device)():
            yield


def failure_of(error: Exception, stage: Stage) -> Failure:
    """The failure that an exception of a trial amounts to."""
    if isinstance(error, TrialError):
        return Failure(stage, error.cause, str(error))
    text = f"{type(error).__name__}: {error}"
    if out_of_memory(error):
        return Failure(stage, Cause.OUT_OF_MEMORY, text)
    return Failure(stage, Cause.ERROR, text)
