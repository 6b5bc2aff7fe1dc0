"""The node's quiet gate: training stops between two steps while somebody measures.

Four file locks in a per-user directory of the node. A trainer holds the *room* shared around
each step; a meter takes the *gate*, which closes it to trainers, and then the room exclusively,
which it gets when the steps under way are done. A trainer passes through the gate before it
enters the room, so a steady stream of trainers cannot starve a meter: once the gate is taken
nobody new comes in, and a meter waits for one step.

Turns are taken in phases, as in Brandenburg and Anderson's phase-fair lock (Real-Time Systems 46,
2010): meters stand in a *queue*, whose head waits until the measurement under way is over and
then until every trainer that *waits* for its end is in. So between two measurements whoever
trains makes a step, and a meter that measures again at once goes to the end of the queue. `flock`
alone promises neither, for whoever asks first after a release has the lock: with gate and room
only, four meters that measured back to back passed over a trainer 66 times in a row (Linux 6.18).

The locks belong to open files, so the kernel lets go of them when a process dies, however it
dies; one that is stopped inside (SIGSTOP) keeps the others out. The gate holds among the processes
that see the same local folder: one user's on one node, in containers only where they are given
it. Who else there is cannot be told from within a container; what they keep busy shows in a
measurement's `others`.
"""

import fcntl
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autoprune.domain.errors import AutopruneError
from autoprune.measurement.private import place_of, private_folder

_REMEDY = "set meter.gate_folder, or TMPDIR, to a local folder that you alone can write"


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

    `folder` holds the lock files; None means ``autoprune-<user id>`` in the temporary
    directory of the node where it is used, not of the one where it was made. Threads count as
    separate trainers or meters. A step costs four `flock` calls, some microseconds. Where somebody
    tidies the folder away it is made again, and the next step or measurement holds the new one.

    Inside `step` or `measuring` a thread must not enter either of them again: it would wait for
    itself, so that is an AssertionError. Both raise AutopruneError where the folder belongs to
    somebody else, or it or its files cannot be made.
    """

    folder: Path | None = None

    @property
    def place(self) -> Path:
        """Where the lock files are on the node that this is asked on."""
        return place_of(self.folder)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold the room shared; waits while a meter has or wants it."""
        with _entered(self.folder) as locks:
            try:
                locks.pass_gate()
                yield
            finally:
                locks.room.unlock()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold gate and room exclusively.

        Waits for the meters that came before, for a step of the trainers that waited for those,
        and for the steps under way.
        """
        with _entered(self.folder) as locks:
            try:
                locks.close_gate()
                with _held(locks.room, fcntl.LOCK_EX):
                    yield
            finally:
                locks.gate.unlock()


class _Lock:
    """An open lock file."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd: int | None = None
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise AutopruneError(
                f"the quiet gate cannot open its lock {path} ({error.strerror}); {_REMEDY}"
            ) from error
        _OPEN.add(self)

    def lock(self, how: int) -> None:
        """Wait for it."""
        fcntl.flock(self._file, how)

    def lock_at_once(self, how: int) -> bool:
        """Lock it unless that means waiting; whether it is held now."""
        try:
            self.lock(how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def removed(self) -> bool:
        """Whether the file is gone: who comes now locks another one."""
        return os.fstat(self._file).st_nlink == 0

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

    @property
    def _file(self) -> int:
        assert self._fd is not None, "a lock that was closed after a fork"
        return self._fd


class _Locks:
    """The locks as one thread holds them, always taken in the order in which they stand here."""

    def __init__(self, folder: Path) -> None:
        self.queue = _Lock(folder / "queue.lock")
        self.waiting = _Lock(folder / "waiting.lock")
        self.gate = _Lock(folder / "gate.lock")
        self.room = _Lock(folder / "room.lock")
        self.inside = False

    def pass_gate(self) -> None:
        """Hold the room shared."""
        try:
            if not self.gate.lock_at_once(fcntl.LOCK_SH):
                # who is seen to wait here is let in before the gate is closed again
                with _held(self.waiting, fcntl.LOCK_SH):
                    self.gate.lock(fcntl.LOCK_SH)
            self.room.lock(fcntl.LOCK_SH)
        finally:
            self.gate.unlock()

    def close_gate(self) -> None:
        """Hold the gate exclusively; it is for the caller to unlock, also where this raises."""
        with _held(self.queue, fcntl.LOCK_EX):
            # Before `waiting` and not after: with that held no trainer could line up for its step
            with _held(self.gate, fcntl.LOCK_SH):
                pass
            with _held(self.waiting, fcntl.LOCK_EX):
                self.gate.lock(fcntl.LOCK_EX)


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
    # A tidier of temporary directories removes files of an age, all of ours together
    if locks is None or (locks.room.removed() and not locks.inside):
        own = private_folder(folder, whose="the quiet gate", remedy=_REMEDY)
        locks = _THREAD.by_folder[folder] = _Locks(own)
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
