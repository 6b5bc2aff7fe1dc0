"""The journal of a sweep: every ask and every outcome, on disk before anyone else hears of it.

`record` says what its lines mean and reads them; here they are written.
"""

import fcntl
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from autoprune.domain.trial import Failure, Observation, Trial
from autoprune.orchestration.durable import sync
from autoprune.orchestration.journal_line import MAX_LINE, FaultError, decode, encode
from autoprune.orchestration.record import (
    MAX_BYTES,
    VERSION,
    Asked,
    Event,
    JournalError,
    Ledger,
    Lost,
    Record,
    Told,
    budget_of,
    facts_of,
    read_journal,
)


class Journal:
    """A journal open for writing, by one process at a time.

    `path`, `header`, `budget` and `events` are what it holds; `repaired` tells of a torn last line
    that was cut off on opening, else None. An append returns when its line is on the disk.
    """

    def __init__(
        self, path: Path, record: Record, descriptor: int, *, timer: Callable[[], float]
    ) -> None:
        self.path, self.header, self.repaired = path, record.header, record.torn
        self.budget = record.budget
        self._ledger = Ledger()
        for event in record.events:
            self._ledger.take(event)
        self._descriptor, self._size = descriptor, record.size
        self._timer = timer
        self._zero = timer() - max((event.at for event in record.events), default=0.0)

    @classmethod
    def create(
        cls,
        path: Path,
        header: Mapping[str, Any],
        *,
        timer: Callable[[], float] = time.perf_counter,
    ) -> Self:
        """Start a journal at `path` with the sweep's facts (plain JSON types).

        `timer` gives seconds from any origin. Raises JournalError where the file exists already
        or its folder does not allow it.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND
        line = encode({"event": "header", "version": VERSION, "facts": header})
        descriptor = _open(path, flags)
        try:
            _lock(descriptor, path)
            _append(descriptor, line, path, size=0)
            sync(path.parent)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        # What is kept is what a reader would see: tuples have become lists.
        facts = facts_of(decode(line.rstrip(b"\n")))
        record = Record(facts, (), budget_of(facts), torn=None, size=len(line))
        return cls(path, record, descriptor, timer=timer)

    @classmethod
    def open(cls, path: Path, *, timer: Callable[[], float] = time.perf_counter) -> Self:
        """Open a journal to go on with it; a torn last line is cut off and told in `repaired`.

        Raises JournalError like `read_journal`, and where another process has it open.
        """
        descriptor = _open(path, os.O_RDWR | os.O_APPEND)
        try:
            _lock(descriptor, path)
            record = read_journal(path)
            if record.torn is not None:
                os.ftruncate(descriptor, record.size)
                os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, record, descriptor, timer=timer)

    @property
    def events(self) -> tuple[Event, ...]:
        """Every ask, tell and loss so far, in order."""
        return tuple(self._ledger.events)

    def clock(self) -> float:
        """Seconds that the sweep has been driven; after a resume it goes on from the last event."""
        return self._timer() - self._zero

    def append_asked(self, trial: Trial, *, heard: int | None = None) -> Asked:
        """Write that `trial` was proposed. Raises JournalError where its number was before.

        `heard` counts the outcomes that the searcher had heard of, where those were not all.
        """
        event = Asked(trial, self.clock(), heard)
        told = {} if heard is None else {"heard": heard}
        self._write(event, {"event": "ask", "at": event.at, "trial": trial.to_json(), **told})
        return event

    def append_told(self, observation: Observation) -> Told:
        """Write an outcome. Raises JournalError unless its trial was asked, and is not told
        already: of this rung of the ladder or a higher one.
        """
        event = Told(observation, self.clock())
        told = {"event": "tell", "at": event.at, "observation": observation.to_json()}
        self._write(event, told)
        return event

    def append_lost(self, trial: Trial, failure: Failure) -> Lost:
        """Write that `trial` is to be run again, since it was lost with its worker.

        Raises JournalError unless it was asked and has not come to its end.
        """
        event = Lost(trial.number, failure, self.clock(), self._ledger.losses[trial.number] + 1)
        lost = {"event": "lost", "at": event.at, "trial": trial.number, "times": event.times}
        self._write(event, {**lost, "failure": failure.to_json()})
        return event

    def change_budget(self, budget: Mapping[str, Any]) -> None:
        """Write the budget (limits by name) that counts from now on, unless it does already."""
        if dict(budget) != dict(self.budget):
            self._append({"event": "budget", "at": self.clock(), "budget": budget})
            self.budget = dict(budget)

    def _write(self, event: Event, record: Mapping[str, Any]) -> None:
        try:
            self._ledger.check(event)
        except FaultError as fault:
            raise JournalError(f"{self.path}: not written, since {fault}") from fault
        self._append(record)
        self._ledger.take(event)

    def _append(self, record: Mapping[str, Any]) -> None:
        assert self._descriptor >= 0, "the journal is closed"
        line = encode(record)
        if len(line) > MAX_LINE or self._size + len(line) > MAX_BYTES:
            raise JournalError(
                f"{self.path}: {len(line)} bytes after {self._size} are more than a journal may "
                "hold; start a new sweep"
            )
        _append(self._descriptor, line, self.path, size=self._size)
        self._size += len(line)

    def close(self) -> None:
        """Let go of the file; closing twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_free(path: Path) -> None:
    """Raise JournalError like `Journal.open`; the file is left as it is."""
    descriptor = _open(path, os.O_RDWR | os.O_APPEND)
    try:
        _lock(descriptor, path)
        read_journal(path)
    finally:
        os.close(descriptor)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags, 0o600)  # an argument of the user's may be a secret
    except FileExistsError as error:
        raise JournalError(
            f"{path}: a journal exists here already; resume its sweep or choose another folder"
        ) from error
    except OSError as error:
        raise JournalError(
            f"{path}: the journal cannot be opened for writing ({error.strerror}); "
            "check the sweep's id, and that its folder exists and is yours to write"
        ) from error


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JournalError(
            f"{path}: another process is writing this journal; wait for that sweep to end, or "
            "stop it, then resume"
        ) from error


def _append(descriptor: int, line: bytes, path: Path, *, size: int) -> None:
    """Add a line and sync it; on a full disk, leave the file as it was."""
    try:
        written = 0
        while written < len(line):
            written += os.write(descriptor, line[written:])
        os.fsync(descriptor)
    except OSError as error:
        os.ftruncate(descriptor, size)
        raise JournalError(
            f"{path}: the journal cannot be written ({error.strerror}); nothing is lost: "
            "make room, then resume the sweep"
        ) from error
