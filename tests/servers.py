"""Real servers on free ports of this machine: MLflow, PostgreSQL for it, and S3."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest
import requests
from fsspec.config import set_conf_env

START_S = 120.0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def family(process: int) -> list[psutil.Process]:
    """A process and all that it started, and those started; none where it has ended."""
    try:
        parent = psutil.Process(process)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal; who has ended already needs none."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@dataclass
class MlflowServer:
    """A server process that keeps everything in `folder`; it may be killed and started again.

    `store` is where runs are kept, None a sqlite file in `folder`.
    """

    folder: Path
    port: int = field(default_factory=free_port)
    store: str | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "MlflowServer":
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        store = self.store or f"sqlite:///{self.folder / 'mlflow.db'}"
        command += ["--backend-store-uri", store]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        off = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**os.environ, **off},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait()
        return self

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it where it is: it takes connections and answers none."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def _wait(self) -> None:
        assert self._process is not None
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (OSError, urllib.error.URLError):
                if self._process.poll() is not None:
                    break
                time.sleep(0.2)
        log = (self.folder / "server.log").read_text()[-2000:]
        self.kill()
        raise RuntimeError(f"the MLflow server did not start:\n{log}")


def programs_of_postgresql() -> Path | None:
    """Where PostgreSQL's server programs are; None where they are not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[4])
    return found[-1].parent if found else None


@dataclass
class Postgres:
    """A PostgreSQL of one database ``mlflow``, as compose's image makes it.

    Its `folder` is one of its own that everybody may enter: the server refuses to run as root.
    """

    folder: Path
    password: str
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def where(self) -> dict[str, str]:
        """What tells a client in its environment where the database is."""
        place = {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGDATABASE": "mlflow"}
        return {**place, "PGUSER": "mlflow", "PGPASSWORD": self.password}

    @property
    def uri(self) -> str:
        secret = urllib.parse.quote(self.password)
        return f"postgresql+psycopg://mlflow:{secret}@127.0.0.1:{self.port}/mlflow"

    def create(self) -> "Postgres":
        """Make the database, and start it."""
        if self._who:
            shutil.chown(self.folder, "postgres")
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        named = ["--username=mlflow", f"--pwfile={secret}", "--auth=scram-sha-256"]
        self._run("initdb", "-D", str(self._data), *named, **self._who)
        self.start()
        self._run("createdb", "mlflow", env={**os.environ, **self.where})
        return self

    def start(self) -> None:
        listen = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder)]
        log = self.folder.parent / f"{self.folder.name}.log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [self._program("postgres"), "-D", str(self._data), *listen],
                cwd=self.folder,
                stdout=file,
                stderr=file,
                start_new_session=True,
                **self._who,
            )
        until = time.monotonic() + START_S
        asked = [self._program("pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(asked, capture_output=True, check=False).returncode:
            assert self._process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.1)

    def kill(self) -> None:
        """End it at once, with everything that it started."""
        if self._process is not None:
            signal_all(family(self._process.pid), signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it where it is: it takes connections and answers none."""
        assert self._process is not None
        signal_all(family(self._process.pid), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        signal_all(family(self._process.pid), signal.SIGCONT)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _who(self) -> dict[str, Any]:
        return {"user": "postgres"} if os.geteuid() == 0 else {}

    def _program(self, name: str) -> str:
        programs = programs_of_postgresql()
        assert programs is not None, "PostgreSQL's server is not installed"
        return str(programs / name)

    def _run(self, name: str, *words: str, **options: Any) -> None:
        command = [self._program(name), *words]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **options)


@dataclass
class S3Server:
    """Object storage that speaks S3, with one bucket; what it holds is gone when it is killed."""

    folder: Path
    bucket: str = "sweeps"
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find it, and to be let in."""
        return {
            "FSSPEC_S3_ENDPOINT_URL": self.url,
            "FSSPEC_S3_KEY": "testing",
            "FSSPEC_S3_SECRET": "testing",
        }

    def reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have fsspec find it, in this process and in those that it starts."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        conf: dict[str, dict[str, object]] = {}
        set_conf_env(conf)
        monkeypatch.setitem(fsspec.config.conf, "s3", conf["s3"])

    def start(self) -> "S3Server":
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with (self.folder / "s3.log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while True:
            try:
                requests.put(f"{self.url}/{self.bucket}", timeout=5).raise_for_status()
            except requests.ConnectionError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    said = (self.folder / "s3.log").read_text()[-2000:]
                    raise RuntimeError(f"the S3 server did not start:\n{said}") from error
                time.sleep(0.1)
            else:
                return self

    def kill(self) -> None:
        """End it at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
