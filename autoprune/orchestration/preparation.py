"""The unpruned network made ready for a sweep: planned, trained or loaded, measured and judged."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Goal
from autoprune.domain.profile import Profile
from autoprune.domain.trial import Speedup
from autoprune.evaluation import TrialContext, portable, settled_steps
from autoprune.measurement.cost import costs
from autoprune.orchestration.baseline import (
    Baseline,
    BaselineCache,
    EpochReport,
    load_checkpoint,
    rising,
    train_baseline,
)
from autoprune.orchestration.early import Keeper, load_early
from autoprune.orchestration.planning import Plan, goal_of, make_plan
from autoprune.orchestration.request import SweepRequest
from autoprune.pruning.accuracy import evaluate


@dataclass(frozen=True)
class Prepared:
    """A request whose baseline is trained and judged, ready for its first trial.

    `metrics` are the baseline's, `speed` is the measurement of the baseline against itself, and
    `doubts` say what speaks against pruning it. `profile` is there for a searcher to read.
    """

    request: SweepRequest
    plan: Plan
    baseline: Baseline
    metrics: Mapping[str, float]
    speed: Speedup
    context: TrialContext
    doubts: tuple[str, ...] = ()
    profile: Profile | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user of a sweep should know before it runs."""
        return (*self.plan.warnings, *self.doubts)

    @property
    def goal(self) -> Goal:
        """The sweep's goal, with its reference point."""
        return self.context.goal


def prepare(request: SweepRequest, *, report: EpochReport | None = None) -> Prepared:
    """Plan, train or load the baseline, and judge it. `report` hears of training epochs."""
    plan = make_plan(request)
    baseline = load_baseline(request, report=report)
    example = request.task.example()
    twin = copy.deepcopy(baseline.model)
    speed = request.meter.measure(twin, baseline.model, example)
    values = evaluate(twin.to(request.device), request.task, "val", step_guard=request.gate.step)
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
        raise AutopruneError(
            f"the baseline's metrics on val are {wrong}; the task's evaluate must give finite "
            "numbers: look at the network's outputs, and at how they are judged"
        )
    metrics = values | costs(baseline.model, example)
    metrics |= _baseline_speed(speed)
    context = TrialContext(
        model=baseline.model,
        dependencies=plan.dependencies,
        task=request.task,
        goal=goal_of(request.goal, request.task, request.meter, metrics),
        meter=request.meter,
        baseline_ms=speed.baseline_ms,
        recoveries=request.recoveries,
        criteria=request.criteria,
        limits=request.limits,
        calibration_batches=request.calibration_batches,
        model_config=request.model_config,
        step_guard=request.gate.step,
        device=request.device,
        threads=request.threads,
        early=load_early(request),
    )
    doubts = []
    main = request.task.metrics[0]
    if rising(baseline.history, main):
        doubts.append(
            f"the baseline's {main.name} on val was still improving when its training ended "
            f"({baseline.history[-1]:.4g}): pruning a network that is not trained out flatters "
            "the front; raise baseline.fit.epochs"
        )
    return Prepared(request, plan, baseline, metrics, speed, context, tuple(doubts))


def _baseline_speed(twins: Speedup) -> dict[str, float]:
    """What a measurement of the baseline against itself tells of it, as a trial's metrics."""
    found = {"speedup": 1.0, "latency_ms": twins.baseline_ms}
    found["throughput"] = 1e3 * twins.batch_size / twins.baseline_ms
    for other in twins.further:
        size = other.batch_size
        found |= {
            f"speedup_at_{size}": 1.0,
            f"throughput_at_{size}": 1e3 * size / other.baseline_ms,
        }
    return found


def load_baseline(request: SweepRequest, *, report: EpochReport | None = None) -> Baseline:
    """The unpruned network with its weights: loaded, trained, or as the request has it."""
    wanted = request.baseline
    model = copy.deepcopy(request.model)
    if wanted.checkpoint is not None:
        return load_checkpoint(model, wanted.checkpoint, store=wanted.store)
    if wanted.plan is None:
        return Baseline(portable(model), "as given")
    cache = BaselineCache.below(request.output)
    kept = cache.find(wanted.identity, model)
    if kept is not None:
        return kept
    keeper = Keeper(model, wanted.keep_epoch, report)
    trained = train_baseline(
        model.to(request.device),
        request.task,
        wanted.plan,
        seed=request.seed,
        step_guard=settled_steps(request.gate.step, request.device),
        report=keeper,
    )
    return cache.keep(wanted.identity, trained, beside=keeper.kept)


def at_hand(request: SweepRequest) -> bool:
    """Whether the unpruned network's weights are there without training it."""
    wanted = request.baseline
    if wanted.checkpoint is not None or wanted.plan is None:
        return True
    return BaselineCache.below(request.output).holds(wanted.identity)
