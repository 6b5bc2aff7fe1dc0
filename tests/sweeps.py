"""Synthetic sweeps made of domain objects, for the tests of everything that reads a sweep."""

import math
from dataclasses import dataclass, replace

import numpy as np

from autoprune.domain.objective import Constraint, Direction, Goal, Objective
from autoprune.domain.space import Axis, Group, PruningSpec, SearchSpace
from autoprune.domain.trial import (
    Cause,
    Failure,
    Measurement,
    Observation,
    Outcome,
    Speedup,
    Stage,
    Trial,
    trial_seed,
)
from autoprune.orchestration.view import SweepView

VGG_WIDTHS = {
    "features.0.conv": 32,
    "features.1.conv": 32,
    "features.3.conv": 64,
    "features.4.conv": 64,
    "features.6.conv": 128,
    "features.7.conv": 128,
    "features.9.conv": 128,
    "classifier.0": 256,
}


@dataclass(frozen=True)
class Quality:
    """The main metric of a synthetic task: what the baseline reaches and what pruning costs."""

    name: str = "accuracy"
    direction: Direction = Direction.MAX
    baseline: float = 0.9861
    tolerance: float = 0.05
    drop: float = 0.2

    def at(self, kept: float, luck: float) -> float:
        """The metric of a network that keeps the share `kept` of its units."""
        lost = self.drop * max(0.0, 0.85 - kept) ** 2.2 + 0.006 * luck
        value = self.baseline - lost if self.direction is Direction.MAX else self.baseline + lost
        return min(value, 1.0) if self.direction is Direction.MAX else value

    @property
    def edge(self) -> float:
        """The reference of the hypervolume."""
        sign = 1.0 if self.direction is Direction.MAX else -1.0
        return self.baseline - sign * self.tolerance


ACCURACY = Quality()
PERPLEXITY = Quality("perplexity", Direction.MIN, baseline=21.4, tolerance=3.0, drop=40.0)


def make_space(widths: dict[str, int] | None = None) -> SearchSpace:
    """A space over groups of the given widths (a small VGG's by default)."""
    widths = VGG_WIDTHS if widths is None else widths
    kinds = {True: "neurons", False: "channels"}
    return SearchSpace(
        tuple(
            Axis(Group(name, kinds["classifier" in name], size), low=max(1, size // 10), high=size)
            for name, size in widths.items()
        )
    )


def make_goal(quality: Quality = ACCURACY, min_speedup: float = 1.0) -> Goal:
    """The quality against speedup, with a lower bound on the speedup."""
    return Goal(
        (Objective(quality.name, quality.direction), Objective("speedup", Direction.MAX)),
        (quality.edge, 1.0),
        (Constraint("speedup", low=min_speedup),),
    )


def make_sweep(
    trials: int = 24,
    *,
    quality: Quality = ACCURACY,
    space: SearchSpace | None = None,
    goal: Goal | None = None,
    sweep_id: str = "digits_vgg-20261120-143012",
    seed: int = 0,
) -> SweepView:
    """A sweep of `trials` trials: a front, dominated, stopped and failed ones, as they occur."""
    rng = np.random.default_rng(seed)
    space = make_space() if space is None else space
    goal = make_goal(quality) if goal is None else goal
    baseline = {
        quality.name: quality.baseline,
        "latency_ms": 1.84,
        "macs": 38_700_000.0,
        "params": 1_236_170.0,
        "size_mb": 4.72,
        "peak_memory_mb": 21.0,
    }
    observations = tuple(
        make_observation(number, space, goal, quality=quality, baseline=baseline, rng=rng)
        for number in range(trials)
    )
    return SweepView(
        sweep_id=sweep_id,
        experiment="digits_vgg",
        goal=goal,
        space=space,
        baseline=baseline,
        observations=observations,
        run_ids={},
        trials=trials,
        slots=2,
        search_s=9.1 * trials / 2,
        busy_s=9.1 * trials * 0.91,
    )


def make_observation(
    number: int,
    space: SearchSpace,
    goal: Goal,
    *,
    quality: Quality,
    baseline: dict[str, float],
    rng: np.random.Generator,
) -> Observation:
    """One trial: every 11th fails, those that break a constraint are stopped early."""
    ratios = rng.uniform(0.1, 1.0) + rng.normal(0, 0.12, len(space.axes))
    kept = {
        axis.group.name: axis.nearest(ratio * axis.group.size)
        for axis, ratio in zip(space.axes, ratios, strict=True)
    }
    trial = Trial(number, PruningSpec.of(kept), trial_seed(0, number))
    host = f"node-{number % 2}"
    if number % 11 == 7:
        cause = [Cause.OUT_OF_MEMORY, Cause.NAN_LOSS, Cause.TIME_LIMIT][number % 3]
        reason = f"{cause} after 3 batches; lower recovery.batch_size or raise trial.memory_mb"
        return Observation(trial, Failure(Stage.RECOVER, cause, reason), host, seconds=2.2)
    share = sum(kept.values()) / sum(axis.group.size for axis in space.axes)
    outcome = _measured(share, goal, quality=quality, baseline=baseline, rng=rng)
    return Observation(trial, outcome, host, seconds=9.0 if outcome.stopped_by is None else 1.4)


def _measured(
    share: float,
    goal: Goal,
    *,
    quality: Quality,
    baseline: dict[str, float],
    rng: np.random.Generator,
) -> Measurement:
    noise = 0.01 + 0.02 * rng.random()
    ratio = max(0.4, (share**1.9 + 0.22) ** -1 * (1 + 0.06 * rng.normal()))
    value = quality.at(share, abs(rng.normal()))
    speed = Speedup(
        ratio=ratio,
        low=ratio * (1 - noise),
        high=ratio * (1 + noise),
        baseline_ms=baseline["latency_ms"],
        candidate_ms=baseline["latency_ms"] / ratio,
        samples=60,
        runtime="onnxruntime",
        device="cpu",
        noise=noise,
    )
    spread = 0.012 * (1 if quality.direction is Direction.MAX else 20)
    metrics = {
        quality.name: value,
        f"{quality.name}_low": value - spread,
        f"{quality.name}_high": min(value + spread, 1.0)
        if quality.direction is Direction.MAX
        else value + spread,
        f"proxy_{quality.name}": value * 0.97,
        "speedup": speed.ratio,
        "speedup_low": speed.low,
        "speedup_high": speed.high,
        "latency_ms": speed.candidate_ms,
        "macs": float(math.ceil(baseline["macs"] * share**2.1)),
        "params": float(math.ceil(baseline["params"] * share**2)),
        "size_mb": baseline["size_mb"] * share**2,
    }
    broken = goal.broken(metrics)
    if broken is not None:
        metrics = {k: v for k, v in metrics.items() if not k.startswith(quality.name)}
        metrics[quality.name] = value * 0.97
    return Measurement(
        metrics,
        speedup=speed,
        stopped_by=None if broken is None else str(broken),
        seconds={"prune": 0.2, "measure": 1.1, "recover": 6.4},
    )


def unsettled(observation: Observation) -> Observation:
    """The same trial with a speed that did not settle."""
    assert isinstance(observation.outcome, Measurement)
    assert observation.outcome.speedup is not None
    speedup = replace(observation.outcome.speedup, settled=False)
    return replace(observation, outcome=replace(observation.outcome, speedup=speedup))


def outcome_of(view: SweepView, number: int) -> Outcome:
    """The outcome of one trial of a sweep."""
    return next(o.outcome for o in view.observations if o.trial.number == number)
