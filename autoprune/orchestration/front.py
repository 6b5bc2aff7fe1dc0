"""The front of a sweep as a value to work with, in a script or a notebook."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Measurement, Observation
from autoprune.orchestration.artifacts import MODEL_FOLDER, load
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.promotion.promote import FinishedSweep, promote
from autoprune.orchestration.promotion.registry import Registered
from autoprune.orchestration.promotion.selection import Selection, choose
from autoprune.orchestration.reports.pareto import pareto_json


@dataclass(frozen=True)
class Member:
    """A member of a front: its trial, what was measured, and its network on disk."""

    number: int
    spec: PruningSpec
    metrics: Mapping[str, float]
    folder: Path
    unpruned: nn.Module = field(repr=False)

    def load(self) -> nn.Module:
        """The pruned network, in evaluation mode; it can be trained on.

        One in int8 is an `autoprune.measurement.runtimes.Int8Network`, whose `origin` can.
        """
        return load(self.folder, model=self.unpruned)


class Front:
    """The Pareto front of a sweep, best first by the task's main metric."""

    def __init__(self, sweep: FinishedSweep) -> None:
        self._sweep = sweep
        self.folder, self.view = sweep.folder, sweep.view

    @property
    def members(self) -> tuple[Member, ...]:
        """The front's members."""
        return tuple(map(self._member, self.view.front.members))

    @property
    def table(self) -> pd.DataFrame:
        """One row a member by its trial's number: the main metric, speedup, costs, and intervals.

        The column ``widths`` holds what every group keeps.
        """
        facts = pareto_json(self.view)["front"]
        columns = list(facts[0]) if facts else ["trial", self.view.goal.main.metric, "speedup"]
        return (
            pd.DataFrame(facts, columns=columns)
            .drop(columns="run_id", errors="ignore")
            .set_index("trial")
        )

    def best(
        self,
        *,
        max_drop: float | None = None,
        min_speedup: float | None = None,
        trial: int | None = None,
    ) -> Member:
        """The fastest member within `max_drop` of the baseline, or the best above `min_speedup`.

        Or the one of a `trial`; none of them gives the knee of the front. How fast a member is
        counts by the lower end of its interval. Raises AutopruneError where no member fits, and
        for a trial whose network was not kept.
        """
        member = self._member(choose(self.view, Selection(max_drop, min_speedup, trial)))
        if not member.folder.is_dir():
            raise AutopruneError(
                f"the network of trial {member.number} was not kept; choose a member of the "
                f"front, {[m.number for m in self.members]}"
            )
        return member

    def promote(
        self,
        *,
        max_drop: float | None = None,
        min_speedup: float | None = None,
        trial: int | None = None,
        name: str | None = None,
        replace: bool = False,
    ) -> Registered:
        """Prove the member that `best` gives in a fresh process, and register it in MLflow.

        It is judged on the test split, where it may lose `max_drop`, too, and measured again. It
        becomes a version of the model `name` (the sweep's by default), and its champion where it
        beats the present one, or where `replace` says so. Raises RefusedError where the proof
        fails: then nothing has moved.
        """
        member = choose(self.view, Selection(max_drop, min_speedup, trial))
        gate = self._sweep.gate(max_drop=max_drop)
        return promote(self._sweep, member, gate, name=name, replace=replace)

    def _member(self, observation: Observation) -> Member:
        assert isinstance(observation.outcome, Measurement)
        trial = observation.trial
        place = trial_folder(self.folder, trial.number) / MODEL_FOLDER
        unpruned = self._sweep.request.model
        return Member(trial.number, trial.spec, observation.outcome.metrics, place, unpruned)

    def __len__(self) -> int:
        return len(self.view.front)

    def __repr__(self) -> str:
        head = f"Front of {self.view.sweep_id}: {len(self)} members"
        return f"{head}\n{self.table.drop(columns='widths', errors='ignore')}"

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return str(self.table.drop(columns="widths", errors="ignore").to_html())
