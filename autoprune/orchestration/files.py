"""What a sweep leaves in its own folder: reports, and the networks worth keeping."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from autoprune.domain.pareto import ParetoFront
from autoprune.domain.trial import Observation, Stage, Trial
from autoprune.orchestration.folders import replace_text, trial_folder
from autoprune.orchestration.reports.dashboard import dashboard_html
from autoprune.orchestration.reports.pareto import pareto_csv, pareto_json
from autoprune.orchestration.view import SweepView

PARETO_JSON = "pareto.json"
PARETO_CSV = "pareto.csv"
PARETO_HTML = "pareto.html"


class NetworksWatcher:
    """Deletes the networks of trials that left the front, or never joined it.

    A sweep of thousands of trials would otherwise fill the disk. A trial that waits on the ladder
    keeps what it goes on from, until the sweep is over; where a larger budget then lets it climb
    after all, it is begun anew. What waits may be worth less in the end, so that it drives nothing
    off the front for good.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._members: set[int] = set()
        self._waiting: set[int] = set()

    def on_start(self, view: SweepView) -> None:
        """Take up the networks that an earlier session kept."""
        self._ended = ParetoFront(view.goal, [o for o in view.observations if o.rung is None])
        self._waiting = {o.trial.number for o in view.observations if o.rung is not None}
        self._discard(view, among={o.trial.number for o in view.observations})

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """The front changes with outcomes only."""

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        """Delete what is not worth keeping any more."""
        number = observation.trial.number
        if observation.rung is None:
            self._ended.add(observation)
            self._waiting.discard(number)
        else:
            self._waiting.add(number)
        self._discard(view, among={number})

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        """No trial of a sweep that is over goes on."""
        if complete:
            waited, self._waiting = self._waiting, set()
            self._discard(view, among=waited)

    def _discard(self, view: SweepView, *, among: set[int]) -> None:
        """Delete what left the front, and those of `among` that are not on it and do not wait."""
        members = {m.trial.number for m in (*view.front.members, *self._ended.members)}
        for number in (self._members | among) - members - self._waiting:
            shutil.rmtree(trial_folder(self.folder, number), ignore_errors=True)
        self._members = members


class ReportsWatcher:
    """Keeps the reports in a sweep's folder up to date, at most every `refresh_s` seconds.

    Where a sweep is so large that they take long they are written less often, so that no more than
    `share` of the time goes into them. `run_ids` tells the runs that a tracker made for the trials.
    Reports tell what the journal holds: where they cannot be written the sweep goes on, and `fault`
    says why until they can.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_ids: Callable[[], Mapping[int, str]] = dict,
        refresh_s: float = 5.0,
        share: float = 0.02,
    ) -> None:
        self.folder, self.run_ids = folder, run_ids
        self.refresh_s, self.share = refresh_s, share
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
            self._due = ended + max(self.refresh_s, (ended - begun) / self.share)

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
