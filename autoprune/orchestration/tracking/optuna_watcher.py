"""The sweep in optuna-dashboard: a projection of the journal into a study, like MLflow's."""

from collections.abc import Callable, Mapping
from pathlib import Path

from autoprune.domain.errors import first_line
from autoprune.domain.trial import Observation, Stage, Trial
from autoprune.orchestration.tracking.optuna_study import StudyFile
from autoprune.orchestration.view import SweepView

OPTUNA_FILE = "optuna.log"


class OptunaWatcher:
    """Keeps a study of a sweep, whatever searched, in a file of the sweep's folder.

    Its name is the sweep's id, and its trials have the sweep's numbers. Parameters are the widths
    kept, values the objectives. A trial that a constraint stopped is pruned. One that paused on a
    ladder of fidelities has an intermediate value, the main objective's, and runs until it comes
    to its end; in a complete sweep it is pruned. `run_ids` tells the runs that a tracker made for
    the trials. Where the study cannot be written the sweep goes on, and `fault` says why until it
    can.
    """

    def __init__(self, folder: Path, *, run_ids: Callable[[], Mapping[int, str]] = dict) -> None:
        self.path, self.run_ids = folder / OPTUNA_FILE, run_ids
        self.fault: str | None = None
        self._study: StudyFile | None = None

    def on_start(self, view: SweepView) -> None:
        """Take up the study of an earlier session, or write it anew where it tells otherwise."""
        self._guarded(lambda: self._reconcile(view))

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """The first that is heard of a trial shows it as running."""
        study = self._study
        if study is not None and not study.shows(trial.number):
            self._guarded(lambda: study.begin(trial))

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        """Write an outcome."""
        study = self._study
        if study is None:
            self._guarded(lambda: self._reconcile(view))
        else:
            self._guarded(lambda: study.write(observation, self.run_ids()))

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        """Write what could not be written before; of a complete sweep nothing runs any more."""

        def finish() -> None:
            study = self._reconcile(view)
            if complete:
                study.prune_paused(view)

        self._guarded(finish)

    def _guarded(self, write: Callable[[], object]) -> None:
        try:
            write()
            if self._study is not None:
                self._study.file.save()
        except Exception as error:  # whatever it is, the sweep does not depend on it
            self.fault = f"{self.path} is not up to date ({first_line(error)})"
        else:
            self.fault = None

    def _reconcile(self, view: SweepView) -> StudyFile:
        """Make the study tell what `view` does; one of another telling is begun anew."""
        last = {observation.trial.number: observation for observation in view.observations}
        study = self._study or StudyFile.found(self.path, view)
        if study is None or not study.leads_to(last):
            study = StudyFile.new(self.path, view)
        self._study = study
        runs = self.run_ids()
        for number in sorted(last):
            if not study.tells(last[number]):
                study.write(last[number], runs)
        return study
