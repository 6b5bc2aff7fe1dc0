"""About how long a sweep takes, from some training steps and one evaluation of the network."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from autoprune.domain.objective import Metric
from autoprune.domain.profile import profile_widths
from autoprune.domain.space import INT8
from autoprune.evaluation import portable
from autoprune.measurement.quantise import quantise
from autoprune.measurement.runtimes.protocol import torch_threads
from autoprune.orchestration.planning import Plan
from autoprune.orchestration.request import SweepRequest
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.criteria import criterion_of
from autoprune.pruning.distill import Distilled
from autoprune.pruning.healing import Recovery
from autoprune.pruning.reconstruct import reconstruct
from autoprune.pruning.recover import FitPlan, fit
from autoprune.pruning.surgery import prune
from autoprune.tasks.protocol import CustomFit, Inputs, Split, Task

STEPS = 3
"""Training steps that are timed, after as many to warm up."""


@dataclass(frozen=True)
class Forecast:
    """Seconds of the baseline's training, of the profile, of one trial, and of all trials.

    `baseline_s` is 0 where nothing is to be trained, `profile_s` where no profile is wanted (what
    an earlier one measured counts as if measured anew); `sweep_s` is None without a bound on trials
    or time. On a ladder a trial gets the mean number of epochs, and each of several recoveries and
    precisions has as many trials. In every round of a schedule units are chosen and mended anew.
    Pruned networks are taken to be as slow as the unpruned one, and slots not to slow each other:
    the first makes it too long, the second too short. Starting workers is left out.
    """

    baseline_s: float
    profile_s: float
    trial_s: float
    sweep_s: float | None


def forecast(request: SweepRequest, plan: Plan) -> Forecast | None:
    """Time the unpruned network; None for a task with a training loop of its own.

    Takes seconds: a few training steps on a copy, a pass over train's batches to count them, one
    evaluation on val, one measurement of speed, one reconstruction for each recovery that has one,
    and one quantisation where some are to be quantised. Nothing is written.
    """
    if isinstance(request.task, CustomFit):
        return None
    task, recoveries = request.task, request.recoveries.values()
    model = copy.deepcopy(request.model).to(request.device)
    with torch_threads(request.threads):
        step_s = _step_s(model, task)
        evaluate_s = _seconds(lambda: evaluate(model, task, "val"))
        mend_s = [_mend_s(request, plan, recovery, step_s=step_s) for recovery in recoveries]
        taught_s = [_training_step_s(model, task, recovery, step_s) for recovery in recoveries]
    batches = sum(1 for _ in task.batches("train", seed=request.seed))
    unpruned = portable(model)
    twin = copy.deepcopy(unpruned)
    measure_s = _seconds(lambda: request.meter.measure(twin, unpruned, task.example()))
    int8_s = _int8_s(request, unpruned)
    works_s = []
    for recovery, before_s, one_s in zip(recoveries, mend_s, taught_s, strict=True):
        top = recovery.fit.epochs
        epochs = float(top) if request.ladder is None else request.ladder.mean_epochs(top)
        schedule = recovery.schedule
        mended = 1 + schedule.rounds * schedule.again
        # judged after the cheap stages, after every epoch, and at the end
        judged_s = max(2, epochs + 1) * evaluate_s + (2 if top else 1) * int8_s
        if recovery.sparsity is not None:  # and then the cheap stages once more
            judged_s += recovery.sparsity.epochs * batches * step_s + before_s + evaluate_s
        works_s.append(mended * before_s + epochs * batches * one_s + judged_s)
    work_s = statistics.fmean(works_s)
    points = sum(len(profile_widths(axis)) for axis in plan.space.axes) if request.profile else 0
    training = request.baseline.plan
    return Forecast(
        baseline_s=training.epochs * (step_s * batches + evaluate_s) if training else 0.0,
        profile_s=points * (measure_s + mend_s[0] + 2 * evaluate_s),
        trial_s=measure_s + work_s,
        sweep_s=_sweep_s(request, work_s=work_s, measure_s=measure_s),
    )


def _mend_s(request: SweepRequest, plan: Plan, recovery: Recovery, *, step_s: float) -> float:
    """Seconds of a trial before it is judged the first time, where half of every group goes."""
    seconds = step_s * (recovery.recalibration_batches + request.limits.importance_batches)
    wanted, task = recovery.reconstruction, request.task
    if wanted is None:
        return seconds
    unpruned = portable(request.model)
    pruned = prune(
        unpruned,
        task.example(),
        plan.space.uniform(0.5),
        criterion=criterion_of("l1"),
        dependencies=plan.dependencies,
    )
    model, original = pruned.model.to(request.device), unpruned.to(request.device)
    cuts = pruned.recipe.history
    return seconds + _seconds(
        lambda: reconstruct(model, original, cuts, task, plan=wanted, seed=request.seed)
    )


def _int8_s(request: SweepRequest, model: nn.Module) -> float:
    """Seconds of one quantisation, on average over the precisions; 0 where none is in int8."""
    if INT8 not in request.precisions:
        return 0.0
    batches, seed = request.calibration_batches, request.seed
    seconds = _seconds(lambda: quantise(model, request.task, batches=batches, seed=seed))
    return seconds / len(request.precisions)


def _training_step_s(model: nn.Module, task: Task, recovery: Recovery, step_s: float) -> float:
    """Seconds of one of its training steps, where `step_s` are those of one without a teacher."""
    if recovery.distillation is None:
        return step_s
    return _step_s(model, Distilled(task, copy.deepcopy(model), recovery.distillation))


def _sweep_s(request: SweepRequest, *, work_s: float, measure_s: float) -> float | None:
    budget, slots = request.budget, request.executor.slots
    bounds = [] if budget.wall_s is None else [budget.wall_s]
    if budget.trials is not None:
        # whoever measures holds the other slots of the node
        bounds.append(budget.trials * (measure_s + work_s / slots))
    if budget.trial_s is not None:
        bounds.append(budget.trial_s / slots)
    return min(bounds, default=None)


@dataclass(frozen=True)
class _Beginning:
    """A task whose splits end after `STEPS` batches."""

    task: Task

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return self.task.metrics

    def batches(self, split: Split, *, seed: int | None = None) -> Iterator[Any]:
        return islice(iter(self.task.batches(split, seed=seed)), STEPS)

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return self.task.loss(model, batch)

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> Mapping[str, float]:
        return self.task.evaluate(model, batches)

    def example(self) -> Inputs:
        return self.task.example()


def _step_s(model: nn.Module, task: Task) -> float:
    beginning = _Beginning(task)
    # a learning rate that keeps an untrained network finite
    epochs = fit(model, beginning, FitPlan(epochs=2, lr=1e-6, warmup_epochs=0), seed=0)
    next(epochs)
    steps = max(1, sum(1 for _ in beginning.batches("train", seed=0)))
    return _seconds(lambda: next(epochs)) / steps


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
