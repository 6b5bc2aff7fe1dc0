"""What a sweep leaves in its folder, where the folder does not take it."""

import json
from pathlib import Path

from autoprune.domain.trial import Cause, Failure, Measurement, Observation, Stage, Trial
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.launch import Listeners, Tracking, launch
from autoprune.orchestration.networks import NetworksWatcher
from autoprune.orchestration.reports.files import PARETO_HTML, PARETO_JSON, ReportsWatcher
from autoprune.orchestration.storage import InFolder
from autoprune.orchestration.view import SweepView
from tests.sweeps import make_goal, make_space, make_sweep
from tests.tiny import request


def test_a_report_that_cannot_be_written_is_kept_as_a_fault_until_it_can(tmp_path: Path) -> None:
    view, watcher = make_sweep(6), ReportsWatcher(tmp_path, refresh_s=0.0)
    (tmp_path / PARETO_HTML).mkdir()
    watcher.on_start(view)
    watcher.on_observation(view.observations[-1], view)
    assert watcher.fault is not None
    assert f"the reports in {tmp_path} are not up to date" in watcher.fault
    (tmp_path / PARETO_HTML).rmdir()
    watcher.on_finish(view, complete=True)
    assert watcher.fault is None
    assert json.loads((tmp_path / PARETO_JSON).read_text())["counts"] == view.counts


class Squatter:
    """Takes the place of a report as soon as the sweep's folder stands."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def on_start(self, view: SweepView) -> None:
        (self.output / view.sweep_id / PARETO_JSON).mkdir()

    def on_progress(self, *_: object, **__: object) -> None:
        pass

    def on_observation(self, *_: object) -> None:
        pass

    def on_finish(self, *_: object, **__: object) -> None:
        pass


def test_a_sweep_goes_on_without_reports_and_tells_it_once(tmp_path: Path) -> None:
    launched = launch(
        request(tmp_path), Tracking(), listeners=Listeners(watchers=(Squatter(tmp_path),))
    )
    assert launched.result.complete
    (lost,) = launched.warnings
    assert "are not up to date (Is a directory)" in lost


def test_a_resume_tells_of_the_torn_line_that_it_cut_off(tmp_path: Path) -> None:
    asked = request(tmp_path)
    first = launch(asked, Tracking())
    journal = first.result.folder / "journal.jsonl"
    with journal.open("a") as file:
        file.write('{"event": "as')
    again = launch(asked, Tracking(), folder=first.result.folder)
    (lost,) = again.warnings
    assert "was torn by a crash (13 bytes)" in lost
    assert launch(asked, Tracking(), folder=first.result.folder).warnings == ()


def test_what_waits_on_a_ladder_drives_no_network_away_for_good(tmp_path: Path) -> None:
    """A trial that pauses beats another one, climbs, and is lost: the other one is back."""
    goal, space = make_goal(), make_space({"a": 32})

    def seen(number: int, accuracy: float, rung: int | None) -> Observation:
        outcome = Measurement({"accuracy": accuracy, "speedup": 2.0})
        (trial_folder(tmp_path, number) / "model").mkdir(parents=True, exist_ok=True)
        trial = Trial(number, space.uniform(1 / (number + 1)), number)
        return Observation(trial, outcome, rung=rung)

    def kept() -> set[int]:
        watcher._background.submit(lambda: None).result()  # after all that was before it
        return {int(place.name) for place in (tmp_path / "trials").iterdir()}

    watcher, told = NetworksWatcher(tmp_path, InFolder(tmp_path)), dict[int, Observation]()

    def hear(observation: Observation) -> SweepView:
        told[observation.trial.number] = observation
        view = SweepView("s", "s", goal, space, {}, tuple(told.values()))
        watcher.on_observation(observation, view)
        return view

    watcher.on_start(SweepView("s", "s", goal, space, {}))
    hear(seen(0, 0.96, None))
    hear(seen(1, 0.97, 0))
    assert kept() == {0, 1}
    hear(seen(2, 0.95, None))
    assert kept() == {0, 1}, "an ended one beats it"
    hear(seen(3, 0.94, 0))
    assert kept() == {0, 1, 3}, "it may climb yet"
    lost = Failure(Stage.RECOVER, Cause.WORKER_LOST, "gone")
    view = hear(Observation(told[1].trial, lost))
    assert [member.trial.number for member in view.front.members] == [0]
    assert kept() == {0, 3}
    watcher.on_finish(view, complete=False)
    watcher.on_start(view)
    assert kept() == {0, 3}, "it is resumed"
    watcher.on_finish(view, complete=True)
    assert [place.name for place in (tmp_path / "trials").iterdir()] == ["0000"]
