"""Who would be let in: by the Ray cluster, which runs code for whoever is, and by MLflow."""

import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import ray
import requests
from mlflow.utils.credentials import get_default_host_creds, read_mlflow_creds

from autoprune.domain.errors import shown
from autoprune.orchestration.doctor.findings import Verdict, ok, warning
from autoprune.orchestration.tracking.connection import complaint

STRANGER = (
    "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1]).get_all_node_info()"
)
"""Asks for a cluster's state; `ray status` itself looks for 127.0.0.1 at a network's address."""

STRANGER_S = 40.0
"""How long a process without a token may take to be refused; it imports Ray first."""

REQUEST_S = 10.0

LOGIN_FILE = "~/.mlflow/credentials"
"""Where MLflow's client looks for its login."""


def ray_verdicts() -> Iterator[Verdict]:
    """Whether this process's cluster refuses whoever has no token, and ours is kept safe.

    A process without one asks the cluster for its state.
    """
    address = str(ray.get_runtime_context().gcs_address)
    stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    stranger["RAY_AUTH_MODE"] = "disabled"
    command = [sys.executable, "-c", STRANGER, address]
    try:
        done = subprocess.run(
            command, env=stranger, capture_output=True, text=True, timeout=STRANGER_S, check=False
        )
    except subprocess.TimeoutExpired:
        yield stranger_verdict(address, None, f"no answer in {STRANGER_S:g} s")
    else:
        yield stranger_verdict(address, done.returncode, done.stderr + done.stdout)
    yield from secret_verdicts(token_file(), "Ray's token")


def stranger_verdict(address: str, code: int | None, said: str) -> Verdict:
    """What became of `STRANGER` without a token; None where it came to no end."""
    if code == 0:
        return warning(
            f"the Ray cluster at {address} lets in whoever has no token: whoever reaches its ports "
            "runs code on every node",
            "run `ray get-auth-token --generate`, and start Ray on every node with that token and "
            "RAY_AUTH_MODE=token",
        )
    if "nauthenticated" in said or "uthentication" in said:
        return ok(f"the Ray cluster at {address} refuses whoever has no token")
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return warning(
        f"whether {address} asks for a token could not be found out ({(lines or ['no word'])[-1]})",
        "try it with `RAY_AUTH_MODE=disabled ray status --address=...`, which must be refused",
    )


def token_file() -> Path | None:
    """The file from which this process takes its token for Ray; None where it needs none."""
    if "RAY_AUTH_TOKEN" in os.environ:
        return None
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()


def secret_verdicts(file: Path | None, what: str) -> Iterator[Verdict]:
    """Whether a file that holds a secret, where there is one, is its owner's alone."""
    if file is None or not file.exists():
        return
    if exposed(file):
        yield warning(
            f"{what} in {file} can be read by other users of this machine "
            f"(mode {file.stat().st_mode & 0o777:o})",
            f"chmod 600 {file}",
        )
    else:
        yield ok(f"{what} in {file} can be read by its owner alone")


def exposed(file: Path) -> bool:
    """Whether group or others may read a file, and come to where it is."""
    place = file.resolve()
    return any(
        place.stat().st_mode & read
        and all(folder.stat().st_mode & enter for folder in place.parents)
        for read, enter in ((0o040, 0o010), (0o004, 0o001))
    )


def server_verdicts(uri: str) -> Iterator[Verdict]:
    """Whether an MLflow server refuses whoever has no login, and how safe ours is.

    Nothing is written: a stranger asks for an experiment without a name, which no server makes.
    """
    parts = urlsplit(uri)
    beyond = beyond_loopback(addresses_of(parts.hostname or ""))
    if "@" in parts.netloc:
        yield warning(
            f"tracking.uri {shown(uri)} holds a login: what is typed is seen in the list of "
            "processes, and a resume has to be given it again, since no journal keeps it",
            f"take it out of tracking.uri, and put it into {LOGIN_FILE} or "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    yield from secret_verdicts(Path(LOGIN_FILE).expanduser(), "MLflow's login")
    if parts.scheme == "http" and beyond and _has_login():
        yield warning(
            f"the login goes to {shown(uri)} unencrypted",
            "put TLS in front of the server, and set tracking.uri to https://",
        )
    try:
        status = _status_for_stranger(uri)
    except requests.RequestException as error:
        yield warning(
            f"whether {shown(uri)} asks for a login could not be found out ({complaint(error)})",
            "see what the check of the tracking server says",
        )
    else:
        yield anonymous_verdict(uri, status, beyond=beyond)


def anonymous_verdict(uri: str, status: int, *, beyond: bool) -> Verdict:
    """What an HTTP status tells of a server that a stranger wanted to write to.

    A page that asks for a login is often elsewhere; MLflow itself finds fault with the request.
    """
    if status in (401, 403) or 300 <= status < 400:
        return ok(f"{shown(uri)} refuses whoever has no login")
    if status not in (200, 400):
        return warning(
            f"whether {shown(uri)} asks for a login could not be found out (HTTP {status})",
            "look whether tracking.uri leads to an MLflow server, and through which proxy",
        )
    if not beyond:
        return ok(f"{shown(uri)} asks for no login, and is on this machine's loopback address")
    return warning(
        f"{shown(uri)} takes writes from everybody who reaches it",
        "start it with --app-name basic-auth, or let it listen on 127.0.0.1 behind a proxy that "
        "asks for a login",
    )


def addresses_of(host: str) -> list[str]:
    """The addresses that a host name leads to; none for one that nobody knows."""
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(host, None)]
    except OSError:
        return []


def beyond_loopback(addresses: Sequence[str]) -> bool:
    """Whether other machines may be at one of these addresses; of none nothing is known."""
    if not addresses:
        return True
    found = [ipaddress.ip_address(address.partition("%")[0]) for address in addresses]
    return not all(address.is_loopback for address in found)


def _has_login() -> bool:
    """Whether MLflow's client would send a password or a token."""
    found = read_mlflow_creds()
    return bool(found.password or os.environ.get("MLFLOW_TRACKING_TOKEN"))


def _status_for_stranger(uri: str) -> int:
    parts = urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    creds = get_default_host_creds(bare)  # type: ignore[no-untyped-call]
    answer = requests.post(
        f"{bare}/api/2.0/mlflow/experiments/create",
        json={"name": ""},
        # with an `auth` of its own requests does not look into ~/.netrc
        auth=lambda request: request,
        verify=creds.verify,
        timeout=REQUEST_S,
        allow_redirects=False,
    )
    return answer.status_code
