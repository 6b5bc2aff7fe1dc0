"""The front of a sweep as a value to work with, in a script or a notebook."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from torch import nn

from autoprune.domain.space import PruningSpec
from autoprune.domain.trial import Measurement, Observation
from autoprune.orchestration.artifacts import MODEL_FOLDER, load
from autoprune.orchestration.promotion.selection import Selection, choose
from autoprune.orchestration.reports.pareto import pareto_json
from autoprune.orchestration.view import SweepView
from autoprune.orchestration.work import trial_folder


@dataclass(frozen=True)
class Member:
    """A member of a front: its trial, what was measured, and its network on disk."""

    number: int
    spec: PruningSpec
    metrics: Mapping[str, float]
    folder: Path
    unpruned: nn.Module = field(repr=False)

    def load(self) -> nn.Module:
        """The pruned network, in evaluation mode; it can be trained on."""
        return load(self.folder, model=self.unpruned)


class Front:
    """The Pareto front of a sweep, best first by the task's main metric."""

    def __init__(self, folder: Path, view: SweepView, unpruned: nn.Module) -> None:
        self.folder, self.view, self._unpruned = folder, view, unpruned

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
        counts by the lower end of its interval. Raises AutopruneError
        where no member fits.
        """
        return self._member(choose(self.view, Selection(max_drop, min_speedup, trial)))

    def _member(self, observation: Observation) -> Member:
        assert isinstance(observation.outcome, Measurement)
        trial = observation.trial
        place = trial_folder(self.folder, trial.number) / MODEL_FOLDER
        return Member(trial.number, trial.spec, observation.outcome.metrics, place, self._unpruned)

    def __len__(self) -> int:
        return len(self.view.front)

    def __repr__(self) -> str:
        head = f"Front of {self.view.sweep_id}: {len(self)} members"
        return f"{head}\n{self.table.drop(columns='widths', errors='ignore')}"

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return str(self.table.drop(columns="widths", errors="ignore").to_html())
