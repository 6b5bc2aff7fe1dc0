"""What several kinds of tests share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.servers import MlflowServer, S3Server

# MLflow reports usage to its makers unless told otherwise; tests reach for nothing outside.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# Tests run beside each other; threads of two that wait for each other on the same cores take many
# times as long as one does.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A law holds or does not; how long an example takes depends on who else uses the machine. What CI
# says of a change depends on the change: there the examples are the same every time.
settings.register_profile("autoprune", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("autoprune")


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite store with all tables and nothing in them; making one takes seconds."""
    from autoprune.orchestration.tracking.connection import check

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    check(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_uri(tmp_path: Path, mlflow_template: Path) -> str:
    """A fresh sqlite store of this test alone."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(scope="session")
def mlflow_server(
    tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path
) -> Iterator[MlflowServer]:
    """One MLflow server for all tests; those that kill it start it again."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    server = MlflowServer(folder).start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for all tests; those that kill one start their own."""
    server = S3Server(tmp_path_factory.mktemp("s3")).start()
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """That server, found by fsspec in this process and in those that it starts."""
    s3_server.reach(monkeypatch)
    return s3_server
