"""What a search is after: metrics with a direction, constraints, and the reference point."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from autoprune.domain.errors import AutopruneError, FaultsError, unknown
from autoprune.domain.trial import Measurement

DEFAULT_TOLERANCE = 0.05


class Direction(StrEnum):
    """Whether more or less of a metric is better."""

    MAX = "max"
    MIN = "min"

    @property
    def sign(self) -> float:
        """1 where more is better, else -1: of `sign * value` more is always better."""
        return 1.0 if self is Direction.MAX else -1.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a task: its name, which way is better, and the loss nobody would deploy.

    `tolerance` is the absolute distance from the baseline's value at which a model stops being
    of use; it sets the reference point of the hypervolume. None means 5% of the baseline.
    """

    name: str
    direction: Direction = Direction.MAX
    tolerance: float | None = None

    def edge(self, baseline: float) -> float:
        """The value at the edge of what anyone would deploy."""
        distance = self.tolerance
        if distance is None:
            distance = DEFAULT_TOLERANCE * abs(baseline)
        return baseline - self.direction.sign * distance


SIZE_METRICS = {
    "macs": Direction.MIN,
    "params": Direction.MIN,
    "size_mb": Direction.MIN,
    "peak_memory_mb": Direction.MIN,
}
"""What a model costs on paper whatever its task, with the better direction."""

SPEED_METRICS = {
    "speedup": Direction.MAX,
    "latency_ms": Direction.MIN,
    "throughput": Direction.MAX,
}
"""What is measured of its speed: the ratio, milliseconds a call, samples a second."""

COST_METRICS = SIZE_METRICS | SPEED_METRICS


def is_measured(name: str) -> bool:
    """Whether a metric's name stands for a cost, an interval or a proxy that a trial gives."""
    return name in COST_METRICS or name.startswith(
        (*SPEED_METRICS, "proxy_", "sparsity_", "train_loss")
    )


@dataclass(frozen=True, slots=True)
class Objective:
    """One metric to make as large or as small as possible."""

    metric: str
    direction: Direction

    def __str__(self) -> str:
        return f"{self.direction.name.lower()} {self.metric}"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A metric that must lie in [low, high]; either bound may be open."""

    metric: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low <= self.high or (math.isinf(self.low) and math.isinf(self.high)):
            raise AutopruneError(
                f"constraint on {self.metric!r}: {self.low}..{self.high}; "
                "give a lower bound, an upper bound, or both with low <= high"
            )

    @property
    def scale(self) -> float:
        """The larger of its bounds without sign, by which violations compare; 1 for bounds of 0."""
        return max(abs(bound) for bound in (self.low, self.high) if math.isfinite(bound)) or 1.0

    def violation(self, value: float) -> float:
        """How far `value` lies outside the bounds; 0 inside."""
        return max(self.low - value, value - self.high, 0.0)

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.metric} >= {self.low:g}"
        if math.isinf(self.low):
            return f"{self.metric} <= {self.high:g}"
        return f"{self.low:g} <= {self.metric} <= {self.high:g}"


@dataclass(frozen=True, slots=True)
class Goal:
    """Objectives (at least one), the hypervolume's reference point, and constraints.

    `reference` has one value an objective, in its own unit and direction: the edge of what
    anyone would deploy. It is fixed for a sweep.
    """

    objectives: tuple[Objective, ...]
    reference: tuple[float, ...]
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        names = [objective.metric for objective in self.objectives]
        if not names or len(set(names)) < len(names):
            raise AutopruneError(f"name each objective once and at least one, got {names}")
        if len(self.reference) != len(self.objectives):
            raise AutopruneError(
                f"the reference point has {len(self.reference)} values for {len(names)} "
                "objectives; give one value an objective"
            )
        if not all(map(math.isfinite, self.reference)):
            raise AutopruneError(f"the reference point {self.reference} must be of finite numbers")

    @property
    def main(self) -> Objective:
        """The first objective: the task's quality, by which drops are judged, where it is one."""
        return self.objectives[0]

    @property
    def maximise(self) -> tuple[bool, ...]:
        """For every objective whether more is better."""
        return tuple(o.direction is Direction.MAX for o in self.objectives)

    def values(self, measurement: Measurement) -> tuple[float, ...]:
        """The measurement's value of every objective."""
        return tuple(measurement.metrics[o.metric] for o in self.objectives)

    def violations(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """How far every constraint is broken; 0 where it holds or its metric is not known yet."""
        return tuple(
            c.violation(metrics[c.metric]) if c.metric in metrics else 0.0 for c in self.constraints
        )

    def violation(self, metrics: Mapping[str, float]) -> float:
        """How far all constraints are broken together, in shares of their bounds; 0 where none is.

        Constraints in different units then add up to something.
        """
        violations = zip(self.constraints, self.violations(metrics), strict=True)
        return sum(violation / constraint.scale for constraint, violation in violations)

    def broken(self, metrics: Mapping[str, float]) -> Constraint | None:
        """The first broken constraint among those whose metric is known."""
        for constraint, violation in zip(self.constraints, self.violations(metrics), strict=True):
            if violation > 0:
                return constraint
        return None

    def feasible(self, measurement: Measurement) -> bool:
        """Whether the trial went through every stage and breaks no constraint."""
        return measurement.complete and self.broken(measurement.metrics) is None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types (no infinities); `from_json` is the inverse."""
        return {
            "objectives": [
                {"metric": o.metric, "direction": str(o.direction)} for o in self.objectives
            ],
            "reference": list(self.reference),
            "constraints": [
                {"metric": c.metric}
                | ({} if math.isinf(c.low) else {"low": c.low})
                | ({} if math.isinf(c.high) else {"high": c.high})
                for c in self.constraints
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a goal from `to_json`."""
        return cls(
            tuple(Objective(o["metric"], Direction(o["direction"])) for o in data["objectives"]),
            tuple(float(value) for value in data["reference"]),
            tuple(Constraint(**c) for c in data["constraints"]),
        )


def build_goal(
    names: Sequence[str],
    task_metrics: Sequence[Metric],
    baseline: Mapping[str, float],
    *,
    constraints: Sequence[Constraint] = (),
    reference: Mapping[str, float] | None = None,
    costs: Mapping[str, Direction] = COST_METRICS,
) -> Goal:
    """The goal over the metrics `names`; ``main`` stands for the task's first metric.

    `costs` are the metrics besides the task's.

    The reference defaults to the metric's edge (`Metric.edge`) for the task's metrics, speedup 1,
    and the baseline's own value for every other cost. Raises AutopruneError for a metric that
    neither the task nor any model has, with the near miss, and for a reference of no objective.
    """
    if not task_metrics:
        raise AutopruneError("the task has no metric; name at least one in its `metrics`")
    taken = sorted(metric.name for metric in task_metrics if is_measured(metric.name))
    if taken:
        raise AutopruneError(
            f"the task's metrics {taken} are measured of every network; give them other names"
        )
    by_name = {metric.name: metric for metric in task_metrics}

    def resolve(name: str) -> str:
        name = task_metrics[0].name if name == "main" else name
        if name not in by_name and name not in costs:
            raise unknown("metric", name, ["main", *by_name, *costs])
        return name

    faults: list[str] = []
    for name in [*names, *(c.metric for c in constraints), *(reference or {})]:
        try:
            resolve(name)
        except AutopruneError as error:
            faults.append(str(error))
    if faults:
        raise FaultsError(list(dict.fromkeys(faults)))
    wanted = [resolve(name) for name in names]
    if wanted and not any(name in by_name for name in wanted):
        raise AutopruneError(
            f"objectives {wanted} hold no metric of the task, so nothing would keep the network "
            f"useful; add main ({task_metrics[0].name})"
        )
    given = {resolve(name): float(value) for name, value in (reference or {}).items()}
    objectives, edges = [], []
    # a metric of the task comes first, by which drops are judged
    for name in sorted(wanted, key=lambda name: name not in by_name):
        metric = by_name.get(name) or Metric(name, costs[name], tolerance=0.0)
        objectives.append(Objective(name, metric.direction))
        edges.append(given.pop(name) if name in given else _edge(metric, baseline))
    if given:
        raise AutopruneError(
            f"reference names {sorted(given)}, which are no objectives; "
            f"choose from {[o.metric for o in objectives]}"
        )
    resolved = tuple(Constraint(resolve(c.metric), c.low, c.high) for c in constraints)
    return Goal(tuple(objectives), tuple(edges), resolved)


def _edge(metric: Metric, baseline: Mapping[str, float]) -> float:
    if metric.name.startswith("speedup"):
        return 1.0
    if metric.name not in baseline:
        raise AutopruneError(
            f"objective {metric.name!r} was not measured of the baseline, which has "
            f"{sorted(baseline)}; leave it out or give its reference"
        )
    return float(metric.edge(baseline[metric.name]))
