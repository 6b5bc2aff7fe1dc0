"""What is asked of a sweep, as plain objects: the command and the API both make one of these."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from autoprune.domain.bounds import Bounds
from autoprune.domain.errors import AutopruneError
from autoprune.domain.ladder import Ladder
from autoprune.domain.objective import Constraint
from autoprune.domain.space import FP32, USUAL_KINDS
from autoprune.evaluation import TrialContext, TrialLimits
from autoprune.measurement.meter import SpeedMeter
from autoprune.measurement.quiet import Gate, NoGate
from autoprune.orchestration.folders import check_name
from autoprune.orchestration.interrupt import Interrupt, OnInterrupt
from autoprune.orchestration.storage import InFolder, InStore, Storage
from autoprune.orchestration.store import Store
from autoprune.orchestration.sweep import Budget, Sweep
from autoprune.pruning.criteria import Criterion
from autoprune.pruning.healing import Recovery
from autoprune.pruning.recover import FitPlan
from autoprune.searchers.grid import RATIOS, check_ratios
from autoprune.searchers.named import AnyFactory
from autoprune.tasks.protocol import Task

FIRST = RATIOS[:3]
"""Half, three quarters, a quarter: they span the range and leave most of a small budget."""


class Executor(Protocol):
    """Runs the trials of a sweep: in this process, or in slots of a cluster."""

    @property
    def slots(self) -> int:
        """How many trials run at a time."""
        ...

    def check(self, place: Store) -> Sequence[str]:
        """Raise AutopruneError where trials could not run at all, or not save in `place`; else what
        they would wait for.
        """
        ...

    def kept(self) -> AbstractContextManager[object]:
        """Keep what trials run on from one sweep to the next."""
        ...

    def run(
        self, sweep: Sweep, context: TrialContext, storage: Storage, *, interrupt: Interrupt
    ) -> None:
        """Run trials until the sweep has none to give and none is running."""
        ...


@dataclass(frozen=True)
class BaselineRequest:
    """Where the unpruned network's weights come from.

    In this order: `checkpoint`; training by `plan`; or the weights that the model has (both
    None). A checkpoint that is an MLflow URI is fetched from `store`. `identity` tells
    model, data and training apart in the cache. Training keeps the weights that it had after
    `keep_epoch` epochs, too, unless that is None; `early` has them already: a network, or the file
    of a sweep that goes on.
    """

    checkpoint: str | None = None
    store: str | None = None
    plan: FitPlan | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    keep_epoch: int | None = None
    early: nn.Module | str | None = None


@dataclass(frozen=True)
class SpaceRequest:
    """How far which groups may shrink; `kinds` are some of `autoprune.domain.space.KINDS`."""

    bounds: Bounds = field(default_factory=Bounds)
    overrides: Sequence[Bounds] = ()
    exclude: Sequence[str] = ()
    kinds: Sequence[str] = USUAL_KINDS


@dataclass(frozen=True)
class GoalRequest:
    """Objectives by metric name, constraints, and what overrides the reference point."""

    metrics: Sequence[str] = ("main", "speedup")
    constraints: Sequence[Constraint] = ()
    reference: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepRequest:
    """All that a sweep needs, as plain objects. Nothing has been started or written yet.

    `config` is what the request was made from, as plain JSON: it is stored with the sweep, so that
    a resume can make the same request again. None where there is no such thing. `experiment` is the
    tracker's, `name` by default. `storage` is where trials save, None for the sweep's own folder.
    `code_paths` are where the user's own modules are found. `uniform_first` are kept ratios, equal
    for all groups, that are tried before the searcher proposes: hard to beat, so a search starts
    from them. `precisions` are what networks may be deployed in, and those in int8 are calibrated
    on `calibration_batches` of train. With `profile` the network is profiled first, for a searcher
    that takes it.
    `on_signal` hears of the first Ctrl-C at once, in the signal's handler.
    """

    name: str
    model: nn.Module
    task: Task
    meter: SpeedMeter
    searcher: AnyFactory
    executor: Executor
    budget: Budget
    output: Path = Path("outputs")
    storage: Store | None = None
    seed: int = 0
    baseline: BaselineRequest = field(default_factory=BaselineRequest)
    space: SpaceRequest = field(default_factory=SpaceRequest)
    goal: GoalRequest = field(default_factory=GoalRequest)
    criteria: Mapping[str, Criterion] = field(default_factory=dict)
    recoveries: Mapping[str, Recovery] = field(default_factory=dict)
    precisions: Sequence[str] = (FP32,)
    calibration_batches: int = 8
    limits: TrialLimits = field(default_factory=TrialLimits)
    uniform_first: Sequence[float] = FIRST
    ladder: Ladder | None = None
    profile: bool = False
    gate: Gate = field(default_factory=NoGate)
    graph_limit_s: float = 60.0
    device: str = "cpu"
    threads: int = 1
    model_config: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    experiment: str | None = None
    code_paths: Sequence[str] = ()
    on_interrupt: OnInterrupt = OnInterrupt.FINISH
    on_signal: Callable[[OnInterrupt], None] | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        check_ratios("uniform_first", self.uniform_first)
        check_rewinding(self.baseline, self.recoveries)

    @property
    def place(self) -> Store:
        """The place where trials save, which all nodes must reach."""
        return self.storage or Store(str(self.output.absolute()))

    def storage_of(self, folder: Path) -> Storage:
        """What keeps the snapshots of the sweep in `folder`."""
        if self.storage is None:
            return InFolder(folder.absolute())
        return InStore(self.storage, folder.name)

    @property
    def conditions(self) -> dict[str, str]:
        """What the outcome of a trial depends on besides its spec: trials of other conditions do
        not compare. Of objects that say nothing of themselves only the class counts.
        """
        limits = replace(self.limits, time_limit_s=None)  # bounds a trial without changing it
        facts = {
            "meter": self.meter,
            "recoveries": dict(self.recoveries),
            "criteria": list(self.criteria),
            "limits": limits,
            "device": self.device,
            "threads": self.threads,
        }
        if self.ladder is not None:
            facts["rungs"] = self.ladder.epochs
        if tuple(self.precisions) != (FP32,):
            facts["calibration_batches"] = self.calibration_batches
        return {name: re.sub(r" at 0x[0-9a-f]+", "", repr(fact)) for name, fact in facts.items()}


def rewinding(recoveries: Mapping[str, Recovery]) -> list[str]:
    """The names of those that set weights back to an early epoch of the baseline's training."""
    return [name for name, recovery in recoveries.items() if recovery.schedule.rewind]


def check_rewinding(baseline: BaselineRequest, recoveries: Mapping[str, Recovery]) -> None:
    """Raise AutopruneError where a recovery rewinds to weights that the baseline does not have."""
    names, epoch, plan = rewinding(recoveries), baseline.keep_epoch, baseline.plan
    if not names or baseline.early is not None:
        return
    if baseline.checkpoint is not None:
        fault = "baseline.checkpoint has none; let it be trained (baseline=train)"
    elif plan is None:
        fault = "none are given; pass early=, the network as it was early in its training"
    elif epoch is None:
        fault = "baseline.keep_epoch is null, which keeps none; set it to an epoch, such as 2"
    elif epoch >= plan.epochs:
        fault = f"baseline.keep_epoch is {epoch} of {plan.epochs} epochs; set a smaller one"
    else:
        return
    raise AutopruneError(
        f"recovery {names[0]!r} rewinds to early weights of the baseline, and {fault}, or choose a "
        "recovery without schedule.rewind"
    )


def conditions_now(began: Mapping[str, str]) -> dict[str, str]:
    """The conditions of a journal as `SweepRequest.conditions` would tell them today.

    Before there was a Recovery, batch norm's recalibration was one of the limits, and a sweep had
    one recovery: a FitPlan. What a Recovery lacked at first its `repr` leaves out (`LATER`).
    """
    found = dict(began)
    limits = re.match(r"TrialLimits\(recalibration_batches=(\d+), ", found.get("limits", ""))
    fit = re.fullmatch(r"\{('\w+'): (FitPlan\(.*\))\}", found.get("recoveries", ""))
    if limits and fit:
        found["limits"] = f"TrialLimits({found['limits'][limits.end() :]}"
        more = f"recalibration_batches={limits[1]}, reconstruction=None, distillation=None"
        found["recoveries"] = f"{{{fit[1]}: Recovery(fit={fit[2]}, {more})}}"
    return found
