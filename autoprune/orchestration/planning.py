"""What a sweep would do, laid out before anything is trained, measured or written."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import get_args

import torch
from torch import nn

from autoprune.domain.bounds import build_space, of_kinds
from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.objective import SIZE_METRICS, Goal, build_goal
from autoprune.domain.protocols import Searcher, WarmsUp
from autoprune.domain.space import INT8, SearchSpace
from autoprune.evaluation import portable
from autoprune.measurement.cost import costs
from autoprune.measurement.meter import SpeedMeter
from autoprune.measurement.quantise import quantise
from autoprune.measurement.runtimes import Int8Network
from autoprune.orchestration.request import GoalRequest, SweepRequest
from autoprune.orchestration.sweep import Budget
from autoprune.pruning.criteria import Scoring, score
from autoprune.pruning.distill import Distilled
from autoprune.pruning.graph import Dependencies, trace
from autoprune.pruning.healing import Recovery
from autoprune.pruning.isolation import mode, own_rng
from autoprune.pruning.sparsity.shrink import check_method
from autoprune.pruning.sparsity.training import check_task
from autoprune.searchers.named import build_searcher
from autoprune.tasks.protocol import Split, Task, device_of

LEARNING = 4
"""A search of fewer trials than so many a slot is close to a random one."""


@dataclass(frozen=True)
class Plan:
    """What a sweep would do: the space, what cannot be pruned and why, and the network's costs."""

    dependencies: Dependencies
    space: SearchSpace
    costs: Mapping[str, float]
    warnings: tuple[str, ...] = ()


def make_plan(request: SweepRequest) -> Plan:
    """Trace the network and lay out its search space; starts and writes nothing.

    Raises AutopruneError where the network fails on the task's example input, cannot be traced,
    or has nothing to prune, and where the space, a metric's name or the searcher is wrong.
    """
    if isinstance(request.model, Int8Network):
        raise AutopruneError(
            "a network in int8 cannot be pruned; search its `origin`, which is in fp32"
        )
    model = portable(request.model)
    example = request.task.example()
    dependencies = trace(model, example, time_limit_s=request.graph_limit_s)
    space = build_space(
        of_kinds(dependencies.groups, request.space.kinds),
        request.space.bounds,
        overrides=request.space.overrides,
        exclude=request.space.exclude,
        criteria=tuple(request.criteria),
        recoveries=tuple(request.recoveries),
    )
    space = replace(space, precisions=tuple(request.precisions))
    found = costs(model, example)
    # what cannot work is refused before anything is trained: a misnamed metric, a searcher, a
    # criterion that does not suit the network, a runtime that cannot run it
    goal = rehearse_goal(request.goal, request.task, request.meter)
    searcher = build_searcher(request.searcher, space, goal, request.seed)
    check_warm_up(searcher, request.budget)
    check_predicted(request.recoveries, profiled=request.profile)
    for recovery in request.recoveries.values():
        if recovery.sparsity is not None:
            check_task(request.task)
            check_method(recovery.sparsity, model, dependencies.couplings)
    for criterion in request.criteria.values():
        scoring = Scoring(request.task, batches=1, step_guard=request.gate.step)
        score(model, dependencies.couplings, criterion, scoring)
    _rehearse(model, request)
    request.meter.check(model, example)
    if INT8 in request.precisions:
        with request.gate.step():
            batches = request.calibration_batches
            int8 = quantise(model, request.task, batches=batches, seed=request.seed)
        request.meter.check(int8, example)
    warnings = _ladder_warnings(request)
    if all(len(axis.widths) == 1 for axis in space.axes):
        warnings.append("every group has one legal width only: there is nothing to search")
    trials, slots = request.budget.trials, request.executor.slots
    if trials is not None and slots > 1 and trials < LEARNING * slots:
        warnings.append(
            f"{slots} trials at a time leave a searcher little to learn from in {trials} trials; "
            "lower executor.slots or raise budget.trials"
        )
    return Plan(dependencies, space, found, tuple(warnings))


def check_warm_up(searcher: Searcher, budget: Budget) -> None:
    """Raise AutopruneError where the budget ends before the searcher has begun to learn."""
    if not isinstance(searcher, WarmsUp) or budget.trials is None:
        return
    if budget.trials <= searcher.warm_up:
        raise AutopruneError(
            f"budget.trials is {budget.trials}, and the first {searcher.warm_up} trials of this "
            "searcher are its warm-up, before it learns; raise budget.trials, or lower the warm-up"
        )


def check_predicted(recoveries: Mapping[str, Recovery], *, profiled: bool) -> None:
    """Raise AutopruneError where a budget of latency would have no profile to predict it."""
    for name, recovery in recoveries.items():
        if recovery.sparsity is not None and recovery.sparsity.budget == "latency" and not profiled:
            raise AutopruneError(
                f"recovery {name!r} trains to a budget of latency, which a profile predicts, and "
                "this sweep has none; set profile=true (from Python, profile=True), or choose "
                "its budget macs"
            )


def _ladder_warnings(request: SweepRequest) -> list[str]:
    """What rungs are for nothing. Raises AutopruneError where all of them are."""
    if request.ladder is None:
        return []
    epochs = list(request.ladder.epochs)
    end = max((recovery.fit.epochs for recovery in request.recoveries.values()), default=0)
    if epochs[0] >= end:
        raise AutopruneError(
            f"ladder.epochs is {epochs}, and recovery ends after {end} epochs: nothing would "
            "pause; choose rungs below that, or ladder=none"
        )
    for name, recovery in request.recoveries.items():
        _check_rungs(epochs, name, recovery)
    beyond = [epoch for epoch in epochs if epoch >= end]
    if beyond:
        return [f"ladder.epochs {beyond} lie beyond the end of recovery, at {end} epochs"]
    return []


def _check_rungs(epochs: Sequence[int], name: str, recovery: Recovery) -> None:
    """Raise AutopruneError where a rung would judge a network that is wider than what was measured:
    one of a schedule's earlier rounds.
    """
    last = recovery.fit.epochs - recovery.schedule.epochs(recovery.fit.epochs)[-1]
    wider = [epoch for epoch in epochs if 0 < epoch <= last]
    if wider:
        raise AutopruneError(
            f"ladder.epochs {wider}: recovery {name!r} cuts in {recovery.schedule.rounds} rounds, "
            f"and up to epoch {last} its network is wider than the one that is measured; choose 0 "
            f"and epochs above {last}, or ladder=none"
        )


def _rehearse(model: nn.Module, request: SweepRequest) -> None:
    """Train and judge a copy on the first batch of every split: whether they fit together."""
    task, work = request.task, copy.deepcopy(model)
    try:
        with request.gate.step(), own_rng(0, device_of(work)):
            with mode(work, training=True), torch.enable_grad():
                for batch in islice(task.batches("train", seed=0), 1):
                    task.loss(work, batch)
                    for recovery in request.recoveries.values():
                        if recovery.distillation is not None:
                            teacher = copy.deepcopy(model)
                            Distilled(task, teacher, recovery.distillation).loss(work, batch)
            with mode(work, training=False), torch.no_grad():
                for split in get_args(Split):
                    task.evaluate(work, islice(task.batches(split), 1))
    except AutopruneError:
        raise
    except Exception as error:  # whatever the user's network and task run into
        raise AutopruneError(
            f"{type(model).__name__} and the task do not go together: on a first batch they raise "
            f"{type(error).__name__}: {first_line(error)}; mend the network or the task"
        ) from error


def rehearse_goal(goal: GoalRequest, task: Task, meter: SpeedMeter) -> Goal:
    """The goal before anything was measured: its reference point means nothing yet.

    Raises AutopruneError for a metric that there is not, and for constraints on one metric that
    nothing can meet together.
    """
    names = [metric.name for metric in task.metrics]
    names += [*SIZE_METRICS, *meter.metrics]
    found = goal_of(goal, task, meter, dict.fromkeys(names, 1.0))
    for metric in {constraint.metric for constraint in found.constraints}:
        own = [c for c in found.constraints if c.metric == metric]
        low, high = max(c.low for c in own), min(c.high for c in own)
        if low > high:
            raise AutopruneError(
                f"constraints on {metric!r}: {' and '.join(map(str, own))}; nothing meets them all"
            )
    return found


def goal_of(
    goal: GoalRequest, task: Task, meter: SpeedMeter, baseline: Mapping[str, float]
) -> Goal:
    """The goal of a request, with its reference point from the baseline's metrics."""
    return build_goal(
        goal.metrics,
        task.metrics,
        baseline,
        constraints=goal.constraints,
        reference=goal.reference,
        costs=SIZE_METRICS | dict(meter.metrics),
    )
