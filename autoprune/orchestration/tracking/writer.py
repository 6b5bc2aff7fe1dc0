"""One background thread that writes in order, and waits and retries where nobody answers."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from autoprune.domain.errors import shown

log = logging.getLogger(__name__)

SUSPECT_AFTER = 5
FINAL_AFTER = 2

Entry = TypeVar("Entry")


@dataclass(slots=True)
class Job:
    """A write that may be repeated without harm, of the entries it takes and what they are called.

    While it waits, which it does until `due` (on the monotonic clock) at least, it may take more
    entries of its `key`.
    """

    write: Callable[[Sequence[Any]], None]
    key: Hashable = None
    due: float = 0.0
    entries: list[Any] = field(default_factory=list)
    whats: list[str] = field(default_factory=list)

    @property
    def singly(self) -> "list[Job]":
        """A job for every entry."""
        parts = zip(self.entries, self.whats, strict=True)
        return [_alone(what, partial(self.write, [entry])) for entry, what in parts]

    def __str__(self) -> str:
        more = len(self.whats) - 1
        return self.whats[0] + (f" and {more} more" if more else "")


@dataclass(frozen=True, slots=True)
class Retry:
    """When a failed write is worth repeating, and how long to wait.

    `transient` judges an error, `alive` tells whether the store answers at all: a write that
    fails on a store that answers is put aside after a few attempts, or it would hold up the rest.
    No error is final on a store that does not answer: a server whose database goes away makes
    errors of all kinds of it. Waits double from `first_s` to `longest_s`.
    """

    transient: Callable[[Exception], bool]
    alive: Callable[[], bool]
    first_s: float = 0.5
    longest_s: float = 10.0


class Writer:
    """Runs jobs one after the other in a daemon thread; `put` and `gather` never wait for a write.

    A write that cannot be made is put aside, for the others to go on, and tried `again` at the end.
    Entries that are gathered wait for `company_s` seconds at least, since a request for several
    costs a store little more than one for each of them.
    One job may be refreshed: of those handed to `refresh` only the latest is run, at most every
    `refresh_s` seconds and for no more than `share` of the time, and the last one always before
    the writer ends.
    """

    def __init__(
        self,
        retry: Retry,
        *,
        company_s: float = 1.0,
        refresh_s: float = 5.0,
        share: float = 0.02,
    ) -> None:
        self._retry, self._company_s = retry, company_s
        self._refresh_s, self._share = refresh_s, share
        self._jobs: deque[Job] = deque()
        self._gathering: dict[Hashable, Job] = {}
        self._latest: Job | None = None
        self._due = 0.0
        self._wake = threading.Condition()
        self._closing = self._abandoned = False
        self._written = 0
        self._aside: list[tuple[Job, Exception]] = []
        self._thread = threading.Thread(target=self._run, name="autoprune-writer", daemon=True)
        self._thread.start()

    def put(self, what: str, write: Callable[[], None]) -> None:
        """Queue a write."""
        with self._wake:
            self._jobs.append(_alone(what, write))
            self._wake.notify()

    def gather(
        self, what: str, entry: Entry, write: Callable[[Sequence[Entry]], None], *, key: Hashable
    ) -> None:
        """Queue an entry, with those of the same `key` that wait: one `write` takes them in order.

        It stands in the queue where the first of them does. Where it fails for good they are
        written one by one, so that none is lost with another.
        """
        with self._wake:
            job = self._gathering.get(key)
            if job is None:
                due = time.monotonic() + self._company_s
                job = self._gathering[key] = Job(write, key, due)
                self._jobs.append(job)
            job.entries.append(entry)
            job.whats.append(what)
            self._wake.notify()

    def again(self) -> None:
        """Queue once more what was put aside; what still cannot be made is put aside for good."""
        self.put("what was put aside", self._requeue)

    def _requeue(self) -> None:
        with self._wake:
            aside, self._aside = self._aside, []
            for job, _ in reversed(aside):
                self._jobs.insert(1, job)  # the first one is this very write

    def refresh(self, what: str, write: Callable[[], None]) -> None:
        """Replace the refreshed write by this one."""
        with self._wake:
            self._latest = _alone(what, write)
            self._wake.notify()

    @property
    def behind(self) -> int:
        """How many writes are queued or under way."""
        with self._wake:
            return sum(len(job.entries) for job in self._jobs) + (self._latest is not None)

    def close(self, limit_s: float) -> tuple[str, ...]:
        """Write what is queued; returns what was not written.

        It is given up where nothing could be written for `limit_s` seconds: a store that was away
        has much to take in, and one that is away takes nothing.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        written = -1
        while self._thread.is_alive() and written < self._written:
            written = self._written
            self._thread.join(limit_s)
        with self._wake:
            self._abandoned = True
            self._wake.notify()
            left = [*self._jobs, *([self._latest] if self._latest else [])]
            aside = (f"{job} ({shown(str(error))})" for job, error in self._aside)
            return (*aside, *(what for job in left for what in job.whats))

    def _run(self) -> None:
        while (job := self._next()) is not None:
            begun = time.monotonic()
            rest = self._write(job)
            if rest is None:
                return
            with self._wake:
                self._written += 1
                if self._jobs and self._jobs[0] is job:
                    self._jobs.popleft()
                    self._jobs.extendleft(reversed(rest))
                else:
                    ended = time.monotonic()
                    self._due = ended + max(self._refresh_s, (ended - begun) / self._share)
                    self._latest = None if self._latest is job else self._latest

    def _next(self) -> Job | None:
        """The job to write now, still in its place; None when the writer is to end."""
        with self._wake:
            while not self._abandoned:
                now, first = time.monotonic(), self._jobs[0] if self._jobs else None
                if self._latest is not None and (
                    self._due <= now or (self._closing and first is None)
                ):
                    return self._latest
                if first is not None and (first.due <= now or self._closing):
                    self._gathering.pop(first.key, None)
                    return first
                if self._closing:
                    return None
                dues = [] if first is None else [first.due]
                dues += [] if self._latest is None else [self._due]
                self._wake.wait(min(dues) - now if dues else None)
            return None

    def _write(self, job: Job) -> Sequence[Job] | None:
        """What is then left of a job that was written, or never can be; None where abandoned."""
        attempt = 0
        while True:
            try:
                job.write(job.entries)
            except Exception as error:
                attempt += 1
                why = shown(str(error))
                if not self._worth_repeating(error, attempt):
                    if len(job.entries) > 1:
                        return job.singly
                    log.warning("%s could not be written: %s", job, why)
                    with self._wake:
                        self._aside.append((job, error))
                    return ()
                if attempt == 1:
                    log.warning("%s waits for the tracking store: %s", job, why)
                if not self._pause(attempt):
                    return None
            else:
                if attempt:
                    log.warning("the tracking store answers again")
                return ()

    def _worth_repeating(self, error: Exception, attempt: int) -> bool:
        enough = SUSPECT_AFTER if self._retry.transient(error) else FINAL_AFTER
        return attempt < enough or not self._retry.alive()

    def _pause(self, attempt: int) -> bool:
        """Wait before the next attempt; False where the writer was abandoned meanwhile."""
        seconds = min(self._retry.first_s * 2.0 ** (attempt - 1), self._retry.longest_s)
        until = time.monotonic() + seconds
        with self._wake:
            while not self._abandoned and (left := until - time.monotonic()) > 0:
                self._wake.wait(min(left, self._retry.first_s) if self._closing else left)
                if self._closing:
                    break
            return not self._abandoned


def _alone(what: str, write: Callable[[], None]) -> Job:
    return Job(lambda _: write(), entries=[None], whats=[what])
