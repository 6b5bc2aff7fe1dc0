"""The lifeline to a cluster, on real sockets: who is there, who is gone, who hangs."""

import socket
import threading
import time

import pytest

from autoprune.orchestration.executors import lifeline as module
from autoprune.orchestration.executors.lifeline import lifeline


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"LOOK_S": 0.02, "SILENT_S": 0.2, "LEAVE_S": 0.2}.items():
        monkeypatch.setattr(module, name, seconds)


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=1000)


def test_what_is_there_is_not_gone() -> None:
    with listening() as part:
        found: list[str] = []
        with lifeline({"a part": part.getsockname()}, found.append, lambda: found.append("stuck")):
            time.sleep(0.6)
    assert found == []


def test_the_part_that_is_gone_is_named_once_and_whoever_leaves_in_time_is_not_stuck() -> None:
    gone, found = threading.Event(), list[str]()

    def note(part: str) -> None:
        found.append(part)
        gone.set()

    with listening() as one, listening() as other:
        parts = {"one": one.getsockname(), "other": other.getsockname()}
        with lifeline(parts, note, lambda: found.append("stuck")):
            other.close()
            assert gone.wait(30)
    assert found == ["other"]


def test_who_hangs_in_a_cluster_that_is_gone_is_stuck() -> None:
    stuck, found = threading.Event(), list[str]()
    with listening() as part:
        place = part.getsockname()
    with lifeline({"a part": place}, found.append, stuck.set):
        assert stuck.wait(30)
    assert found == ["a part"]
