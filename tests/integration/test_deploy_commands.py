"""The commands of deploy/'s images and services, run here as plain processes on loopback."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow.server
import pytest
from mlflow import MlflowClient

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.doctor.authentication import server_verdicts
from autoprune.orchestration.doctor.findings import State, ok
from autoprune.orchestration.doctor.tracking import TrackingStore
from autoprune.orchestration.tracking.connection import check
from tests.deployment import DEPLOY, instructions, services
from tests.team import ADMIN, PASSWORD, Server, served, with_postgresql, with_sqlite

pytestmark = pytest.mark.slow  # servers that import all of MLflow


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("mlflow")
    if request.param == "sqlite":
        with served(folder, with_sqlite(folder)) as found:
            yield found
        return
    with with_postgresql() as where, served(folder, where) as found:
        yield found


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/version",
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
        "/api/2.0/mlflow-artifacts/artifacts",
        "/api/2.0/mlflow/users/get?username=administrator",
    ],
)
def test_a_stranger_is_refused(server: Server, path: str) -> None:
    assert server.ask(path).status_code == 401
    assert server.ask(path, auth=(ADMIN, "a wrong password")).status_code == 401


def test_a_page_elsewhere_cannot_call_by_another_name(server: Server) -> None:
    answer = server.ask(
        "/api/2.0/mlflow/experiments/search?max_results=1",
        auth=(ADMIN, PASSWORD),
        headers={"Host": "stranger.example.com"},
    )
    assert answer.status_code == 403


def test_autoprune_says_that_it_is_not_let_in(server: Server) -> None:
    with pytest.raises(AutopruneError, match=r"does not let this process in .*; give the"):
        check(server.uri)


def test_the_doctor_finds_what_a_stranger_lacks(server: Server) -> None:
    with pytest.raises(AutopruneError, match="does not let this process in"):
        list(TrackingStore(server.uri, "examined").verdicts())
    (stranger,) = server_verdicts(server.uri)
    assert stranger == ok(f"{server.uri} refuses whoever has no login")


@pytest.mark.usefixtures("login")
def test_the_doctor_is_let_in_by_the_server_and_by_its_database(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE"):
        monkeypatch.setenv(name, server.environment.get(name, ""))
    client = MlflowClient(server.uri)
    database = server.environment["MLFLOW_BACKEND_STORE_URI"]
    for uri in (server.uri, database):
        before = {e.name for e in client.search_experiments()}
        found = list(TrackingStore(uri, "examined").verdicts())
        assert [verdict.state for verdict in found] == [State.OK] * 3, found
        assert {e.name for e in client.search_experiments()} == before
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.usefixtures("login")
def test_who_has_the_password_logs_runs_and_artifacts(server: Server, tmp_path: Path) -> None:
    check(server.uri)
    client = MlflowClient(server.uri)
    run = client.create_run(client.create_experiment("with a password"))
    client.log_metric(run.info.run_id, "accuracy", 0.5)
    (tmp_path / "front.json").write_text("[]")
    client.log_artifact(run.info.run_id, str(tmp_path / "front.json"))
    assert client.get_run(run.info.run_id).data.metrics == {"accuracy": 0.5}
    # kept by the server, which the client reaches for it
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    kept = Path(server.environment["MLFLOW_ARTIFACTS_DESTINATION"])
    assert [path.read_text() for path in kept.rglob("front.json")] == ["[]"]


@pytest.mark.usefixtures("login")
def test_a_user_for_sweeps_may_log_its_own(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    users = mlflow.server.get_app_client("basic-auth", tracking_uri=server.uri)
    users.create_user("sweeps", "a password of the sweeps")
    theirs = MlflowClient(server.uri).create_experiment("the administrator's")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "sweeps")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a password of the sweeps")
    client = MlflowClient(server.uri)
    run = client.create_run(client.create_experiment("a sweep's"))
    client.log_metric(run.info.run_id, "speedup", 2.0)
    client.create_registered_model("of a sweep")
    with pytest.raises(mlflow.MlflowException, match=r"403|[Pp]ermission denied"):
        client.create_run(theirs)


def test_the_health_check_of_compose_passes(server: Server) -> None:
    how, program, *words = services()["mlflow"]["healthcheck"]["test"]
    assert (how, program) == ("CMD", "python")
    words = [word.replace("http://127.0.0.1:5000", server.uri) for word in words]
    assert server.uri in words[-1]
    subprocess.run([sys.executable, *words], check=True, timeout=60)


def test_without_its_key_the_server_does_not_start(tmp_path: Path) -> None:
    missing = {"MLFLOW_FLASK_SERVER_SECRET_KEY": ""}
    with (
        pytest.raises(AssertionError, match="MLFLOW_FLASK_SERVER_SECRET_KEY"),
        served(tmp_path, {**with_sqlite(tmp_path), **missing}),
    ):
        pass


def test_the_entry_point_of_the_image_says_its_version() -> None:
    (entry_point,) = instructions(DEPLOY / "Dockerfile", "ENTRYPOINT")
    (program,) = json.loads(entry_point)
    done = subprocess.run(
        [Path(sys.executable).parent / program, "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch(r"autoprune \d+\.\d+\.\d+\n", done.stdout)
