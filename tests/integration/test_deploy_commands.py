"""The commands of deploy/'s images and services, run here as plain processes on loopback."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.tracking.connection import check
from tests.deployment import DEPLOY, instructions, services
from tests.servers import Postgres, free_port, programs_of_postgresql

pytestmark = pytest.mark.slow  # servers that import all of MLflow
ADMIN, PASSWORD = "administrator", "a password for this test"
FILLED_IN = {
    "POSTGRES_PASSWORD": "another password",
    "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
    "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key for this test",
}
"""What deploy/.env would hold."""
START_S = 240.0


@dataclass(frozen=True)
class Server:
    """MLflow as compose starts it, at `uri`; `environment` is what it was started with."""

    uri: str
    environment: Mapping[str, str]

    def ask(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.uri}{path}", timeout=60, **options)


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, which ends with all that it started."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, **options
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself, with all it had started
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def postgresql(folder: Path) -> Iterator[dict[str, str]]:
    """A PostgreSQL as compose's image makes it; what tells a client where it is."""
    if programs_of_postgresql() is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    database = Postgres(folder, FILLED_IN["POSTGRES_PASSWORD"]).create()
    try:
        yield database.where
    finally:
        database.kill()


def environment_of(service: Mapping[str, Any]) -> dict[str, str]:
    """The environment that compose makes of a service's, where `FILLED_IN` is all that is set."""

    def filled(found: re.Match[str]) -> str:
        name, how, word = found.groups()
        return FILLED_IN[name] if how == ":?" else FILLED_IN.get(name, word)

    given = {name: value for name, value in service["environment"].items() if value is not None}
    return {k: re.sub(r"\$\{(\w+)(:[?-])(.*?)\}", filled, v) for k, v in given.items()}


def with_sqlite(folder: Path) -> dict[str, str]:
    """What stands for PostgreSQL where there is none."""
    text = (DEPLOY / "mlflow/basic_auth.ini").read_text()
    ini = folder / "basic_auth.ini"
    ini.write_text(text.replace("postgresql+psycopg://", f"sqlite:///{folder / 'auth.db'}"))
    store = f"sqlite:///{folder / 'mlflow.db'}"
    return {"MLFLOW_AUTH_CONFIG_PATH": str(ini), "MLFLOW_BACKEND_STORE_URI": store}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("mlflow")
    if request.param == "sqlite":
        with served(folder, with_sqlite(folder)) as found:
            yield found
        return
    # beside pytest's folders, which only their owner may enter
    with tempfile.TemporaryDirectory(prefix="postgresql-") as place:
        Path(place).chmod(0o755)
        (Path(place) / "server").mkdir()
        ini = {"MLFLOW_AUTH_CONFIG_PATH": str(DEPLOY / "mlflow/basic_auth.ini")}
        with (
            postgresql(Path(place) / "server") as where,
            served(folder, {**ini, **where}) as found,
        ):
            yield found


@contextmanager
def served(folder: Path, differently: Mapping[str, str]) -> Iterator[Server]:
    service, port = services()["mlflow"], free_port()
    program, *words = service["command"]
    assert program == "mlflow"
    here = {"--host=0.0.0.0": "--host=127.0.0.1", "--port=5000": f"--port={port}"}
    assert here.keys() <= set(words)
    environment = {
        **environment_of(service),
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "artifacts"),
        **differently,
    }
    command = [sys.executable, "-m", "mlflow", *(here.get(word, word) for word in words)]
    log = folder / "server.log"
    with running(command, log, cwd=folder, env=environment) as process:
        found = Server(f"http://127.0.0.1:{port}", environment)
        until = time.monotonic() + START_S
        while True:
            try:
                if found.ask("/health").ok:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < until, log.read_text()[-3000:]
                time.sleep(0.5)
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
    with pytest.raises(AutopruneError, match="no MLflow store answers at"):
        check(server.uri)


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
