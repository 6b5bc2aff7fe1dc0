"""The tracking store: whether it answers, has the schema that is expected, and takes runs."""

import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.rest_utils import http_request
from requests import Response

from autoprune.domain.errors import AutopruneError, shown
from autoprune.orchestration.doctor.clocks import Offset, of_date
from autoprune.orchestration.doctor.findings import Verdict, fault, ok, warning
from autoprune.orchestration.doctor.schema import SchemaState, schema_of, schema_verdict
from autoprune.orchestration.doctor.storage import network_of
from autoprune.orchestration.environment import QUIET_DOWNLOADS, environment
from autoprune.orchestration.folders import check_writable, made
from autoprune.orchestration.tracking.connection import (
    artifact_root,
    check,
    check_reached,
    complaint,
    missing_file,
    short_requests,
    sqlite_file,
)
from autoprune.orchestration.tracking.finding import find_or_make_experiment

REQUEST_S = 10.0
FILE = "doctor.txt"


@dataclass(frozen=True, slots=True)
class TrackingStore:
    """A tracking store, and the experiment to which a sweep's runs would go."""

    uri: str
    experiment: str

    @property
    def is_server(self) -> bool:
        """Whether it is an MLflow server, which is reached by HTTP; otherwise it is a database."""
        return urlsplit(self.uri).scheme in ("http", "https")

    def verdicts(self) -> Iterator[Verdict]:
        """Everything about it, up to the first fault. Raises AutopruneError where none answers.

        A database is looked at before MLflow opens it, for MLflow 3.17 brings some older ones up to
        date unasked.
        """
        file = missing_file(self.uri)
        if file is not None:
            check_writable(file.parent)
            yield from _of_file(file)
            yield ok(f"the first sweep makes {file}")
            return
        check_reached(self.uri)
        if self.is_server:
            check(self.uri)
            yield _of_server(self.uri)
        elif urlsplit(self.uri).scheme != "databricks":
            file = sqlite_file(self.uri)
            if file is not None:
                yield from _of_file(file)
            schema = schema_of(self.uri)
            yield schema_verdict(self.uri, schema)
            if schema.state is not SchemaState.CURRENT:
                return
        with short_requests(REQUEST_S):
            yield from _of_runs(self)

    def offset(self) -> Offset | None:
        """How far the server's clock is ahead of ours; None where its answers have no date."""
        asked = time.time()
        answer = _version(self.uri)
        header = answer.headers.get("Date")
        return None if header is None else of_date(header, asked, time.time())


def version_verdict(there: str, here: str) -> Verdict:
    """Whether client and server of two versions of MLflow understand each other."""
    told = f"the server is MLflow {there}, this process has {here}"
    if there.partition(".")[0] == here.partition(".")[0]:
        return ok(told)
    return fault(
        told, f"run both with one major version: mlflow=={here} on the server, or its here"
    )


def _of_file(file: Path) -> Iterator[Verdict]:
    kind = network_of(file.parent)
    if kind is not None:
        yield warning(
            f"{file} is on a network file system ({kind}), where sqlite's locks are not to be "
            "relied on",
            "set tracking.uri to an MLflow server, or to a sqlite file on a local disk",
        )


def _of_server(uri: str) -> Verdict:
    answer = _version(uri)
    if answer.status_code == HTTPStatus.OK:
        return version_verdict(answer.text.strip(), mlflow.__version__)
    return warning(
        f"the server at {shown(uri)} does not tell its version (HTTP {answer.status_code})",
        "look whether tracking.uri leads to an MLflow server, and through which proxy",
    )


def _version(uri: str) -> Response:
    found: Response = http_request(  # type: ignore[no-untyped-call]
        get_default_host_creds(uri),  # type: ignore[no-untyped-call]
        "/version",
        "GET",
        max_retries=0,
        timeout=REQUEST_S,
        raise_on_status=False,
    )
    return found


def _of_runs(store: TrackingStore) -> Iterator[Verdict]:
    """Make a run where a sweep's would be, log to it, and delete it.

    Where there is no such experiment it is made in another one, which is deleted, too: a deleted
    one of the sweep's name would be in its way.
    """
    client = MlflowClient(tracking_uri=store.uri)
    with _taking(store), ExitStack() as stack:
        known = client.get_experiment_by_name(store.experiment) is not None
        name = store.experiment if known else f"autoprune-doctor-{secrets.token_hex(4)}"
        experiment_id = find_or_make_experiment(client, name, artifact_root(store.uri))
        if not known:
            stack.callback(_forget_experiment, client, experiment_id)
        run = client.create_run(experiment_id, run_name="autoprune doctor")
        stack.callback(_forget_run, client, run.info.run_id)
        client.log_metric(run.info.run_id, "doctor", 1.0)
        where = f"experiment {store.experiment!r}"
        new = "" if known else ", which the first sweep makes"
        yield ok(f"{shown(store.uri)} takes runs and deletes them ({where}{new})")
        yield from _of_artifacts(store, client, run)


@contextmanager
def _taking(store: TrackingStore) -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        raise AutopruneError(
            f"the MLflow store at {shown(store.uri)} takes no run of experiment "
            f"{store.experiment!r} ({complaint(error)}); give this login the right to edit it, or "
            "set tracking.experiment to another one"
        ) from error


def _of_artifacts(store: TrackingStore, client: MlflowClient, run: Run) -> Iterator[Verdict]:
    """Keep a file with a run, read it back, and delete it."""
    place, word = str(run.info.artifact_uri), secrets.token_hex(8)
    local = urlsplit(place).scheme in ("", "file")
    if local and store.is_server:
        yield warning(
            f"the server keeps artifacts in {place}, a folder of whichever machine writes them",
            "start the server with --artifacts-destination, so that it keeps them itself",
        )
        return
    try:
        with ExitStack() as stack:
            if local:
                folder = Path(local_file_uri_to_path(place))  # type: ignore[no-untyped-call]
                stack.enter_context(made(folder))
            kept = get_artifact_repository(place, tracking_uri=store.uri)
            stack.callback(kept.delete_artifacts)
            client.log_text(run.info.run_id, word, FILE)
            back = stack.enter_context(tempfile.TemporaryDirectory())
            with environment(QUIET_DOWNLOADS):
                found = Path(client.download_artifacts(run.info.run_id, FILE, back)).read_text()
    except Exception as error:  # the libraries of object stores raise what they like
        yield fault(
            f"artifacts cannot be kept at {shown(place)} ({type(error).__name__}: "
            f"{complaint(error)})",
            "give this process what it takes to write, read and delete there: rights, login, and "
            "the package of the object store; or let the server do it (--artifacts-destination)",
        )
        return
    if found == word:
        yield ok(f"artifacts are kept, read back and deleted at {shown(place)}")
    else:
        yield fault(
            f"what was kept at {shown(place)} is not what is read there",
            "look for a cache or a proxy between this process and the store",
        )


def _forget_run(client: MlflowClient, run_id: str) -> None:
    client.delete_run(run_id)
    _purge(client, "_hard_delete_run", run_id)


def _forget_experiment(client: MlflowClient, experiment_id: str) -> None:
    client.delete_experiment(experiment_id)
    _purge(client, "_hard_delete_experiment", experiment_id)


def _purge(client: MlflowClient, method: str, key: str) -> None:
    """Delete for good what was deleted: in a database, while a server keeps it for `mlflow gc`."""
    purge = getattr(client._tracking_client.store, method, None)
    if purge is not None:
        purge(key)
