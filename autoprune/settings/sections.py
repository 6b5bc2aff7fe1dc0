"""The schema of a config's sections: names, types and defaults.

Mutable dataclasses, since OmegaConf refuses to merge into a frozen one. Ranges and rules across
fields are checked by the plain objects that `build` makes of them. A field of type dict is a
``_target_`` with its arguments.
"""

from dataclasses import dataclass, field
from typing import Any

from autoprune.domain.space import USUAL_KINDS


@dataclass
class FitConfig:
    """How to train, for the baseline and for recovery alike."""

    epochs: int = 5
    lr: float = 0.02
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 0.5
    grad_clip: float | None = None
    amp: str = "off"


@dataclass
class BaselineConfig:
    """The unpruned network: trained here once, or taken from a checkpoint.

    `keep_epoch` is the epoch whose weights are kept for recoveries that rewind; null: none.
    """

    checkpoint: str | None = None
    keep_epoch: int | None = None
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass
class BoundsConfig:
    """How far the groups that match a pattern may shrink, as ratios of units kept."""

    pattern: str = "*"
    min_kept: float = 0.1
    max_kept: float = 1.0
    step: int | None = None


@dataclass
class SpaceConfig:
    """Which groups may shrink, how far, and in which steps (null: 1 on CPU, 8 on CUDA).

    `kinds` are those of groups: see `autoprune.domain.space.KINDS`. `graph_limit_s` bounds how long
    finding the groups may take.
    """

    kinds: list[str] = field(default_factory=lambda: list(USUAL_KINDS))
    min_kept: float = 0.1
    max_kept: float = 1.0
    step: int | None = None
    graph_limit_s: float = 60.0
    exclude: list[str] = field(default_factory=list)
    overrides: list[BoundsConfig] = field(default_factory=list)


@dataclass
class ImportanceConfig:
    """The criteria that pick the units to cut; more than one makes it part of the search."""

    criteria: list[str] = field(default_factory=lambda: ["l1"])
    batches: int = 8


@dataclass
class ReconstructionConfig:
    """What the layers that read a cut one are fitted on; 0 batches: they are left as they are."""

    batches: int = 0
    positions: int = 1024
    ridge: float = 1e-3


@dataclass
class DistillationConfig:
    """How much of the training loss the unpruned network has; without weight and hints none.

    A section of its own and not null: Hydra cannot set a key of a section that is null.
    """

    weight: float = 0.0
    temperature: float = 4.0
    hints: float = 0.0
    hint_layers: list[str] = field(default_factory=list)


@dataclass
class ScheduleConfig:
    """In how many rounds a network is cut and trained; one round without `rewind` is one shot."""

    rounds: int = 1
    shape: str = "cubic"
    rewind: bool = False


@dataclass
class SparseTrainingConfig:
    """How the unpruned network is trained towards zeros before its cut; 0 epochs: it is not."""

    epochs: int = 0
    method: str = "group_lasso"
    strength: float = 0.01
    overlap: bool = False
    budget: str = "none"
    multiplier_lr: float = 2.0
    rank_strength: float = 0.01


@dataclass
class RecoveryConfig:
    """How a network is made ready for its cut, and how a cut one heals: least squares and
    batch-norm recalibration, then fine-tuning.
    """

    recalibration_batches: int = 16
    sparsity: SparseTrainingConfig = field(default_factory=SparseTrainingConfig)
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass
class MeterConfig:
    """What speed is measured on, and how exactly."""

    runtime: dict[str, Any] = field(default_factory=dict)
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    half_width: float = 0.02
    max_s: float = 1.5
    others_limit: float = 0.5
    gate: bool = True
    gate_folder: str | None = None
    where: str = "trial"


@dataclass
class ConstraintConfig:
    """A metric and the bounds it must stay in; at least one of them."""

    metric: str = "speedup"
    low: float | None = None
    high: float | None = None


@dataclass
class ObjectiveConfig:
    """What to make better. ``main`` is the task's first metric.

    `reference` overrides the hypervolume's reference point by metric.
    """

    metrics: list[str] = field(default_factory=lambda: ["main", "speedup"])
    constraints: list[ConstraintConfig] = field(default_factory=list)
    reference: dict[str, float] = field(default_factory=dict)


@dataclass
class RetriesConfig:
    """How often a trial is run again that was lost with its worker, by what the worker was lost to.

    null: as often as it takes. Where trials end by themselves, nothing is run again.
    """

    worker_lost: int | None = 2
    preempted: int | None = None
    out_of_memory: int | None = 1
    time_limit: int | None = 0


@dataclass
class ExecutorConfig:
    """Where trials run: in this process, or in slots of a Ray cluster.

    `slots` null fills the machine or the cluster. `threads` null is the slot's CPUs. `storage` is
    where trials save: null for the sweep's folder, a path, or a URL of fsspec's.
    """

    kind: str = "ray"
    address: str | None = None
    slots: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    memory_gb: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    accelerator: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    threads: int | None = None
    device: str = "cpu"
    on_interrupt: str = "finish"
    storage: str | None = None
    retries: RetriesConfig = field(default_factory=RetriesConfig)


@dataclass
class TrackingConfig:
    """Where results go besides the sweep's folder. `uri` null: sqlite in the output folder.

    `export` names what the front's networks are written as, too.
    """

    enabled: bool = True
    uri: str | None = None
    experiment: str | None = None
    keep_models: str = "front"
    optuna: bool = True
    export: list[str] = field(default_factory=list)


@dataclass
class BudgetConfig:
    """What the sweep may spend; whichever ends first."""

    trials: int | None = None
    wall_minutes: float | None = None
    trial_hours: float | None = None
    trial_limit_s: float | None = None


@dataclass
class LadderConfig:
    """After how many epochs of recovery trials are compared, and which part of them goes on.

    No epochs: no ladder, every trial comes to its end.
    """

    epochs: list[int] = field(default_factory=list)
    reduction: float = 4.0
    finish_front: bool = True


@dataclass
class AddressConfig:
    """Where a cluster is."""

    address: str | None = None


@dataclass
class SelectConfig:
    """Which member of the front to promote; one rule, or none for the knee."""

    max_accuracy_drop: float | None = None
    min_speedup: float | None = None
    trial: int | None = None


@dataclass
class GateConfig:
    """What a proof must show: the interval's lower bound, and the drop on the test split."""

    min_speedup: float = 1.0
    max_test_drop: float | None = None
