"""What every storage promises. Subclass `StorageContract` to put a storage of your own to it."""

import pickle
import threading
from pathlib import Path

import pytest
import torch

from autoprune.orchestration.artifacts import MODEL_FOLDER, read_outputs, read_snapshot
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.networks import at_home
from autoprune.orchestration.storage import Storage
from tests.snapshots import facts, snapshot


class StorageContract:
    @pytest.fixture
    def home(self, tmp_path: Path) -> Path:
        """The sweep's folder."""
        folder = tmp_path / "sweep-1"
        folder.mkdir()
        return folder

    @pytest.fixture
    def storage(self, home: Path) -> Storage:
        raise NotImplementedError

    def test_what_has_saved_nothing_has_nothing(self, storage: Storage, home: Path) -> None:
        assert storage.read(0) is None
        assert not storage.fetch(0, home)
        storage.delete(0)
        storage.clear()

    def test_the_last_snapshot_comes_back_as_it_was(self, storage: Storage) -> None:
        course = [
            snapshot(0, stands=True, mark=0.25),
            snapshot(1, mark=0.5),
            snapshot(2, mark=0.75),
            snapshot(2, stands=True, mark=0.75),
            snapshot(3, mark=1.5),
            snapshot(3, done=True, mark=1.5),
        ]
        for saved in course:
            storage.save(7, saved)
            assert facts(storage.read(7)) == facts(saved)

    def test_one_that_is_begun_anew_counts_as_the_last(self, storage: Storage) -> None:
        storage.save(0, snapshot(3, mark=3.0))
        storage.delete(0)
        storage.save(0, snapshot(1, mark=1.0))
        assert facts(storage.read(0)) == facts(snapshot(1, mark=1.0))

    def test_what_a_trial_stands_for_comes_home_whatever_it_saved_since(
        self, storage: Storage, home: Path
    ) -> None:
        storage.save(3, snapshot(1, stands=True, mark=1.0))
        storage.save(3, snapshot(2, mark=2.0))
        assert storage.fetch(3, home)
        place = trial_folder(home, 3) / MODEL_FOLDER
        assert torch.equal(read_outputs(place)[0], torch.full((1, 3), 1.0))
        assert not at_home(home, 3), "it may come to more"
        storage.save(3, snapshot(3, done=True, mark=3.0))
        assert storage.fetch(3, home)
        assert torch.equal(read_outputs(place)[0], torch.full((1, 3), 3.0))
        assert at_home(home, 3)
        assert [path.name for path in trial_folder(home, 3).iterdir()] == [MODEL_FOLDER]
        assert facts(read_snapshot(trial_folder(home, 3))) == facts(storage.read(3))

    def test_an_epoch_is_nothing_to_bring_home(self, storage: Storage, home: Path) -> None:
        storage.save(0, snapshot(1))
        assert not storage.fetch(0, home)

    def test_trials_are_kept_apart(self, storage: Storage) -> None:
        for number in (0, 1, 10_000):
            storage.save(number, snapshot(1, mark=float(number)))
        storage.delete(1)
        found = [storage.read(number) for number in (0, 1, 10_000)]
        assert [facts(one) for one in found] == [
            facts(snapshot(1, mark=0.0)),
            None,
            facts(snapshot(1, mark=10_000.0)),
        ]

    def test_what_another_worker_saves_is_seen(self, storage: Storage) -> None:
        data = pickle.dumps(storage)
        assert storage.read(0) is None
        for epoch in (1, 2):
            saving = threading.Thread(
                target=lambda e=epoch: pickle.loads(data).save(0, snapshot(e))
            )
            saving.start()
            saving.join()
            found = storage.read(0)
            assert found is not None
            assert found.epoch == epoch

    def test_a_network_of_some_megabytes(self, storage: Storage) -> None:
        saved = snapshot(1, done=True, mark=0.125, size=3_000_000)
        storage.save(0, saved)
        found = storage.read(0)
        assert found is not None
        assert torch.equal(found.state_dict["weight"], saved.state_dict["weight"])
