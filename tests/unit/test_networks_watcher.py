"""The networks of the front, brought home from where trials save."""

import threading
from pathlib import Path

import pytest
import torch

import autoprune
from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.artifacts import read_outputs
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.launch import Launched, Listeners, Tracking, launch
from autoprune.orchestration.request import SweepRequest
from autoprune.orchestration.store import Store
from autoprune.orchestration.sweep import Budget
from autoprune.orchestration.trouble import SweepStoppedError
from tests.faulty_files import failing
from tests.tiny import request


@pytest.fixture
def asked(tmp_path: Path) -> SweepRequest:
    (tmp_path / "store").mkdir()
    return request(
        tmp_path / "out", storage=Store(f"faulty://{tmp_path}/store"), budget=Budget(trials=5)
    )


def kept(asked: SweepRequest) -> list[Path]:
    assert asked.storage is not None
    return sorted(Path(asked.storage.url.removeprefix("faulty://")).iterdir())


def check_home(launched: Launched, asked: SweepRequest) -> None:
    """The folder holds the networks of the front, which are what they were, and no others."""
    result = launched.result
    members = [member.trial.number for member in result.view.front.members]
    assert members
    homes = {int(path.name) for path in (result.folder / "trials").iterdir()}
    assert homes == set(members)
    for number in members:
        place = trial_folder(result.folder, number)
        network = autoprune.load(place, model=asked.model)
        (expected,) = read_outputs(place / "model")
        assert torch.equal(network(asked.task.example()), expected)


def test_at_the_end_the_front_is_home_and_nothing_else_is_left(asked: SweepRequest) -> None:
    launched = launch(asked, Tracking())
    assert launched.result.complete
    assert launched.warnings == ()
    check_home(launched, asked)
    assert kept(asked) == []


def test_where_all_are_kept_all_come_home(asked: SweepRequest) -> None:
    launched = launch(asked, Tracking(keep_all_models=True))
    assert launched.warnings == ()
    assert len(list(launched.result.folder.glob("trials/*/model"))) == 5
    assert kept(asked) == []


def _driver_only(_operation: str) -> None:
    """The driver's way to the store is cut, the workers' is not."""
    if threading.current_thread().name == "autoprune-networks":
        raise ConnectionResetError("no route to the store")


def test_what_cannot_come_home_is_told_and_a_resume_brings_it(
    asked: SweepRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoprune.orchestration.networks.PAUSES_S", (0.0,))
    with failing(_driver_only):
        launched = launch(asked, Tracking())
    assert launched.result.complete
    (lost,) = launched.warnings
    assert "networks worth keeping are not in" in lost
    assert "no route to the store" in lost
    assert len(kept(asked)) == 1
    again = launch(asked, Tracking(), folder=launched.result.folder)
    assert again.warnings == ()
    check_home(again, asked)
    assert kept(asked) == []
    quiet = launch(asked, Tracking(), folder=launched.result.folder)
    assert quiet.warnings == (), "what is home is not asked for again"


def test_one_fault_on_the_way_home_costs_nothing(asked: SweepRequest) -> None:
    faults = []

    def before(operation: str) -> None:
        if operation == "get_file" and not faults:
            faults.append(operation)
            raise ConnectionResetError("gone")

    with failing(before):
        launched = launch(asked, Tracking())
    assert faults
    assert launched.warnings == ()
    check_home(launched, asked)


class Beginning:
    """Takes the store away when the first trial has come to its outcome."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def on_start(self, *_: object) -> None:
        pass

    def on_progress(self, *_: object, **__: object) -> None:
        pass

    def on_observation(self, *_: object) -> None:
        if self.store.exists():
            self.store.rename(self.store.with_name("elsewhere"))

    def on_finish(self, *_: object, **__: object) -> None:
        pass


def test_a_store_that_goes_stops_the_sweep_and_says_what_of(
    asked: SweepRequest, tmp_path: Path
) -> None:
    watcher = Beginning(tmp_path / "store")
    with pytest.raises(SweepStoppedError, match=r"trial 1 .* cannot be saved .*faulty://"):
        launch(asked, Tracking(), listeners=Listeners(watchers=(watcher,)))


def test_a_store_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    asked = request(tmp_path / "out", storage=Store(f"file://{tmp_path}/nowhere"))
    with pytest.raises(AutopruneError, match=r"executor\.storage: cannot write to file://"):
        launch(asked, Tracking())
    assert list(tmp_path.iterdir()) == []
