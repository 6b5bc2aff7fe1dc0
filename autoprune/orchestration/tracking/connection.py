"""The way to an MLflow store: checked before a sweep, quick to fail, shown without passwords."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from autoprune.domain.errors import AutopruneError, first_line, shown, without_passwords
from autoprune.orchestration.environment import environment

DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
SQLITE = "sqlite:///"
ADDRESS = "MLFLOW_TRACKING_URI"

REACH_S = 5.0
"""How long a store may take to answer at all."""


def check(uri: str) -> None:
    """Make sure that an MLflow store answers at `uri`; creates a database's tables.

    Tables are created here, in the one process that will write, because MLflow 3.17 fails where
    several processes open a fresh sqlite file. Raises AutopruneError within a few `REACH_S`.
    """
    check_reached(uri)
    # MLflow 3.17 tells at INFO of every table it makes
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    with _reaching(uri), short_requests(REACH_S):
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)


def check_reached(uri: str) -> None:
    """Make sure that there is somebody at `uri`, or a database; no table of one is touched.

    Raises AutopruneError within a few `REACH_S`.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in (*DEFAULT_PORTS, "sqlite", "databricks"):
        raise AutopruneError(
            f"tracking.uri {shown(uri)!r} is not a tracking server or database; "
            "use http(s)://host:port, sqlite:///path/mlflow.db or postgresql://..."
        )
    if ":***@" in uri or "=***" in uri:
        raise AutopruneError(
            f"tracking.uri was {uri}, and its password is written down nowhere; set {ADDRESS} to "
            "all of it in the environment, then run the same command again"
        )
    with _reaching(uri):
        if scheme in DEFAULT_PORTS:
            _knock(uri, scheme)
        if scheme not in ("http", "https", "databricks"):
            _connect(uri)


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    """Turn what keeps a store from answering inside into an AutopruneError that names it."""
    try:
        yield
    except (MlflowException, OSError, SQLAlchemyError, ValueError, ImportError) as error:
        if isinstance(error, MlflowException) and _status(error) in (401, 403):
            raise AutopruneError(
                f"the MLflow store at {shown(uri)} does not let this process in "
                f"({complaint(error)}); give the login in ~/.mlflow/credentials, or in "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error
        raise AutopruneError(
            f"no MLflow store answers at {shown(uri)} ({complaint(error)}); "
            "start the server or set tracking.uri"
        ) from without_passwords(error)


def _status(error: MlflowException) -> int:
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for every other store, and for one in memory."""
    path = uri.removeprefix(SQLITE).partition("?")[0]
    return Path(path) if uri.startswith(SQLITE) and path else None


def missing_file(uri: str) -> Path | None:
    """The file of a sqlite store that does not exist yet; None for every other store."""
    file = sqlite_file(uri)
    return None if file is None or file.exists() else file


def check_existing(uri: str) -> None:
    """`check`, and refuse a sqlite store that does not exist instead of creating it."""
    missing = missing_file(uri)
    if missing is not None:
        raise AutopruneError(
            f"there is no MLflow store {missing}; the sweep ran with tracking=none, or set the "
            "uri to where its store is now"
        )
    check(uri)


def recalled(uri: str) -> str:
    """The address of a store as it was written down, with the password that it has in the
    environment: nothing that autoprune writes holds one.
    """
    given = os.environ.get(ADDRESS, "")
    return given if shown(given) == uri else uri


def complaint(error: BaseException) -> str:
    """The first line of a store's error, without passwords."""
    return shown(first_line(error))


@contextmanager
def answering(uri: str) -> Iterator[None]:
    """Turn what a store answers badly inside into an AutopruneError that names it."""
    try:
        yield
    except MlflowException as error:
        raise AutopruneError(
            f"the MLflow store at {shown(uri)} failed ({complaint(error)}); mend it, then run "
            "the same command again"
        ) from without_passwords(error)


def artifact_root(uri: str) -> str | None:
    """Where a sqlite store keeps artifacts: beside its file. None leaves it to the server.

    MLflow would otherwise take ./mlruns of whatever directory the process happens to be in.
    """
    file = sqlite_file(uri)
    return None if file is None else (file.resolve().parent / "mlartifacts").as_uri()


def check_in_place(uri: str, location: str) -> None:
    """Raise AutopruneError where an experiment of a sqlite store keeps artifacts somewhere else.

    `location` is what the store says. MLflow notes it as an absolute path, so a folder that was
    moved or copied would go on writing to the old place, and what it promotes could not be loaded.
    """
    root = artifact_root(uri)
    ours = location.rpartition("/")[0]
    if root is not None and ours.endswith("/mlartifacts") and ours != root:
        raise AutopruneError(
            f"the store {shown(uri)} was moved or copied: its artifacts are noted at {location}; "
            "move the output folder back, or start a new sweep in a new one"
        )


def transient(error: Exception) -> bool:
    """Whether the same request may succeed later: no answer, an overloaded or failing server."""
    if isinstance(error, MlflowException):
        status = _status(error)
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    else:
        return isinstance(error, (OSError, sqlalchemy.exc.OperationalError))
    return status >= 500 or status in (408, 429)


@contextmanager
def process_store(uri: str) -> Iterator[None]:
    """The store at `uri` as the one of this process, inside.

    MLflow 3.17 looks models up there, whatever store it is told.
    """
    is_set = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    before = mlflow.get_tracking_uri() if is_set else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


@contextmanager
def short_requests(timeout_s: float) -> Iterator[None]:
    """Let MLflow's HTTP requests give up soon; by default they retry for four minutes.

    Nor does it ask for a run whenever one ends, to print its address with the password in it.

    MLflow 3.17 reads these settings from the environment at every request and takes them in no
    other way.
    """
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(timeout_s))),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    with environment(settings):
        yield


def _knock(uri: str, scheme: str) -> None:
    """Open and close a connection to the server's port; database drivers wait for minutes."""
    parts = urlsplit(uri)
    try:
        port = parts.port or DEFAULT_PORTS[scheme]
    except ValueError:
        # urllib's own words quote it, and it may be the beginning of a password
        told = "the port is no number up to 65535; write %2F for a / in a password"
        raise ValueError(told) from None
    if parts.hostname:
        socket.create_connection((parts.hostname, port), timeout=REACH_S).close()


def _connect(uri: str) -> None:
    """Open a database once; MLflow 3.17 would try ten times over more than a minute."""
    file = sqlite_file(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = sqlalchemy.create_engine(uri)
    except (ArgumentError, NoSuchModuleError) as error:
        raise ValueError(str(error)) from error
    try:
        with engine.connect() as connection:
            sqlalchemy.inspect(connection).get_table_names()
    finally:
        engine.dispose()
