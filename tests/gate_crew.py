"""Trainers and meters as real processes on one quiet gate, and what they did, from their logs.

The crew is forked, so it needs a small parent that has no threads: `tests.gate_programs` is one.
"""

import multiprocessing
import os
import random
import struct
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from autoprune.measurement.quiet import Gate

_FORK = multiprocessing.get_context("fork")
_TIME = struct.Struct("d")


@dataclass(frozen=True, slots=True)
class Stay:
    """A step or a measurement, in seconds of the clock that all processes share.

    One that a kill cut short ends when the kill was sent: until then it was surely under way.
    """

    member: int
    measuring: bool
    asked_s: float
    begin_s: float
    end_s: float

    @property
    def wait_s(self) -> float:
        return self.begin_s - self.asked_s


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a member is inside and pauses outside; each time one of the values is drawn."""

    inside_s: tuple[float, ...]
    pause_s: tuple[float, ...] = (0.0,)
    busy: bool = False  # keeps a core busy inside, instead of sleeping


def work(gate: Gate, measuring: bool, pace: Pace, log: Path, rng: random.Random) -> None:
    """Enter and leave for ever; the log gets three times a stay: asked, entered, about to leave."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    enter, parent = gate.measuring if measuring else gate.step, os.getppid()

    def note() -> float:
        now = time.perf_counter()
        os.write(file, _TIME.pack(now))
        return now

    while os.getppid() == parent:  # nobody is left behind when the parent is killed
        note()
        with enter():
            leave_s = note() + rng.choice(pace.inside_s)
            while pace.busy and time.perf_counter() < leave_s:
                pass
            time.sleep(max(0.0, leave_s - time.perf_counter()))
            note()
        time.sleep(rng.choice(pace.pause_s))


class Member:
    """One process of the crew."""

    def __init__(
        self, number: int, gate: Gate, measuring: bool, pace: Pace, log: Path, seed: object
    ) -> None:
        self.number, self.measuring, self.log = number, measuring, log
        self.killed_s: float | None = None
        log.touch()
        rng = random.Random(f"{seed}-{number}")
        arguments = (gate, measuring, pace, log, rng)
        self._process = _FORK.Process(target=work, args=arguments, daemon=True)
        self._process.start()

    def __str__(self) -> str:
        return f"{'meter' if self.measuring else 'trainer'} {self.number}"

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self.killed_s = time.perf_counter()
        self._process.kill()

    def join(self) -> None:
        self._process.join()

    @property
    def done(self) -> int:
        """The stays it finished."""
        return self.log.stat().st_size // (3 * _TIME.size)

    @property
    def left_at(self) -> str:
        """Where it was killed: outside, waiting or inside."""
        return ("outside", "waiting", "inside")[self.log.stat().st_size // _TIME.size % 3]

    def stays(self) -> list[Stay]:
        """All that it did; only of one that was killed."""
        assert self.killed_s is not None
        times = [at for (at,) in _TIME.iter_unpack(self.log.read_bytes())]
        if len(times) % 3 == 2:
            times.append(max(times[-1], self.killed_s))
        return [
            Stay(self.number, self.measuring, *times[at : at + 3])
            for at in range(0, len(times) - 2, 3)
        ]


class Crew:
    """All processes that ever were on one gate."""

    def __init__(self, gate: Gate, folder: Path, seed: object = 0) -> None:
        self._gate, self._folder, self._seed = gate, folder, seed
        self.members: list[Member] = []

    def start(self, measuring: bool, pace: Pace) -> Member:
        number = len(self.members)
        log = self._folder / f"member{number}.log"
        self.members.append(Member(number, self._gate, measuring, pace, log, self._seed))
        return self.members[-1]

    @property
    def living(self) -> list[Member]:
        return [member for member in self.members if member.killed_s is None]

    def kill(self, victims: Sequence[Member]) -> None:
        for victim in victims:
            victim.kill()
        for victim in victims:
            victim.join()

    def all_go_on(self, patience_s: float) -> float:
        """The seconds until each that lives has finished another stay.

        Raises TimeoutError where one does not in time, or has died by itself.
        """
        start = time.perf_counter()
        left = {member: member.done for member in self.living}
        while left := {member: done for member, done in left.items() if member.done <= done}:
            if time.perf_counter() > start + patience_s or not all(m.alive for m in left):
                stuck = ", ".join(f"{member} ({member.left_at})" for member in left)
                raise TimeoutError(f"{stuck} did not go on for {patience_s:g} s")
            time.sleep(0.001)
        return time.perf_counter() - start

    def stays(self) -> list[Stay]:
        """What everybody did, by begin; only when all were killed."""
        found = [stay for member in self.members for stay in member.stays()]
        return sorted(found, key=lambda stay: stay.begin_s)


@contextmanager
def crew_on(gate: Gate, folder: Path, seed: object = 0) -> Iterator[Crew]:
    """A crew that is killed at the end."""
    crew = Crew(gate, folder, seed)
    try:
        yield crew
    finally:
        crew.kill(crew.living)


def torn(stays: Sequence[Stay]) -> list[tuple[Stay, Stay]]:
    """Measurements with what else was under way meanwhile; `stays` by begin."""
    found = []
    last: dict[bool, Stay] = {}  # of steps and of measurements the one that ends last
    for stay in stays:
        for measuring, before in last.items():
            if (stay.measuring or measuring) and stay.begin_s < before.end_s:
                found.append((before, stay))
        last[stay.measuring] = max(stay, last.get(stay.measuring, stay), key=lambda s: s.end_s)
    return found


@dataclass(frozen=True, slots=True)
class Turns:
    """How members got in beside each other, and how long they waited.

    `steps` and `measurements` count those of each trainer and of each meter. A wait of a meter is
    given in median steps, and as the steps that one trainer began meanwhile; a trainer or a meter
    is passed over by the measurements that begin while it waits.
    """

    steps: list[int]
    measurements: list[int]
    wait_steps_median: float
    wait_steps_max: float
    wait_steps_begun_max: int
    trainer_passed_over_mean: float
    trainer_passed_over_max: int
    meter_passed_over_max: int

    @classmethod
    def of(cls, stays: Sequence[Stay]) -> "Turns":
        """From what everybody did."""
        by_member: dict[bool, dict[int, list[Stay]]] = {False: {}, True: {}}
        for stay in stays:
            by_member[stay.measuring].setdefault(stay.member, []).append(stay)
        begun_s = {
            measuring: [[stay.begin_s for stay in of_one] for of_one in members.values()]
            for measuring, members in by_member.items()
        }
        measured_s = sorted(begin for begins in begun_s[True] for begin in begins)
        steps, measurements = ([s for s in stays if s.measuring is m] for m in (False, True))
        step_s = median(step.end_s - step.begin_s for step in steps)
        waits = [stay.wait_s / step_s for stay in measurements]
        passed_over = [_begun_while_waiting(step, measured_s) for step in steps]
        return cls(
            steps=[len(begins) for begins in begun_s[False]],
            measurements=[len(begins) for begins in begun_s[True]],
            wait_steps_median=median(waits),
            wait_steps_max=max(waits),
            wait_steps_begun_max=max(
                _begun_while_waiting(stay, begins)
                for stay in measurements
                for begins in begun_s[False]
            ),
            trainer_passed_over_mean=mean(passed_over),
            trainer_passed_over_max=max(passed_over),
            meter_passed_over_max=max(_begun_while_waiting(m, measured_s) for m in measurements),
        )


def _begun_while_waiting(stay: Stay, begins_s: Sequence[float]) -> int:
    return max(0, bisect_left(begins_s, stay.begin_s) - bisect_right(begins_s, stay.asked_s))


def turns(
    gate: Gate, folder: Path, *, meters: int, measuring: Pace, training: Pace, seconds: float
) -> Turns:
    """How two trainers and some meters get in beside each other in so many seconds."""
    with crew_on(gate, folder) as crew:
        for _ in range(2):
            crew.start(False, training)
        for _ in range(meters):
            crew.start(True, measuring)
        time.sleep(seconds)
    stays = crew.stays()
    assert not torn(stays), torn(stays)
    return Turns.of(stays)
