from collections.abc import Iterator
from pathlib import Path

import pytest

from autoprune.orchestration.storage import InFolder, InStore, Storage
from autoprune.orchestration.store import Store
from tests.contracts.storage_contract import StorageContract
from tests.servers import S3Server
from tests.snapshots import facts, snapshot


class TestInFolder(StorageContract):
    @pytest.fixture
    def storage(self, home: Path) -> Storage:
        return InFolder(home)


class InOneStore(StorageContract):
    """Of those that keep elsewhere: once all is home, nothing is left."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        raise NotImplementedError

    @pytest.fixture
    def storage(self, store: Store) -> Iterator[Storage]:
        yield InStore(store, "sweep-1")
        InStore(store, "sweep-1").clear()
        assert store.names("sweep-1-saved") == []

    def test_sweeps_are_kept_apart(self, storage: Storage, store: Store) -> None:
        other = InStore(store, "sweep-10")
        storage.save(0, snapshot(1))
        other.save(0, snapshot(2))
        storage.clear()
        assert storage.read(0) is None
        assert facts(other.read(0)) == facts(snapshot(2))
        other.clear()


class TestInAPath(InOneStore):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        (tmp_path / "store").mkdir()
        return Store(str(tmp_path / "store"))


class TestInAFileUrl(InOneStore):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        (tmp_path / "store").mkdir()
        return Store(f"file://{tmp_path}/store/")


class TestInABucket(InOneStore):
    @pytest.fixture
    def store(self, s3: S3Server) -> Store:
        return Store(f"s3://{s3.bucket}/some/prefix")
