"""Jobs of a cluster, and its dashboard, as autoprune finds them, without the cluster."""

import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RpcError
from ray.job_submission import JobDetails, JobStatus

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration import jobs as module
from autoprune.orchestration.executors import cluster
from autoprune.orchestration.jobs import MARK, Job, Jobs


def jobs(*names: str) -> Jobs:
    """The jobs of a cluster that was sent these, one a second, after one of somebody else's."""
    sent = [details("theirs", {}, 0)]
    sent += [details(name, {MARK: "0.1.0"}, at) for at, name in enumerate(names, start=1)]
    found = Jobs.__new__(Jobs)
    found.address = "http://head:8265"
    found._client = SimpleNamespace(list_jobs=lambda: sent)
    return found


def details(name: str, metadata: dict[str, str], at: int) -> JobDetails:
    return JobDetails(
        type="SUBMISSION",
        submission_id=name,
        entrypoint="",
        status=JobStatus.RUNNING,
        metadata=metadata,
        start_time=1000 * at,
    )


def test_a_job_is_found_by_its_id_and_the_latest_by_that_word() -> None:
    assert jobs("one", "two").find("one").id == "one"
    assert jobs("one", "two").find("latest").id == "two"


def test_a_job_that_is_not_autoprunes_is_not_found() -> None:
    with pytest.raises(AutopruneError, match="no job 'theirs' at http://head:8265; the latest are"):
        jobs("one", "two").find("theirs")
    with pytest.raises(AutopruneError, match=r"no job 'latest' .*; `autoprune submit` sends one"):
        jobs().find("latest")


class Dashboard(BaseHTTPRequestHandler):
    """One that asks everybody for a token."""

    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The host and port of one."""
    with HTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The host and port of somebody who takes connections and says nothing."""
    monkeypatch.setattr(cluster, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_dashboard_is_found_without_its_protocol(dashboard: str) -> None:
    """Ray 2.60 itself tries it as the port of a head for 40 s."""
    assert Jobs._dashboard(dashboard) == f"http://{dashboard}"


def test_a_sweep_does_not_join_a_dashboard(dashboard: str) -> None:
    for address in (dashboard, f"http://{dashboard}", "https://head"):
        with pytest.raises(AutopruneError, match=r"is a cluster's dashboard, .* at .*HEAD:6379"):
            cluster.check_address(address)


def test_nobody_waits_for_one_that_never_answers(silent: str) -> None:
    with pytest.raises(AutopruneError, match=r"no Ray cluster takes jobs at .*timed out"):
        Jobs(f"http://{silent}")
    with pytest.raises(AutopruneError, match=r"no Ray cluster answers at .*timed out"):
        cluster.check_address(silent)


@pytest.mark.parametrize("address", ["http://127.0.0.1:99999", "http://127.0.0.1:x", "[::1]:9999"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(AutopruneError, match="no Ray cluster takes jobs at"):
        Jobs(address)


def test_what_ray_cannot_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_address: str) -> str:
        raise RpcError("Timed out while waiting for GCS", None)

    monkeypatch.setattr(module, "get_address_for_submission_client", unreachable)
    with pytest.raises(
        AutopruneError, match=r"no Ray cluster takes jobs .*Timed out while waiting"
    ):
        Jobs("auto")


def test_why_a_job_failed_is_told_without_its_log() -> None:
    failed = details("one", {MARK: "0.1.0"}, 1)
    failed.message = "Exit code 2, last available logs (truncated to 20,000 chars):\nline\nline"
    assert Job.of(failed).message == "Exit code 2"


def test_what_is_to_be_stopped_is_what_runs() -> None:
    found = jobs("one", "two")
    sent = found._client.list_jobs()
    sent[-1].status = JobStatus.FAILED
    assert found.find("latest").id == "two"
    assert found.find("latest", to_stop=True).id == "one"
    for job in sent:
        job.status = JobStatus.SUCCEEDED
    assert found.find("latest", to_stop=True).id == "two"


def test_a_connection_that_is_cut_off_is_taken_up_where_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    found = jobs("one")
    (_, job) = found._client.list_jobs()
    connections = iter([["a", "bc"], ["abcd"], ["ab", "cdef", "g"]])

    async def tail(_id: str) -> AsyncIterator[str]:
        parts = next(connections)
        job.status = JobStatus.SUCCEEDED if len(parts) == 3 else JobStatus.RUNNING
        for part in parts:
            yield part

    found._client.tail_job_logs = tail
    assert list(found.follow(found.find("one"))) == ["a", "bc", "d", "ef", "g"]


def submitted(code: Path, submit_job: Any, *, output: str = "/shared/outputs") -> str:
    found = jobs()
    found._client = SimpleNamespace(submit_job=submit_job)
    command = ["autoprune", "sweep"]
    return found.submit(command, name="one", code=code, output=Path(output), stop_s=1)


def test_a_folder_that_the_dashboard_does_not_take_is_told_of(tmp_path: Path) -> None:
    def refuses(**_: Any) -> str:
        raise RuntimeError("Request failed with status code 413: Maximum request body size")

    with pytest.raises(AutopruneError, match=r"cannot be sent .*413.*what a sweep does not need"):
        submitted(tmp_path, refuses)


def test_what_is_no_file_stays_here(tmp_path: Path) -> None:
    """Ray 2.60 waits for a pipe to say something."""
    (tmp_path / "code.py").touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "sub" / "a [pipe]")
    sent: dict[str, Any] = {}
    submitted(tmp_path, lambda **facts: sent.update(facts) or "one")
    assert sent["runtime_env"]["excludes"] == ["/outputs/", r"/sub/a\ \[pipe\]"]


def test_earlier_sweeps_stay_here(tmp_path: Path) -> None:
    sent: dict[str, Any] = {}
    keep = tmp_path / "my results" / "all"
    submitted(tmp_path, lambda **facts: sent.update(facts) or "one", output=str(keep))
    assert sent["runtime_env"]["excludes"] == [r"/my\ results/all/", "/outputs/"]
