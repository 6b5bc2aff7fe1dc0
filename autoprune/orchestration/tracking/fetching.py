"""Fetching a model's files from a store that may be hostile: in a process of its own, in bounds.

MLflow's client writes what a server lists, wherever it says that files are, as long as it sends.
The process that runs it may write to one folder, so much to a file, and take so much memory; the
one that waits for it looks at how much there is, and ends it.
"""

import ctypes
import os
import resource
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
from mlflow.artifacts import download_artifacts
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories

from autoprune.domain.errors import AutopruneError
from autoprune.orchestration.environment import QUIET_DOWNLOADS, environment
from autoprune.orchestration.fresh import in_watched_process
from autoprune.orchestration.tracking.connection import process_store
from autoprune.orchestration.untrusted import UntrustedError, memory

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much a server may send for one model: `most` bytes, or what would fit into memory.

    `memory` is what the process may take besides, as for a list of files that does not end.
    """

    most: int | None = None
    files: int = 1000
    seconds: float = 3600.0
    memory: int = 8 * GIB


def fetch(uri: str, store: str | None, place: Path, *, bounds: Bounds | None = None) -> Path:
    """Put a model's files, by its MLflow URI, into the empty folder `place`; where they are there.

    `store` is the tracking store, None the one of this process. Raises FreshProcessError where the
    files cannot be had, and UntrustedError where they are more than `bounds` allow.
    """
    bounds = bounds or Bounds()
    most = bounds.most
    if most is None:
        most = min(memory(), shutil.disk_usage(place).free // 2)
    with process_store(store or mlflow.get_tracking_uri()):
        stores = (mlflow.get_tracking_uri(), mlflow.get_registry_uri())
    found: str = in_watched_process(
        _fetched,
        *(uri, str(place), stores, most, bounds.memory),
        watch=lambda: _check_amount(place, most, bounds.files),
        limit_s=bounds.seconds,
    )
    return place / found


def _check_amount(place: Path, most: int, files: int) -> None:
    """Raise UntrustedError where more has come than may."""
    size = count = 0
    for folder, _, names in os.walk(place):
        count += 1 + len(names)
        for name in names:
            try:
                size += (Path(folder) / name).lstat().st_blocks * 512
            except FileNotFoundError:  # renamed meanwhile
                continue
    if size > most or count > files:
        raise UntrustedError(
            f"the store has sent {count} files and folders with {size} bytes; {files} with {most} "
            "at most are taken: look at what it has there"
        )


def _fetched(uri: str, place: str, stores: tuple[str, str], most: int, memory_most: int) -> str:
    """Download into `place`; the path there. Runs in a process of its own."""
    tracking, registry = stores
    if urlsplit(tracking).scheme in ("http", "https"):
        _write_below(place)
        repositories: Any = get_registered_artifact_repositories()
        repositories.update(dict.fromkeys(("", "file"), _refuse))
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    resource.setrlimit(resource.RLIMIT_AS, (memory_most, memory_most))
    tempfile.tempdir = place
    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(registry)
    with environment(QUIET_DOWNLOADS):
        found = Path(download_artifacts(artifact_uri=uri, dst_path=place))
    return str(found.resolve().relative_to(Path(place).resolve()))


def _refuse(artifact_uri: str, **_: object) -> None:
    raise AutopruneError(
        f"the server says that the model lies in {artifact_uri!r} on this machine; servers keep "
        "models themselves"
    )


_WRITES, _TRUNCATE = 0x1FF2, 0x4000
"""Landlock's rights to write, make and remove; from its third version on to cut files, too."""


def _write_below(place: str) -> None:
    """Let this process write to one folder only, where Linux has Landlock (5.13)."""
    libc = ctypes.CDLL(None, use_errno=True)
    create, add, restrict, no_new_privileges = 444, 445, 446, 38
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return
    rights = _WRITES | (_TRUNCATE if version >= 3 else 0)
    rules = libc.syscall(create, struct.pack("Q", rights), 8, 0)
    folder = os.open(place, os.O_PATH)
    done = (
        libc.syscall(add, rules, 1, struct.pack("=Qi", rights, folder), 0),
        libc.prctl(no_new_privileges, 1, 0, 0, 0),
        libc.syscall(restrict, rules, 0),
    )
    if any(done):
        raise OSError(ctypes.get_errno(), "Landlock refuses to confine this process")
