"""MLflow's pages: where a sweep is on them, and serving them on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit, urlunsplit

from mlflow import MlflowClient

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.tracking.connection import answering, check_existing
from autoprune.orchestration.tracking.finding import find_sweep_run

HOST = "127.0.0.1"
POLL_S = 0.2
PATIENCE_S = 5.0
"""How long the server may take to end by itself."""


def sweep_page(uri: str, experiment: str, sweep_id: str) -> str:
    """The path of a sweep's run on an MLflow server's page: ``#/experiments/...``.

    Raises AutopruneError where the store does not answer or has no such run.
    """
    check_existing(uri)
    with answering(uri):
        run = find_sweep_run(MlflowClient(tracking_uri=uri), experiment, sweep_id)
    if run is None:
        raise AutopruneError(
            f"sweep {sweep_id} is not in the MLflow store; it ran with tracking=none, or to "
            "another tracking.uri"
        )
    return f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def without_login(uri: str) -> str:
    """The address of a server's pages, for which a browser asks who it is.

    >>> without_login("https://me:secret@host/mlflow")
    'https://host/mlflow'
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def check_port(port: int) -> None:
    """Raise AutopruneError unless a server can listen on the port of the loopback address."""
    if not 1 <= port <= 65535:
        raise AutopruneError(f"port={port}: a port lies between 1 and 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise AutopruneError(
                f"port {port} on {HOST} cannot be used ({error.strerror}); set port= to a free one"
            ) from error


def serve(uri: str, *, port: int, on_ready: Callable[[], None]) -> None:
    """Serve a store's pages on the loopback address until Ctrl-C or SIGTERM.

    `on_ready` is called once the pages answer. Nothing of the server is left afterwards. Raises
    AutopruneError where the port cannot be used, or the server ends by itself.
    """
    check_port(port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    # The URI goes by the environment: a password in it would be seen in the list of processes.
    # MLflow 3.17 starts more processes for jobs, which nothing here uses.
    settings = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with ExitStack() as undo:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        undo.callback(signal.signal, signal.SIGTERM, before)
        # in a session of its own: Ctrl-C comes to us alone, and we end the server with its workers
        server = subprocess.Popen(command, env={**os.environ, **settings}, start_new_session=True)
        undo.callback(_end, server)
        try:
            _await(server, f"http://{HOST}:{port}/health")
            if server.poll() is None:
                on_ready()
            code = server.wait()
        except KeyboardInterrupt:
            return
    raise AutopruneError(
        f"the MLflow server ended with exit code {code}; what it said stands above"
    )


def _await(server: subprocess.Popen[bytes], address: str) -> None:
    """Return once the server answers, or has ended."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=POLL_S):
                return
        except OSError:
            time.sleep(POLL_S)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and every process of its session."""
    for order, patience_s in ((signal.SIGTERM, PATIENCE_S), (signal.SIGKILL, None)):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, order)
        with suppress(subprocess.TimeoutExpired):
            server.wait(patience_s)
