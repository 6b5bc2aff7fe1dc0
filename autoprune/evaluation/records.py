"""What a trial is given, and what it tells on its way."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from autoprune.domain.latency import LatencyModel
from autoprune.domain.objective import Goal
from autoprune.domain.protocols import StepGuard
from autoprune.domain.trial import Observation, Speedup, Stage
from autoprune.measurement.meter import SpeedMeter
from autoprune.pruning.criteria import Criterion, Scoring
from autoprune.pruning.graph import Dependencies
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recipe import Recipe
from autoprune.pruning.recover import FitState
from autoprune.tasks.protocol import Task


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """How much a trial may cost: batches for criteria that look at data, and seconds for all of it.

    `time_limit_s` None lets a trial take as long as it likes.
    """

    importance_batches: int = 8
    time_limit_s: float | None = None


@dataclass(frozen=True)
class TrialContext:
    """All that the trials of a sweep share. It crosses to a worker once.

    `model` is the trained baseline on the CPU, `dependencies` its groups; `model_config` its
    ``_target_`` and arguments where there are such, kept in the recipe. `baseline_ms` is the one
    latency of the baseline that the sweep counts from: a trial's is it over the paired speedup.
    `recoveries` and `criteria` are looked up by the names in a spec. `step_guard` surrounds every
    step of work that would disturb a measurement on the same node. `rungs` are the epochs of
    recovery after which a trial may have to pause; those before the cut do not count. `early` is
    the baseline early in its training, on the CPU, where a recovery rewinds to it. Networks in
    int8 are calibrated on `calibration_batches` of train. `latency` predicts a network's time,
    where the sweep has a profile.
    """

    model: nn.Module
    dependencies: Dependencies
    task: Task
    goal: Goal
    meter: SpeedMeter
    baseline_ms: float
    recoveries: Mapping[str, Recovery]
    criteria: Mapping[str, Criterion]
    limits: TrialLimits = field(default_factory=TrialLimits)
    model_config: Mapping[str, Any] | None = None
    step_guard: StepGuard = nullcontext
    device: str = "cpu"
    threads: int = 1
    rungs: Sequence[int] = ()
    early: nn.Module | None = None
    calibration_batches: int = 8
    latency: LatencyModel | None = None

    def scoring(self, seed: int, *, step_guard: StepGuard | None = None) -> Scoring:
        """What its criteria look at; the guard is its own where there is none."""
        return Scoring(
            self.task,
            seed=seed,
            batches=self.limits.importance_batches,
            step_guard=step_guard or self.step_guard,
            device=self.device,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is needed to go on with a trial after `epoch` epochs, or to rebuild its network.

    The network is that of the moment: before the last round of a schedule it is wider than asked,
    and after epochs of training before the cut, which count, too, it is not cut.
    `state_dict` and `fit` refer to live tensors: write them before taking the next step. `fit` is
    None where no epoch was trained. Where a trial may pause, or is `done`, `outputs` holds what
    the network, on the CPU, makes of the task's example input: whoever rebuilds it can tell that
    it is the same. Of a trial in int8 that is the quantised network, and `program` its file.
    """

    recipe: Recipe
    state_dict: Mapping[str, torch.Tensor]
    metrics: Mapping[str, float]
    speedup: Speedup
    seconds: Mapping[str, float]
    epoch: int = 0
    done: bool = False
    fit: FitState | None = None
    outputs: tuple[torch.Tensor, ...] = ()
    program: bytes | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a step found: its stage, the epoch of training (0 elsewhere), and those metrics that
    are new since the step before. On a rung of the ladder `worth` is what the trial has come to
    if it pauses there. Of a trial in int8 the task's metrics are those of the quantised network
    where they count: before recovery, on a rung and at the end; in between, of what is trained.
    """

    stage: Stage
    metrics: Mapping[str, float]
    epoch: int = 0
    snapshot: Snapshot | None = None
    worth: Observation | None = None
