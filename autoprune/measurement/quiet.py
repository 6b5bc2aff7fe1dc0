"""The node's quiet gate: training stops between two steps while somebody measures.

Two file locks in a per-user directory of the node. A trainer holds the *room* shared around
each step; a meter takes the *gate*, which closes it to trainers and to other meters, and then
the room exclusively, which it gets when the steps under way are done. A trainer passes through
the gate before it enters the room, so a steady stream of trainers cannot starve a meter: once
the gate is taken nobody new comes in. The locks belong to open files, so the kernel lets go of
them when a process dies, however it dies.

The gate holds among one user's processes on one node, on a temporary directory that is local.
"""

import fcntl
import os
import stat
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autoprune.domain.errors import AutopruneError


class Gate(Protocol):
    """What training and measuring agree on; it must survive pickling to a worker."""

    def step(self) -> AbstractContextManager[None]:
        """Hold this around one training step; waits while somebody measures or is about to."""
        ...

    def measuring(self) -> AbstractContextManager[None]:
        """Hold this around a measurement of at most about a second; training stands still."""
        ...


@dataclass(frozen=True, slots=True)
class NoGate:
    """No gate at all: training goes on while somebody measures."""

    def step(self) -> AbstractContextManager[None]:
        """Never wait."""
        return nullcontext()

    def measuring(self) -> AbstractContextManager[None]:
        """Never wait, and keep nobody out."""
        return nullcontext()


@dataclass(frozen=True, slots=True)
class QuietNode:
    """The quiet gate of the node it is used on.

    `folder` holds the two lock files; None means ``autoprune-<user id>`` in the temporary
    directory of the node where it is used, not of the one where it was made. Threads count as
    separate trainers or meters. A step costs four `flock` calls, some microseconds.

    Inside `step` or `measuring` a thread must not enter either of them again: it would wait for
    itself, so that is an AssertionError. Both raise AutopruneError where the folder belongs to
    somebody else or cannot be made.
    """

    folder: Path | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold the room shared; waits while a meter has or wants it."""
        with _entered(self.folder) as locks:
            try:
                with _held(locks.gate, fcntl.LOCK_SH):
                    locks.room.lock(fcntl.LOCK_SH)
                yield
            finally:
                locks.room.unlock()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold gate and room exclusively; waits for other meters and for the steps under way."""
        with (
            _entered(self.folder) as locks,
            _held(locks.gate, fcntl.LOCK_EX),
            _held(locks.room, fcntl.LOCK_EX),
        ):
            yield


class _Lock:
    """An open lock file."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd: int | None = os.open(path, flags, 0o600)
        _OPEN.add(self)

    def lock(self, how: int) -> None:
        assert self._fd is not None, "a lock that was closed after a fork"
        fcntl.flock(self._fd, how)

    def unlock(self) -> None:
        """Let go; without effect where nothing is held."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        self.close()


class _Locks:
    """The two locks as one thread holds them."""

    def __init__(self, folder: Path) -> None:
        self.gate = _Lock(folder / "gate.lock")
        self.room = _Lock(folder / "room.lock")
        self.inside = False


class _ThreadLocks(threading.local):
    """Every thread's locks by folder: `flock` does not tell threads on one open file apart."""

    def __init__(self) -> None:
        self.by_folder: dict[Path | None, _Locks] = {}


_OPEN: "weakref.WeakSet[_Lock]" = weakref.WeakSet()
_THREAD = _ThreadLocks()


def _after_fork_in_child() -> None:
    # A forked child shares its parent's open files: a data loader's worker, forked inside a
    # step, would keep the room locked after its parent was killed.
    for lock in list(_OPEN):
        lock.close()
    _THREAD.by_folder.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


@contextmanager
def _entered(folder: Path | None) -> Iterator[_Locks]:
    locks = _THREAD.by_folder.get(folder)
    if locks is None:
        locks = _THREAD.by_folder[folder] = _Locks(_private_folder(folder))
    assert not locks.inside, "the quiet gate was entered again inside step() or measuring()"
    locks.inside = True
    try:
        yield locks
    finally:
        locks.inside = False


@contextmanager
def _held(lock: _Lock, how: int) -> Iterator[None]:
    try:
        lock.lock(how)
        yield
    finally:
        lock.unlock()


def _private_folder(folder: Path | None) -> Path:
    path = folder or Path(tempfile.gettempdir()) / f"autoprune-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise AutopruneError(
            f"the quiet gate needs a folder of its own, and {path} cannot be made "
            f"({error.strerror}); set TMPDIR to a local folder that can be written"
        ) from error
    # lstat: another user could plant a link in the shared temporary directory.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise AutopruneError(
            f"the quiet gate's folder {path} must be a folder that only you can write; it has "
            f"owner {found.st_uid} and mode {stat.filemode(found.st_mode)}; remove it, or set "
            "TMPDIR to a folder of your own"
        )
    return path
