"""A folder that the processes of several machines reach: a path, or any URL of fsspec's."""

import errno
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs

from autoprune.domain.errors import AutopruneError, first_line, shown, unknown
from autoprune.domain.protocols import StepGuard

Found = TypeVar("Found")

PAUSES_S = (0.5, 2.0, 8.0)
"""How long to wait before each further attempt at what a store did not do."""

LOGIN = "fsspec's own configuration (FSSPEC_<PROTOCOL>_<KEY> or ~/.config/fsspec)"

_LASTING = (
    FileExistsError,
    FileNotFoundError,
    ImportError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    PermissionError,
    TypeError,
    ValueError,
)
_FULL = (errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS)
"""What would happen again at the next attempt: these errors, and those that say no room."""


class StoreError(AutopruneError):
    """What a store did not do; `passing` tells whether it may do so soon."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Store:
    """A folder by its path or URL. Names in it have slashes between their parts.

    How to log in and where to is no part of the URL: fsspec finds it in the environment and the
    configuration of whichever process comes here. All methods raise StoreError.
    """

    url: str

    @property
    def is_path(self) -> bool:
        """Whether it is a folder of this machine's file system, which others may have mounted."""
        return _is_path(self.url)

    def names(self, folder: str) -> list[str]:
        """What is in a folder; nothing where there is no such folder."""
        with self._reached("list") as (files, root):
            try:
                paths = files.ls(f"{root}/{folder}", detail=False)
            except FileNotFoundError:
                return []
            return [str(path).rstrip("/").rpartition("/")[2] for path in paths]

    def put(self, file: Path, name: str) -> None:
        """Copy a local file here. A reader may find a part of it until this has returned."""
        with self._reached("write to") as (files, root):
            try:
                files.put_file(str(file), f"{root}/{name}")
            except FileNotFoundError:
                # where folders are more than a part of the name; never the store's own, for that
                # may be a bucket
                for folder in reversed(PurePosixPath(name).parents[:-1]):
                    with suppress(FileExistsError):
                        files.mkdir(f"{root}/{folder}", create_parents=False)
                files.put_file(str(file), f"{root}/{name}")

    def get(self, name: str, file: Path) -> bool:
        """Copy what is here to a local file; whether it was here."""
        with self._reached("read from") as (files, root):
            try:
                files.get_file(f"{root}/{name}", str(file))
            except FileNotFoundError:
                return False
            return True

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it, if it is here."""
        with self._reached("delete from") as (files, root), suppress(FileNotFoundError):
            files.rm(f"{root}/{name}", recursive=True)

    def read(self, name: str) -> bytes | None:
        """What a file holds; None where it is not here."""
        with self._reached("read from") as (files, root):
            try:
                return bytes(files.cat_file(f"{root}/{name}"))
            except FileNotFoundError:
                return None

    @contextmanager
    def trace(self) -> Iterator[tuple[str, bytes]]:
        """A file by which others can tell that they see the same: its name, and what it holds.

        It is read back, and deleted in the end.
        """
        name, data = f".autoprune-{secrets.token_hex(8)}", secrets.token_bytes(16)
        with self._reached("write to") as (files, root):
            files.pipe_file(f"{root}/{name}", data)
        try:
            if self.read(name) != data:
                raise StoreError(f"{self.url} does not give back what was written there")
            yield name, data
        finally:
            self.remove(name)

    def check(self) -> None:
        """Raise StoreError unless this process can write, read and delete here."""
        with self.trace():
            pass

    @contextmanager
    def _reached(self, doing: str) -> Iterator[tuple[Any, str]]:
        """The file system and the path of this folder there; faults inside become StoreError."""
        try:
            files, path = url_to_fs(self.url)
            files.invalidate_cache()  # listings, which other processes change
            yield files, path.rstrip("/")
        except StoreError:
            raise
        except Exception as error:  # every implementation has errors of its own
            lasting = isinstance(error, _LASTING) or getattr(error, "errno", None) in _FULL
            why = f"cannot {doing} {self.url} ({type(error).__name__}: {shown(first_line(error))})"
            raise StoreError(why, passing=not lasting) from error

    def __str__(self) -> str:
        return self.url


def store_at(place: str, *, key: str) -> Store:
    """The store that a user names under `key`. Raises AutopruneError where there can be none.

    Nothing is asked of it yet.
    """
    said = f"{key}={shown(place)!r}"
    protocol = _protocol(place)
    if shown(place) != place:
        raise AutopruneError(
            f"{said} holds a password, which would stand in the journal and wherever the "
            f"configuration is shown; leave it out, and give it by {LOGIN}, here and on all nodes"
        )
    folder = place.rpartition("://")[2]
    if not folder.strip("/") or (_is_path(place) and not folder.startswith("/")):
        raise AutopruneError(
            f"{said}: name a folder from the root on, like /mnt/sweeps, or give a URL, like "
            "s3://bucket/sweeps, because every node looks for it by itself"
        )
    if protocol == "memory":
        raise AutopruneError(
            f"{said} is in the memory of one process, which no other one sees; name a folder or "
            "a URL that all nodes reach"
        )
    known = {*fsspec.available_protocols(), *fsspec.registry}
    if protocol not in known:
        raise unknown(f"{said}: protocol", protocol, known)
    return Store(place)


def check_store(store: Store, *, key: str) -> None:
    """Raise AutopruneError, with the remedy, unless this process can use a store."""
    try:
        store.check()
    except StoreError as error:
        remedy = (
            "the folder or bucket must be there, and this process must be let in to write, read "
            f"and delete: its login is {LOGIN}"
        )
        if isinstance(error.__cause__, ImportError):
            remedy = "install that package with pip, here and on all nodes"
        raise AutopruneError(f"{key}: {error}; {remedy}") from error


def retried(
    call: Callable[[], Found],
    *,
    guard: StepGuard = nullcontext,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Found:
    """What `call` gives. After a StoreError that may pass it is called again, after each pause.

    `guard` surrounds every call, and no pause.
    """
    for pause_s in pauses_s:
        try:
            with guard():
                return call()
        except StoreError as error:
            if not error.passing:
                raise
        time.sleep(pause_s)
    with guard():
        return call()


def _is_path(place: str) -> bool:
    return _protocol(place) in ("file", "local")


def _protocol(place: str) -> str:
    """The protocol of a URL, of the first one in a chain; ``file`` of a path."""
    return place.partition("://")[0].partition("::")[0] if "://" in place else "file"
