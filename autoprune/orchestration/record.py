"""What a journal's lines say, and the rules they keep: reading needs no lock and changes nothing.

The first line is the header, then come asks, tells and losses in the order they happened, and the
budget wherever a resume changed it. A crash can only tear the last line, since each one is written
at the end of the file and synced before the next one starts; a line without its newline never
counted. Anything else that is wrong is refused, by file and line.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Failure, Observation, Trial, latest
from autoprune.orchestration.journal_line import MAX_LINE, FaultError, decode
from autoprune.orchestration.untrusted import MIB, UntrustedError, opened, read_bytes

VERSION = 1
MAX_BYTES = 1024 * MIB
"""Neither written nor read beyond, like `MAX_LINE`."""


class JournalError(AutopruneError):
    """A journal that cannot be written or trusted."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial was proposed, `at` seconds into the sweep.

    `heard` counts the outcomes that the searcher had heard of when it was asked; None where it
    had heard of all those before. More may come in while it works.
    """

    trial: Trial
    at: float
    heard: int | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A trial came to an outcome, `at` seconds into the sweep."""

    observation: Observation
    at: float


@dataclass(frozen=True, slots=True)
class Lost:
    """A trial was lost with its worker, `at` seconds into the sweep, and is to be run again.

    `times` counts how often it was by then.
    """

    number: int
    failure: Failure
    at: float
    times: int = 1


Event = Asked | Told | Lost


@dataclass(frozen=True)
class Record:
    """What a journal holds: the sweep's facts, its events in order, and a torn last line.

    `budget` is the last one it was given, in plain JSON; `torn` says what stands after the last
    whole line, None where nothing does; `size` counts the bytes up to there.
    """

    header: Mapping[str, Any]
    events: tuple[Event, ...]
    budget: Mapping[str, Any]
    torn: str | None
    size: int


def read_journal(path: Path) -> Record:
    """Read a journal without changing or locking it, also while a sweep writes it.

    Raises JournalError for a file that is missing, has no header, or holds a line other than a
    torn last one that is not as it was written.
    """
    with _reading(path):
        data = read_bytes(path, most=MAX_BYTES)
    whole, newline, rest = data.rpartition(b"\n")
    lines = whole.split(b"\n") if newline else []
    if not lines:
        raise JournalError(
            f"{path}: the journal has no header: its sweep never started, or the file was damaged; "
            "restore it from a copy, or start a new sweep"
        )
    torn = f"{path}: line {len(lines) + 1} was torn by a crash ({len(rest)} bytes)"
    header, ledger = None, Ledger()
    budget: Mapping[str, Any] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = decode(line)
            if header is None:
                header = facts_of(record)
                budget = budget_of(header)
            elif record.get("event") == "budget":
                budget = _changed_budget(record)
            else:
                ledger.take(_event(record))
        except FaultError as fault:
            raise _damaged(path, number, fault) from fault
    assert header is not None
    return Record(
        header,
        tuple(ledger.events),
        budget,
        torn=torn if rest else None,
        size=len(data) - len(rest),
    )


def read_header(path: Path) -> Mapping[str, Any] | None:
    """The sweep's facts alone; None where the sweep was killed before they were written.

    Raises JournalError like `read_journal`.
    """
    with _reading(path), opened(path, most=MAX_BYTES) as file:
        line = file.readline(MAX_LINE + 1)
    if not line.endswith(b"\n") and len(line) <= MAX_LINE:
        return None
    try:
        return facts_of(decode(line.rstrip(b"\n")))
    except FaultError as fault:
        raise _damaged(path, 1, fault) from fault


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JournalError(
            f"{path}: no journal can be read here ({error.strerror}); name a sweep that exists"
        ) from error
    except UntrustedError as error:
        raise JournalError(str(error)) from error


def _damaged(path: Path, number: int, fault: Exception) -> JournalError:
    return JournalError(
        f"{path}, line {number}: {fault}; the file was changed or damaged after it was written: "
        "restore it from a copy, or start a new sweep"
    )


def as_searched(events: Sequence[Event]) -> Iterator[Asked | Told]:
    """The asks and tells in the order in which the searcher heard of them."""
    told = [event for event in events if isinstance(event, Told)]
    seen = heard = 0
    for event in events:
        if isinstance(event, Told):
            seen += 1
        if not isinstance(event, Asked):
            continue
        until = seen if event.heard is None else event.heard
        yield from told[heard:until]
        heard = max(heard, until)
        yield event
    yield from told[heard:]


def last_told(events: Iterable[Event]) -> dict[int, Observation]:
    """What was told last of every trial by its number, in the order of arrival."""
    return latest(event.observation for event in events if isinstance(event, Told))


class Ledger:
    """The rules between events: a number is asked once, then told, as it was asked.

    It is told once, or from rung to rung of the ladder upwards, and at its end for good; before
    that it may be lost any number of times.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._asked: dict[int, Trial] = {}
        self._rungs: dict[int, int | None] = {}
        self.losses: Counter[int] = Counter()
        self._told = 0

    def check(self, event: Event) -> None:
        """Raise FaultError unless `event` may come next."""
        match event:
            case Asked(trial=trial, heard=heard):
                if trial.number in self._asked:
                    raise FaultError(f"trial {trial.number} is asked a second time")
                if heard is not None and not 0 <= heard <= self._told:
                    raise FaultError(f"{heard} outcomes are heard of, {self._told} were told")
            case Told(observation=observation):
                number, rung = observation.trial.number, observation.rung
                if number not in self._asked:
                    raise FaultError(f"trial {number} is told but was never asked")
                if number in self._rungs:
                    before = self._rungs[number]
                    if before is None or (rung is not None and rung <= before):
                        raise FaultError(f"trial {number} is told a second time")
                if observation.trial != self._asked[number]:
                    raise FaultError(f"trial {number} is told with another spec or seed")
            case Lost(number=number, times=times):
                if number not in self._asked:
                    raise FaultError(f"trial {number} is lost but was never asked")
                if self._rungs.get(number, 0) is None:
                    raise FaultError(f"trial {number} is lost after its end")
                if times != self.losses[number] + 1:
                    before = self.losses[number]
                    raise FaultError(f"loss {times} of trial {number} comes after {before} of them")

    def take(self, event: Event) -> None:
        """Add an event. Raises FaultError unless it may come next."""
        self.check(event)
        match event:
            case Asked(trial=trial):
                self._asked[trial.number] = trial
            case Told(observation=observation):
                self._rungs[observation.trial.number] = observation.rung
                self._told += 1
            case Lost(number=number):
                self.losses[number] += 1
        self.events.append(event)


def facts_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sweep's facts in the header's record. Raises FaultError where it is none."""
    if record.get("event") != "header":
        raise FaultError("the first line is no header")
    if record.get("version") != VERSION:
        raise FaultError(f"version {record.get('version')!r} is not {VERSION}, the one known here")
    facts = record.get("facts")
    if not isinstance(facts, dict):
        raise FaultError("the header holds no facts")
    return facts


def budget_of(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The budget that a sweep began with, limits by name; empty where its facts have none."""
    budget = facts.get("budget")
    return budget if isinstance(budget, dict) else {}


def _changed_budget(record: Mapping[str, Any]) -> dict[str, Any]:
    budget = record.get("budget")
    if not isinstance(budget, dict):
        raise FaultError(f"its budget is no object but {budget!r}")
    return budget


def _event(record: Mapping[str, Any]) -> Event:
    kind = record.get("event")
    try:
        match kind:
            case "ask":
                heard = None if record.get("heard") is None else int(record["heard"])
                return Asked(Trial.from_json(record["trial"]), float(record["at"]), heard)
            case "tell":
                observation = Observation.from_json(record["observation"])
                return Told(observation, float(record["at"]))
            case "lost":
                failure = Failure.from_json(record["failure"])
                at, times = float(record["at"]), int(record["times"])
                return Lost(int(record["trial"]), failure, at, times)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FaultError(f"its {kind} cannot be understood ({error!r})") from error
    raise FaultError(
        f"event {kind!r} is not known; 'ask', 'tell', 'lost' and 'budget' may follow the header"
    )
