"""What a sweep leaves in its own folder: reports, and the networks worth keeping."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from autoprune.domain.trial import Observation, Stage, Trial
from autoprune.orchestration.folders import replace_text, trial_folder
from autoprune.orchestration.reports.dashboard import dashboard_html
from autoprune.orchestration.reports.pareto import pareto_csv, pareto_json
from autoprune.orchestration.view import SweepView

PARETO_JSON = "pareto.json"
PARETO_CSV = "pareto.csv"
PARETO_HTML = "pareto.html"


class FilesWatcher:
    """Keeps the reports in a sweep's folder up to date, at most every `refresh_s` seconds.

    Unless `keep_all`, the networks of trials that left the front, or never joined it, are
    deleted: a sweep of thousands of trials would otherwise fill the disk. `run_ids` tells the
    runs that a tracker made for the trials. Reports tell what the journal holds: where they cannot
    be written the sweep goes on, and `fault` says why until they can.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_ids: Callable[[], Mapping[int, str]] = dict,
        keep_all: bool = False,
        refresh_s: float = 5.0,
    ) -> None:
        self.folder, self.run_ids = folder, run_ids
        self.keep_all, self.refresh_s = keep_all, refresh_s
        self.fault: str | None = None
        self._written_at: float | None = None
        self._kept: set[int] = set()

    def on_start(self, view: SweepView) -> None:
        """Take up the networks that an earlier session kept."""
        self._kept = {observation.trial.number for observation in view.observations}
        self._discard(view)

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """Reports change with outcomes only."""

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        """Discard what is not worth keeping any more; write the reports where it is time."""
        self._kept.add(observation.trial.number)
        self._discard(view)
        now = time.perf_counter()
        if self._written_at is None or now - self._written_at >= self.refresh_s:
            self._write(view)
            self._written_at = time.perf_counter()

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        """Write the reports a last time; of a sweep that is over no trial goes on."""
        self._discard(view, over=complete)
        self._write(view)

    def _discard(self, view: SweepView, *, over: bool = False) -> None:
        if self.keep_all:
            return
        paused = {o.trial.number for o in view.observations if o.rung is not None and not over}
        for number in [n for n in self._kept if n not in view.front and n not in paused]:
            shutil.rmtree(trial_folder(self.folder, number), ignore_errors=True)
            self._kept.discard(number)

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
