"""A team's MLflow as deploy/compose.yaml has it, run here as plain processes."""

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

import pytest
import requests

from tests.deployment import DEPLOY, services
from tests.servers import Postgres, free_port, programs_of_postgresql

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


@contextmanager
def with_postgresql() -> Iterator[dict[str, str]]:
    """A PostgreSQL of its own; what tells MLflow of it."""
    # beside pytest's folders, which only their owner may enter
    with tempfile.TemporaryDirectory(prefix="postgresql-") as place:
        Path(place).chmod(0o755)
        (Path(place) / "server").mkdir()
        with postgresql(Path(place) / "server") as where:
            yield {"MLFLOW_AUTH_CONFIG_PATH": str(DEPLOY / "mlflow/basic_auth.ini"), **where}


@contextmanager
def served(
    folder: Path, differently: Mapping[str, str], *, host: str = "127.0.0.1"
) -> Iterator[Server]:
    """MLflow, started as compose starts it, on a free port of `host`."""
    service, port = services()["mlflow"], free_port()
    program, *words = service["command"]
    assert program == "mlflow"
    here = {"--host=0.0.0.0": f"--host={host}", "--port=5000": f"--port={port}"}
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
        found = Server(f"http://{host}:{port}", environment)
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
