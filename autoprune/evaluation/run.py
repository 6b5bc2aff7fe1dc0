"""The stages of a trial, one after the other.

They are a generator: an executor takes one step at a time and may save the snapshot of each,
pause, or go on elsewhere.
"""

import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from autoprune.domain.objective import SIZE_METRICS
from autoprune.domain.trial import (
    Cause,
    Failure,
    Measurement,
    Observation,
    Speedup,
    Stage,
    Trial,
    TrialError,
)
from autoprune.evaluation.networks import example_outputs, portable, settled_steps
from autoprune.evaluation.records import Progress, Snapshot, TrialContext
from autoprune.measurement.cost import costs
from autoprune.measurement.meter import speed_metrics
from autoprune.measurement.prepared import out_of_memory
from autoprune.measurement.runtimes.protocol import torch_threads
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.importance import Scoring
from autoprune.pruning.recipe import Recipe, rebuild
from autoprune.pruning.recover import FitPlan, FitState, fit, recalibrate
from autoprune.pruning.surgery import prune


def run_trial(
    trial: Trial,
    context: TrialContext,
    *,
    report: Callable[[Progress], None] | None = None,
    resume: Snapshot | None = None,
) -> Observation:
    """Run every stage of a trial and return what it came to; a fault becomes a Failure.

    `report` hears of every stage and epoch as it ends. `resume` goes on from a snapshot that
    an earlier run of the same trial reported.
    """
    steps = trial_steps(trial, context, resume=resume)
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            observation: Observation = end.value
            return observation
        if report is not None:
            report(progress)


def trial_steps(
    trial: Trial, context: TrialContext, *, resume: Snapshot | None = None
) -> Generator[Progress, None, Observation]:
    """The stages of a trial one step at a time; returns the observation at the end."""
    run = _Run(trial, context, resume)
    stages = run.stages()
    outcome: Measurement | Failure
    # Ray sets OMP_NUM_THREADS once for a worker, which then serves trials of other sizes
    with torch_threads(context.threads):
        while True:
            try:
                progress = next(stages)
            except StopIteration as end:
                outcome = end.value
                break
            except Exception as error:  # every fault of user code is an outcome, not a crash
                outcome = failure_of(error, run.stage)
                break
            yield progress
    return Observation(trial, outcome, host=socket.gethostname(), seconds=run.elapsed())


class _Run:
    """The mutable side of one trial: where it is, what it knows, and how long it took."""

    def __init__(self, trial: Trial, context: TrialContext, resume: Snapshot | None) -> None:
        self.trial, self.context, self.resume = trial, context, resume
        self.stage = Stage.PRUNE if resume is None else Stage.RECOVER
        self.started = time.perf_counter()
        self.metrics: dict[str, float] = dict(resume.metrics) if resume else {}
        self.news: dict[str, float] = {}
        self.seconds: dict[str, float] = dict(resume.seconds) if resume else {}
        self.carried = sum(self.seconds.values())

    @property
    def _plan(self) -> FitPlan:
        return self.context.recoveries[self.trial.spec.recovery]

    def elapsed(self) -> float:
        """Seconds spent on the trial, those before a resume included."""
        return self.carried + time.perf_counter() - self.started

    def stages(self) -> Generator[Progress, None, Measurement]:
        """Every stage in order; returns the measurement."""
        if self.resume is None:
            model, recipe, speedup = yield from self._cheap_stages()
            costs = {*SIZE_METRICS, *self.context.meter.metrics}
            broken = self.context.goal.broken(
                {name: value for name, value in self.metrics.items() if name in costs}
            )
            if broken is not None:
                return self._measurement(speedup, stopped_by=str(broken))
            fit_state = None
        else:
            recipe, speedup, fit_state = self.resume.recipe, self.resume.speedup, self.resume.fit
            if fit_state is None:
                return self._measurement(speedup)
            model = rebuild(recipe, self.resume.state_dict, model=self.context.model)
            model = model.to(self.context.device)
        yield from self._recover(model, recipe, speedup, fit_state)
        with self._timed(Stage.EVALUATE):
            if self._plan.epochs:  # otherwise the proxy is what the network is worth
                self._learn(self._evaluate(model))
            with self._guard():
                outputs = example_outputs(portable(model), self.context.task)
        done = self._snapshot(model, recipe, speedup, None)
        yield self._progress(Stage.EVALUATE, replace(done, outputs=outputs))
        return self._measurement(speedup)

    def _cheap_stages(self) -> Generator[Progress, None, tuple[nn.Module, Recipe, Speedup]]:
        context, limits = self.context, self.context.limits
        example = context.task.example()
        with self._timed(Stage.PRUNE):
            pruned = prune(
                context.model,
                example,
                self.trial.spec,
                criterion=context.criteria[self.trial.spec.criterion],
                scoring=Scoring(
                    context.task,
                    seed=self.trial.seed,
                    batches=limits.importance_batches,
                    step_guard=self._guard,
                    device=context.device,
                ),
                dependencies=context.dependencies,
            )
            recipe = replace(pruned.recipe, model=context.model_config)
            with self._guard():
                self._learn(costs(pruned.model, example))
        yield self._progress(Stage.PRUNE)
        model = pruned.model.to(context.device)
        with self._timed(Stage.RECALIBRATE):
            recalibrate(
                model,
                context.task,
                batches=limits.recalibration_batches,
                seed=self.trial.seed,
                step_guard=self._guard,
            )
        yield self._progress(Stage.RECALIBRATE)
        with self._timed(Stage.MEASURE):
            speedup = context.meter.measure(model, context.model, example)
            self._learn(speed_metrics(speedup, context.baseline_ms))
        yield self._progress(Stage.MEASURE)
        with self._timed(Stage.PROXY):
            proxy = self._evaluate(model)
            self._learn(proxy | {f"proxy_{name}": value for name, value in proxy.items()})
        yield self._progress(Stage.PROXY)
        return model, recipe, speedup

    def _recover(
        self, model: nn.Module, recipe: Recipe, speedup: Speedup, resume: FitState | None
    ) -> Iterator[Progress]:
        plan = self._plan
        epochs = fit(
            model,
            self.context.task,
            plan,
            seed=self.trial.seed,
            resume=resume,
            step_guard=self._guard,
        )
        while True:
            with self._timed(Stage.RECOVER):
                epoch = next(epochs, None)
                if epoch is None:
                    return
                self._learn({"train_loss": epoch.loss})
                if epoch.number < plan.epochs:
                    self._learn(self._evaluate(model))
            # a task that trains by itself has no state to go on from
            snapshot = None
            if epoch.state is not None:
                snapshot = self._snapshot(model, recipe, speedup, epoch.state)
            yield self._progress(Stage.RECOVER, snapshot, epoch=epoch.number)

    def _learn(self, found: Mapping[str, float]) -> None:
        self.metrics |= found
        self.news |= found

    def _evaluate(self, model: nn.Module) -> dict[str, float]:
        return evaluate(model, self.context.task, "val", step_guard=self._guard)

    def _measurement(self, speedup: Speedup, stopped_by: str | None = None) -> Measurement:
        return Measurement(
            dict(self.metrics), speedup, stopped_by=stopped_by, seconds=dict(self.seconds)
        )

    def _snapshot(
        self, model: nn.Module, recipe: Recipe, speedup: Speedup, fit_state: FitState | None
    ) -> Snapshot:
        return Snapshot(
            recipe,
            model.state_dict(),
            dict(self.metrics),
            speedup,
            seconds=dict(self.seconds),
            fit=fit_state,
        )

    def _progress(
        self, stage: Stage, snapshot: Snapshot | None = None, *, epoch: int = 0
    ) -> Progress:
        news, self.news = self.news, {}
        return Progress(stage, news, epoch=epoch, snapshot=snapshot)

    @contextmanager
    def _timed(self, stage: Stage) -> Iterator[None]:
        self.stage = stage
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """The node's quiet gate around a step, and the trial's time limit before it."""
        limit = self.context.limits.time_limit_s
        if limit is not None and self.elapsed() > limit:
            raise TrialError(
                Cause.TIME_LIMIT,
                f"trial {self.trial.number} took longer than its {limit:g} s "
                f"(in stage {self.stage}); raise budget.trial_limit_s or shorten recovery",
            )
        with settled_steps(self.context.step_guard, self.context.device)():
            yield


def failure_of(error: Exception, stage: Stage) -> Failure:
    """The failure that an exception of a trial amounts to."""
    if isinstance(error, TrialError):
        return Failure(stage, error.cause, str(error))
    text = f"{type(error).__name__}: {error}"
    if out_of_memory(error):
        return Failure(stage, Cause.OUT_OF_MEMORY, text)
    return Failure(stage, Cause.ERROR, text)
