"""What an examination finds, and how single checks are kept from spoiling the others."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue
from time import perf_counter

from autoprune.domain.errors import AutopruneError, first_line

DRIVER = "driver"
"""What the process that examines is called among the nodes."""

LIMIT_S = 60.0
"""How long a check may take, unless it is one that takes longer."""


class State(StrEnum):
    """How much of a hindrance a verdict is: a sweep would fail of a fault, and suffer a warning."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, and what mends it where that is not as it should be."""

    state: State
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert bool(self.remedy) == (self.state is not State.OK), "what is wrong can be mended"


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict of a check on a node, or on the driver."""

    node: str
    check: str
    verdict: Verdict

    def to_json(self) -> dict[str, str]:
        """As one flat object."""
        verdict = self.verdict
        return {
            "node": self.node,
            "check": self.check,
            "state": str(verdict.state),
            "found": verdict.found,
            "remedy": verdict.remedy,
        }


@dataclass(frozen=True)
class Check:
    """Something to examine on a node; `run` gives one verdict or several, and may raise.

    `limit_s` None leaves it in the thread that examines, and waits for it.
    """

    node: str
    name: str
    run: Callable[[], Iterable[Verdict]]
    limit_s: float | None = LIMIT_S


def ok(found: str) -> Verdict:
    """All is as it should be."""
    return Verdict(State.OK, found)


def warning(found: str, remedy: str) -> Verdict:
    """A sweep runs, and could be better off."""
    return Verdict(State.WARNING, found, remedy)


def fault(found: str, remedy: str) -> Verdict:
    """A sweep would not run, or break off."""
    return Verdict(State.FAULT, found, remedy)


def fault_of(error: BaseException) -> Verdict:
    """The fault that an error tells of. Messages of ours end with the remedy, after a semicolon."""
    found, _, remedy = str(error).rpartition("; ")
    if isinstance(error, AutopruneError) and found:
        return fault(found, remedy)
    return fault(
        f"{type(error).__name__}: {first_line(error)}",
        "mend what it names; if that is nothing of yours, autoprune is at fault: please report it",
    )


def examined(check: Check) -> Iterator[Finding]:
    """The findings of a check as they come; what it raises, or that it hangs, is a fault, too.

    It runs in a thread of its own, which is left behind where it hangs.
    """
    verdicts = _tried(check) if check.limit_s is None else _in_time(check, check.limit_s)
    for verdict in verdicts:
        yield Finding(check.node, check.name, verdict)


def _tried(check: Check) -> Iterator[Verdict]:
    try:
        yield from check.run()
    except Exception as error:  # whatever happens to one check, the others go on
        yield fault_of(error)


def _in_time(check: Check, limit_s: float) -> Iterator[Verdict]:
    until = perf_counter() + limit_s
    heard: SimpleQueue[Verdict | None] = SimpleQueue()

    def run() -> None:
        try:
            for verdict in _tried(check):
                heard.put(verdict)
        finally:
            heard.put(None)

    threading.Thread(target=run, name=f"doctor {check.name}", daemon=True).start()
    while True:
        try:
            verdict = heard.get(timeout=max(0.0, until - perf_counter()))
        except Empty:
            yield fault(
                f"no answer within {limit_s:g} s",
                "look whether what it asks hangs: a network file system, a firewall that drops "
                "packets, a node that swaps, another program at that address",
            )
            return
        if verdict is None:
            return
        yield verdict


def examined_together(checks_of: Iterable[Iterable[Check]]) -> Iterator[Finding]:
    """The findings of several nodes as they come: all nodes at a time, of each check by check."""
    heard: SimpleQueue[Finding | None] = SimpleQueue()

    def run(checks: Iterable[Check]) -> None:
        try:
            for check in checks:
                for finding in examined(check):
                    heard.put(finding)
        finally:
            heard.put(None)

    threads = [threading.Thread(target=run, args=(each,), daemon=True) for each in checks_of]
    for thread in threads:
        thread.start()
    running = len(threads)
    while running:
        finding = heard.get()
        if finding is None:
            running -= 1
        else:
            yield finding
