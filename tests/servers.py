"""Real servers on free ports of this machine, for tests that need one: MLflow, and S3."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
import requests
from fsspec.config import set_conf_env

START_S = 120.0


def free_port() -> int:
    """A port of the loopback address that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@dataclass
class MlflowServer:
    """A server process that keeps everything in `folder`; it may be killed and started again."""

    folder: Path
    port: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.port == 0:
            self.port = free_port()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "MlflowServer":
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
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
