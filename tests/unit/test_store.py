"""A store that is out of reach, or cannot be one, and what is said of it."""

import pickle
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.store import Store, StoreError, check_store, retried, store_at
from tests.faulty_files import at, failing
from tests.servers import S3Server


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "name a folder from the root on"),
        ("sweeps", "name a folder from the root on, like /mnt/sweeps, or give a URL"),
        ("file://sweeps", "name a folder from the root on"),
        ("s3://", "name a folder from the root on"),
        ("memory://sweeps", "is in the memory of one process"),
        ("s4://sweeps", "protocol 's4' is not known; choose from"),
        ("s33://sweeps", "did you mean 's3'"),
    ],
)
def test_what_cannot_be_a_store_is_refused_with_the_remedy(place: str, message: str) -> None:
    with pytest.raises(AutopruneError, match=message) as caught:
        store_at(place, key="executor.storage")
    assert str(caught.value).startswith(f"executor.storage={place!r}")


def test_a_password_is_refused_and_not_shown() -> None:
    with pytest.raises(AutopruneError, match=r"holds a password, .*FSSPEC_<PROTOCOL>") as caught:
        store_at("ftp://me:secret@host/sweeps", key="executor.storage")
    assert "ftp://me:***@host/sweeps" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_package_that_is_missing_is_named_once_it_is_needed() -> None:
    store = store_at("sftp://host/sweeps", key="executor.storage")
    with pytest.raises(AutopruneError, match=r'"paramiko".*; install that package with pip'):
        check_store(store, key="executor.storage")


@pytest.mark.parametrize("place", ["/proc", "file:///nowhere/at/all", "http://127.0.0.1:9/x"])
def test_a_place_that_takes_nothing_is_told_before_anything_else(place: str) -> None:
    message = rf"executor\.storage: cannot write to {place} \(.*let in"
    with pytest.raises(AutopruneError, match=message):
        check_store(store_at(place, key="executor.storage"), key="executor.storage")


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_store(Store(str(tmp_path)), key="executor.storage")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_not_made() -> None:
    file = Path(__file__)
    for call in (
        Store("s3://another/sweeps").check,
        lambda: Store("s3://another/sweeps").put(file, "sweep-1/0000/file"),
        lambda: Store("s3://another").put(file, "sweep-1/0000/file"),
    ):
        with pytest.raises(StoreError, match="cannot write to s3://another") as caught:
            call()
        assert not caught.value.passing


def test_a_server_that_has_gone_may_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server(tmp_path)
    server.reach(monkeypatch)
    store = Store(f"s3://{server.bucket}/sweeps")
    with pytest.raises(StoreError, match="cannot write to s3://sweeps/sweeps") as caught:
        store.put(Path(__file__), "a")
    assert caught.value.passing
    assert pickle.loads(pickle.dumps(caught.value)).passing


def test_a_fault_is_retried_with_pauses_in_which_nothing_is_held(tmp_path: Path) -> None:
    held, pauses = [], []

    @contextmanager
    def guard():
        held.append(time.perf_counter())
        yield
        pauses.append(time.perf_counter())

    store = Store(f"faulty://{tmp_path}")
    with failing(at({0, 1}, TimeoutError("slow"))):
        assert retried(lambda: store.names(""), guard=guard, pauses_s=(0.05, 0.1, 30.0)) == []
    assert len(held) == 3
    assert held[2] - held[0] > 0.15

    with failing(at({0, 1}, TimeoutError("slow"))), pytest.raises(StoreError, match="slow"):
        retried(lambda: store.names(""), pauses_s=(0.0,))
