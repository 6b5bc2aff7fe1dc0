"""A driver that is killed at any moment, and what a resume makes of it.

Whatever moment it was: every trial that had an outcome keeps it, none is run or counted twice,
the sweep ends with exactly its number of trials, and MLflow and the study of Optuna's show what
the journal says.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil
import pytest
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoprune.orchestration.launch import Tracking, launch
from autoprune.orchestration.record import read_journal
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.tracking.optuna_watcher import OPTUNA_FILE
from tests.tiny import WORDS, Driver, events, lines, request, sweep_folder, told

TRIALS = 5
SWEEP = [
    "sweep",
    *WORDS,
    "name=tiny",
    "output=out",
    f"budget.trials={TRIALS}",
    "uniform_first=[0.5]",
    "objective=quality_size",
]
RESUME = ["resume", "sweep=latest", "output=out"]
PATIENCE_S = 240.0

# Ray 2.60: these two look after a node, notice that it is gone, and then try for up to a minute
# to tell its control service, which is gone too. They hold no slot and no file of a sweep.
SLOW_TO_LEAVE = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass
class Scene:
    """What can be seen of a sweep from outside: what its driver printed, and its folder."""

    driver: Driver
    folder: Path


Moment = Callable[[Scene], bool]


def prepared(scene: Scene) -> bool:
    """The baseline is judged and the journal there; Ray still has to start."""
    return "trials at a time" in scene.driver.said


def asks_are(count: int) -> Moment:
    """So many trials were proposed."""
    return lambda scene: len(list(events(scene.folder, "ask"))) >= count


def tells_are(count: int) -> Moment:
    """So many trials came to an outcome."""
    return lambda scene: len(told(scene.folder)) >= count


def recovering(scene: Scene) -> bool:
    """A trial that has no outcome yet has saved an epoch of its recovery."""
    running = {int(path.parent.name) for path in scene.folder.glob("trials/*/epoch-*")}
    return bool(running - set(told(scene.folder)))


reporting = tells_are(TRIALS)
"""Every outcome is in: what is left is to end the runs and to log the networks."""


def run_until(driver: Driver, output: Path, moment: Moment) -> None:
    """Kill the driver as soon as the moment has come, and see to it that nothing outlives it."""
    deadline = time.monotonic() + PATIENCE_S
    while (folder := sweep_folder(output)) is None or not moment(Scene(driver, folder)):
        assert driver.process.poll() is None, f"it ended before the moment:\n{driver.said}"
        assert time.monotonic() < deadline, f"the moment never came:\n{driver.said}"
        time.sleep(0.002)
    family = [process for process in driver.family() if process.name() not in SLOW_TO_LEAVE]
    driver.process.kill()
    driver.process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, f"these outlived their driver: {alive}"


def finish(driver: Driver, *, code: int = 0) -> None:
    assert driver.process.wait(PATIENCE_S) == code, driver.said


def check_mlflow(folder: Path, output: Path) -> None:
    """One parent, and one child a trial, each with the state that the journal tells."""
    client = MlflowClient(f"sqlite:///{output.resolve()}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    (parent,) = (run for run in runs if run not in children)
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}

    by_trial = {int(run.data.tags["trial"]): run for run in children}
    assert len(by_trial) == len(children) == TRIALS
    report = json.loads((folder / "pareto.json").read_text())
    front = {row["trial"]: row["run_id"] for row in report["front"]}
    for event in events(folder, "tell"):
        observation = event["observation"]
        run = by_trial[observation["trial"]["number"]]
        number = observation["trial"]["number"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["state"] == "finished"
        assert run.data.tags["pareto"] == str(number in front).lower()
        assert run.data.params["seed"] == str(observation["trial"]["seed"])
        accuracy = observation["measurement"]["metrics"]["accuracy"]
        assert run.data.metrics["accuracy"] == pytest.approx(accuracy)
    assert front == {number: by_trial[number].info.run_id for number in front}
    steps = Counter(m.step for m in client.get_metric_history(parent.info.run_id, "hypervolume"))
    assert set(steps) == set(range(1, TRIALS + 1))


def check_study(folder: Path) -> None:
    """One trial of Optuna's a trial, with the values that the journal tells."""
    storage = JournalStorage(JournalFileBackend(str(folder / OPTUNA_FILE)))
    study = optuna.load_study(study_name=folder.name, storage=storage)
    observations = [event["observation"] for event in events(folder, "tell")]
    metrics = {o["trial"]["number"]: o["measurement"]["metrics"] for o in observations}
    assert study.metric_names
    assert {trial.number: trial.values for trial in study.trials} == {
        number: [found[name] for name in study.metric_names] for number, found in metrics.items()
    }


def check_sweep(folder: Path) -> None:
    """Exactly its number of trials, in the journal and in the report."""
    record = read_journal(folder / "journal.jsonl")
    assert record.torn is None
    assert sorted(told(folder)) == list(range(TRIALS))
    asked = [event["trial"]["number"] for event in events(folder, "ask")]
    assert sorted(asked) == list(range(TRIALS))
    report = json.loads((folder / "pareto.json").read_text())
    assert report["counts"] == {"finished": TRIALS, "paused": 0, "stopped": 0, "failed": 0}
    for row in report["front"]:
        assert (folder / "trials" / f"{row['trial']:04d}" / "model").is_dir()


def kill_again_and_again(place: Path, words: list[str], moments: list[Moment]) -> None:
    """Start a sweep, kill it at the first moment, resume, kill it at the second, and so on."""
    output, before = place / "out", list[str]()
    for number, moment in enumerate(moments):
        driver = Driver(words if number == 0 else RESUME, place)
        run_until(driver, output, moment)
        folder = sweep_folder(output)
        assert folder is not None
        now = lines(folder)
        assert now[: len(before)] == before, "a resume changed what was written"
        before = now
    finish(Driver(RESUME, place))
    assert folder is not None
    assert lines(folder)[: len(before)] == before
    check_sweep(folder)
    check_mlflow(folder, output)
    check_study(folder)


RAY = [*SWEEP, "executor.slots=2"]


@pytest.mark.slow
def test_killed_with_workers_running(tmp_path):
    kill_again_and_again(tmp_path, RAY, [recovering])


@pytest.mark.slow
def test_killed_with_workers_that_save_elsewhere(tmp_path):
    store = tmp_path / "store"
    store.mkdir()

    def saved(scene: Scene) -> bool:
        """A trial that has no outcome yet has saved an epoch of its recovery there."""
        running = {int(path.parent.name) for path in store.glob("*-saved/*/*-epoch-*.zip")}
        return bool(running - set(told(scene.folder)))

    words = [*RAY, f"executor.storage={store}"]
    kill_again_and_again(tmp_path, words, [saved])
    assert list(store.iterdir()) == [], "what was needed is home, and nothing is left"


@pytest.mark.slow
def test_killed_in_this_process_alone(tmp_path):
    # the first two kills come in a row: nothing of the sweep went on between them
    moments = [prepared, prepared, tells_are(2)]
    kill_again_and_again(tmp_path, [*SWEEP, "executor=inline"], moments)


@pytest.mark.chaos
def test_killed_with_workers_running_again_and_again(tmp_path):
    moments = [prepared, asks_are(1), asks_are(2), prepared, recovering, tells_are(1)]
    kill_again_and_again(tmp_path, RAY, [*moments, recovering, tells_are(4), reporting])


@pytest.mark.chaos
def test_killed_in_this_process_again_and_again(tmp_path):
    moments = [prepared, asks_are(1), recovering, tells_are(3), tells_are(4), reporting]
    kill_again_and_again(tmp_path, [*SWEEP, "executor=inline"], moments)


def test_resuming_what_is_complete_changes_nothing(tmp_path):
    asked = request(tmp_path, budget=Budget(trials=2))
    folder = launch(asked, Tracking()).result.folder
    before = (folder / "journal.jsonl").read_bytes(), (folder / "pareto.json").read_bytes()
    assert launch(asked, Tracking(), folder=folder).result.complete
    after = (folder / "journal.jsonl").read_bytes(), (folder / "pareto.json").read_bytes()
    assert after == before
