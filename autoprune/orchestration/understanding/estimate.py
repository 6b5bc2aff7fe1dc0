"""What equal pruning ratios would give: size exactly, speed and quality with honest intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from autoprune.domain.expectation import Expectation, expected_after
from autoprune.domain.latency import Prediction
from autoprune.domain.objective import Direction, Objective
from autoprune.domain.space import FP32, PruningSpec, SearchSpace
from autoprune.domain.trial import Measurement, Speedup
from autoprune.measurement.cost import costs
from autoprune.measurement.runtimes.protocol import torch_threads
from autoprune.orchestration.baseline import EpochReport
from autoprune.orchestration.preparation import Prepared, prepare
from autoprune.orchestration.profiling import (
    PointReport,
    Profiled,
    profile_network,
    sweeps_of,
)
from autoprune.orchestration.record import last_told
from autoprune.orchestration.request import SweepRequest, conditions_now
from autoprune.orchestration.understanding.doubts import Doubt, network_doubts, ratio_doubts
from autoprune.pruning.accuracy import evaluate
from autoprune.pruning.healing import Healing
from autoprune.pruning.surgery import prune

NEAR = (0.6, 1.4)
"""Between which factors of a ratio's kept share the groups of its neighbours keep theirs."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What pruning the share `ratio` of every group gives, in fp32.

    `costs` are those of the network that was cut, so exact. `speedup` is predicted. `before` are
    the task's metrics on val after the cut was mended and before it is trained, `after` what
    the main metric comes to then; None where no sweep of the same network tells.
    """

    ratio: float
    spec: PruningSpec
    costs: Mapping[str, float]
    speedup: Prediction
    before: Mapping[str, float]
    after: Expectation | None
    doubts: tuple[Doubt, ...] = ()


@dataclass(frozen=True)
class Estimates:
    """The estimates of some ratios, and what speaks against pruning the network at all.

    `baseline` holds the unpruned network's metrics, `speed` the measurement of it against itself.
    """

    name: str
    main: Objective
    baseline: Mapping[str, float]
    speed: Speedup
    rows: tuple[Estimate, ...]
    profiled: Profiled
    doubts: tuple[Doubt, ...]


@dataclass(frozen=True)
class EstimateRequest:
    """The shares of every group to prune, and how many specs near each judge the prediction."""

    sweep: SweepRequest
    ratios: Sequence[float]
    checks: int


def estimate(
    request: EstimateRequest,
    *,
    on_epoch: EpochReport | None = None,
    on_point: PointReport | None = None,
) -> Estimates:
    """Train or load the baseline, profile it (what is kept is not measured again), and estimate.

    Some networks near each ratio are measured, too: a prediction is as far off as theirs. Nothing
    is fine-tuned, and the networks of these ratios are not timed themselves.
    """
    prepared = prepare(request.sweep, report=on_epoch)
    space, main = prepared.plan.space, prepared.goal.main
    near = [w for ratio in request.ratios for w in neighbours(space, ratio, request.checks)]
    profiled = profile_network(prepared, checks=0, further=near, report=on_point)
    specs = [replace(space.uniform(1.0 - ratio), precision=FP32) for ratio in request.ratios]
    speedups = profiled.speedups([spec.widths for spec in specs])
    recovered = list(_recovered(prepared))
    rows = []
    for ratio, spec, speedup in zip(request.ratios, specs, speedups, strict=True):
        with torch_threads(request.sweep.threads):
            found, before = _cut(prepared, spec)
        rows.append(
            Estimate(
                ratio=ratio,
                spec=spec,
                costs=found,
                speedup=speedup,
                before=before,
                after=after_recovery(recovered, before[main.metric], main.direction),
                doubts=ratio_doubts(ratio, spec, prepared, profiled.profile, speedup),
            )
        )
    return Estimates(
        name=request.sweep.name,
        main=main,
        baseline=prepared.metrics,
        speed=prepared.speed,
        rows=tuple(rows),
        profiled=profiled,
        doubts=network_doubts(prepared),
    )


def neighbours(space: SearchSpace, ratio: float, count: int) -> list[dict[str, int]]:
    """At most `count` widths near a ratio, but not its own, the same ones every time.

    Each group keeps `NEAR` times as much as at the ratio.
    """
    rng = np.random.default_rng(round(1e6 * ratio))
    found = []
    for _ in range(count):
        kept = (1.0 - ratio) * rng.uniform(*NEAR, len(space.axes))
        found.append(
            {
                axis.group.name: axis.nearest(share * axis.group.size)
                for axis, share in zip(space.axes, kept.tolist(), strict=True)
            }
        )
    own = space.uniform(1.0 - ratio).widths
    return [widths for widths in found if widths != own]


def _cut(prepared: Prepared, spec: PruningSpec) -> tuple[dict[str, float], dict[str, float]]:
    """The costs of a network that is cut to a spec, and its metrics once it is mended."""
    context, seed = prepared.context, prepared.request.seed
    example = context.task.example()
    pruned = prune(
        context.model,
        example,
        spec,
        criterion=context.criteria[spec.criterion],
        scoring=context.scoring(seed),
        dependencies=context.dependencies,
    )
    with context.step_guard():
        found = costs(pruned.model, example)
    model = pruned.model.to(context.device)
    healing = Healing(
        context.recoveries[spec.recovery].at_once,
        context.task,
        context.model,
        pruned.recipe.history,
        seed=seed,
        step_guard=context.step_guard,
    )
    healing.at_once(model)
    return found, evaluate(model, context.task, "val", step_guard=context.step_guard)


def _recovered(prepared: Prepared) -> Iterator[tuple[float, float]]:
    """What trials of sweeps of the same network, in fp32 and healed as here, were worth before and
    after.
    """
    main = prepared.goal.main
    own = prepared.request.conditions["recoveries"]
    recovery = next(iter(prepared.request.recoveries))
    for record in sweeps_of(prepared):
        if conditions_now(record.header["conditions"]).get("recoveries") != own:
            continue
        for observation in last_told(record.events).values():
            outcome, spec = observation.outcome, observation.trial.spec
            if not isinstance(outcome, Measurement) or not outcome.complete:
                continue
            ended = observation.rung is None
            known = outcome.metrics.keys() >= {main.metric, f"proxy_{main.metric}"}
            if ended and known and (spec.recovery, spec.precision) == (recovery, FP32):
                yield outcome.metrics[f"proxy_{main.metric}"], outcome.metrics[main.metric]


def after_recovery(
    recovered: Sequence[tuple[float, float]], before: float, direction: Direction
) -> Expectation | None:
    """`expected_after` of a metric, whichever direction is better."""
    sign = direction.sign
    pairs = [(sign * worth, sign * after) for worth, after in recovered]
    found = expected_after(pairs, sign * before)
    if found is None or direction is Direction.MAX:
        return found
    low, high = (None if end is None else -end for end in (found.high, found.low))
    return Expectation(-found.value, low, high, level=found.level, count=found.count)
