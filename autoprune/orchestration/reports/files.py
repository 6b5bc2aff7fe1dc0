"""The reports that a sweep leaves in its own folder."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from autoprune.domain.trial import Observation, Stage, Trial
from autoprune.orchestration.durable import replace_text
from autoprune.orchestration.reports.dashboard import dashboard_html
from autoprune.orchestration.reports.pareto import pareto_csv, pareto_json
from autoprune.orchestration.view import SweepView

PARETO_JSON = "pareto.json"
PARETO_CSV = "pareto.csv"
PARETO_HTML = "pareto.html"

SHARE = 0.02


class ReportsWatcher:
    """Keeps the reports in a sweep's folder up to date, at most every `refresh_s` seconds.

    Where a sweep is so large that they take long they are written less often, so that no more than
    `SHARE` of the time goes into them. `run_ids` tells the runs that a tracker made for the trials.
    Reports tell what the journal holds: where they cannot be written the sweep goes on, and `fault`
    says why until they can.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_ids: Callable[[], Mapping[int, str]] = dict,
        refresh_s: float = 5.0,
    ) -> None:
        self.folder, self.run_ids = folder, run_ids
        self.refresh_s = refresh_s
        self.fault: str | None = None
        self._due = 0.0

    def on_start(self, view: SweepView) -> None:
        """There is nothing to report yet, or nothing new."""

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """Reports change with outcomes only."""

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        """Write the reports where it is time."""
        begun = time.perf_counter()
        if begun >= self._due:
            self._write(view)
            ended = time.perf_counter()
            self._due = ended + max(self.refresh_s, (ended - begun) / SHARE)

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        """Write the reports a last time."""
        del complete
        self._write(view)

    def _write(self, view: SweepView) -> None:
        view = replace(view, run_ids=self.run_ids())
        try:
            replace_text(self.folder / PARETO_JSON, json.dumps(pareto_json(view), indent=1))
            replace_text(self.folder / PARETO_CSV, pareto_csv(view))
            replace_text(self.folder / PARETO_HTML, dashboard_html(view))
        except OSError as error:
            self.fault = f"the reports in {self.folder} are not up to date ({error.strerror})"
        else:
            self.fault = None
