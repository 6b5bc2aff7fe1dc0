"""Starting Ray on this machine, where nobody else reaches it.

Whoever may talk to Ray runs code as its user. So it listens on the loopback address, asks for a
token that its user alone can read, and keeps its sockets where nobody else can put others.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray
from ray._private import ray_constants

from autoprune.measurement.private import private_folder
from autoprune.orchestration.executors.ray_settings import OPTIONS


def start_here(cpus: int) -> None:
    """Start a Ray of `cpus` cores and join it."""
    _keep_token_private()
    with _loopback():
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            # memory is bookkeeping like cores: Ray would offer what is free at this moment
            _memory=psutil.virtual_memory().total,
            _temp_dir=_temp_dir(),
            # nobody reads them here, and who may connect could, without a token
            _system_config={"enable_metrics_collection": False},
            **OPTIONS,
        )


@contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray take the loopback address as its node's, and listen nowhere else.

    Ray 2.60 does so where it knows no clusters, on macOS and Windows. Elsewhere it puts the address
    of a network in the place of 127.0.0.1, whoever asks for that, and listens on all of them.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _keep_token_private() -> None:
    """Make Ray's token, if there is none, so that its user alone can read it.

    Ray 2.60 would write it with the rights of any file, which mostly lets everybody read.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    path = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # Ray will say what is wrong
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as draft:
            draft.write(secrets.token_hex(32))
            draft.flush()
            with suppress(FileExistsError):
                path.hardlink_to(draft.name)
        path.chmod(0o600)


def _temp_dir() -> str | None:
    """Where Ray keeps logs, sockets and the numbers of ports: nobody else can enter it.

    Ray 2.60 makes folders below its own that everybody may write, so that another user of the
    machine could put a socket in the place of Ray's. None where the user has chosen one.
    """
    if "RAY_TMPDIR" in os.environ:
        return None
    remedy = "set RAY_TMPDIR, or TMPDIR, to a local folder that you alone can write"
    return str(private_folder(None, whose="Ray on this machine", remedy=remedy) / "ray")
