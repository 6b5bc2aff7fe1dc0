"""The schema of every command's config, made of the `sections`: names, types and defaults."""

from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from autoprune.settings.sections import (
    AddressConfig,
    BaselineConfig,
    BudgetConfig,
    ExecutorConfig,
    GateConfig,
    ImportanceConfig,
    LadderConfig,
    MeterConfig,
    ObjectiveConfig,
    RecoveryConfig,
    SelectConfig,
    SpaceConfig,
    TrackingConfig,
)


@dataclass
class SweepConfig:
    """`autoprune sweep`, `autoprune plan` and `autoprune doctor`.

    `recoveries` are options of the group `recovery` to search among; without any it is `recovery`.
    `precisions` are fp32 and int8; more than one makes it part of the search.
    """

    name: str = "sweep"
    seed: int = 0
    output: str = "outputs"
    uniform_first: list[float] = field(default_factory=lambda: [0.5, 0.75, 0.25])
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    recoveries: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=lambda: ["fp32"])
    calibration_batches: int = 8
    meter: MeterConfig = field(default_factory=MeterConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    searcher: dict[str, Any] = field(default_factory=dict)
    profile: bool = False
    ladder: LadderConfig = field(default_factory=LadderConfig)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)


@dataclass
class ProfileConfig(SweepConfig):
    """`autoprune profile`: `checks` random specs judge the latency model."""

    checks: int = 12


@dataclass
class ExplainConfig(SweepConfig):
    """`autoprune explain`: a network's groups, or, with `sweep`, what that one's front cut."""

    sweep: str | None = None


@dataclass
class EstimateConfig(SweepConfig):
    """`autoprune estimate`: shares of every group to prune (a number or a list of them).

    `checks` networks near each ratio judge the prediction of speed.
    """

    ratio: Any = 0.5
    checks: int = 6


@dataclass
class CompareConfig(SweepConfig):
    """`autoprune compare`: searchers by their options, and how many seeds each runs with.

    `resume` is the id of a contest that was interrupted, or ``latest``.
    """

    searchers: list[str] = field(default_factory=lambda: ["uniform", "random", "nsga2", "tpe"])
    seeds: int = 5
    resume: str | None = None


@dataclass
class SparsityConfig(SweepConfig):
    """`autoprune study sparsity`: shares of the parameters to keep, and how."""

    kept: list[float] = field(default_factory=lambda: [0.5, 0.25, 0.1])
    kinds: list[str] = field(default_factory=lambda: ["structured", "masked", "csr", "2:4"])
    onnxruntime: bool = True


@dataclass
class SubmitConfig(SweepConfig):
    """`autoprune submit`: a sweep on a cluster, or what remains of one (`resume`)."""

    resume: str | None = None
    stop_s: int = 600


@dataclass
class SweepRefConfig:
    """A sweep that exists: its id, or ``latest``, below the output folder."""

    sweep: str = "latest"
    output: str = "outputs"


@dataclass
class ResumeConfig(SweepRefConfig):
    """`autoprune resume`; a limit of the budget set here replaces the sweep's own."""

    budget: BudgetConfig = field(default_factory=BudgetConfig)


@dataclass
class JobRefConfig:
    """A job that `autoprune submit` sent to a cluster: its id, or ``latest``."""

    job: str = "latest"
    executor: AddressConfig = field(default_factory=AddressConfig)


@dataclass
class StatusConfig(SweepRefConfig):
    """`autoprune status`: of a sweep's folder, or of a job on a cluster."""

    job: str | None = None
    executor: AddressConfig = field(default_factory=AddressConfig)


@dataclass
class DashboardConfig(SweepRefConfig):
    """`autoprune dashboard`: MLflow's UI on the loopback address."""

    port: int = 5000
    uri: str | None = None


@dataclass
class MeasureConfig(SweepConfig):
    """`autoprune measure`: a candidate, or the one that `select` finds in `sweep`.

    `runtimes` are options of the group `meter`; without any it is the `meter` of the config, or
    of the candidate's sweep. `allow` are the targets that a recipe may build besides autoprune's.
    """

    candidate: str | None = None
    sweep: str | None = None
    select: SelectConfig = field(default_factory=SelectConfig)
    runtimes: list[str] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    memory: bool = False
    allow: list[str] = field(default_factory=list)


@dataclass
class PromoteConfig(SweepRefConfig):
    """`autoprune promote`; `name` null names the registered model after the experiment.

    `replace` makes it champion where it cannot be compared with the present one, or loses to it.
    `export` names what the network is written as, too, in the sweep's folder.
    """

    name: str | None = None
    replace: bool = False
    export: list[str] = field(default_factory=list)
    select: SelectConfig = field(default_factory=SelectConfig)
    gate: GateConfig = field(default_factory=GateConfig)


@dataclass
class RollbackConfig(SweepRefConfig):
    """`autoprune rollback`; `name` null is the model that the sweep's promotions go to."""

    name: str | None = None


COMMANDS: dict[str, type] = {
    "sweep": SweepConfig,
    "plan": SweepConfig,
    "doctor": SweepConfig,
    "explain": ExplainConfig,
    "profile": ProfileConfig,
    "estimate": EstimateConfig,
    "compare": CompareConfig,
    "submit": SubmitConfig,
    "logs": JobRefConfig,
    "stop": JobRefConfig,
    "resume": ResumeConfig,
    "status": StatusConfig,
    "dashboard": DashboardConfig,
    "measure": MeasureConfig,
    "promote": PromoteConfig,
    "rollback": RollbackConfig,
    "study_sparsity": SparsityConfig,
}


def register(command: str) -> None:
    """Make the schemas that a command's config is made of known to Hydra, ``<command>_schema``.

    Not as a group of their own: help and completion would offer it to users. And no others: Hydra
    1.3 copies all that it knows at every question, of which help asks 126.
    """
    store, wanted = ConfigStore.instance(), {"sweep", command}
    for name, schema in COMMANDS.items():
        file = f"{name}_schema.yaml"
        if name not in wanted:
            store.repo.pop(file, None)
        elif file not in store.repo:
            more = schema is not SweepConfig and issubclass(schema, SweepConfig)
            store.store(name=file, node=_after_sweep(schema) if more else schema)


def _after_sweep(schema: type) -> DictConfig:
    """A schema of a sweep's keys and more, to stand after `sweep` in a defaults list.

    Its defaults for a sweep's keys are missing, which leaves those that the sweep's configs set.
    """
    node = OmegaConf.structured(schema)
    assert isinstance(node, DictConfig)
    for shared in fields(SweepConfig):
        node[shared.name] = MISSING
    return node
