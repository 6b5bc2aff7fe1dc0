"""What a contest of searchers came to, kept as it grows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Goal
from autoprune.domain.pareto import ParetoFront
from autoprune.domain.standings import Course, Moment, Standings, standings_of
from autoprune.domain.trial import Measurement, Observation
from autoprune.orchestration.durable import write_private
from autoprune.orchestration.folders import LATEST
from autoprune.orchestration.record import Record, Told
from autoprune.orchestration.untrusted import MIB, UntrustedError, read_json

CONTEST_FILE, CONFIG_FILE = "compare.json", "config.json"
MAX_CONTEST = 512 * MIB
"""Every trial of a contest takes some hundred bytes."""


@dataclass(frozen=True)
class Entry:
    """One search of a contest: how it went, and the front that it ended with.

    `front` holds the objectives' values of every member, the best by the first one first, and
    `front_again` the same with speeds measured again, if that was done; `folder` is where its
    journal is, and `warnings` what its user should know.
    """

    course: Course
    front: tuple[tuple[float, ...], ...]
    folder: str
    warnings: tuple[str, ...] = ()
    front_again: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def of(
        cls, record: Record, goal: Goal, *, searcher: str, seed: int, folder: str, before_s: float
    ) -> Self:
        """How a search went by its journal; `before_s` is what it took before its first trial.

        A trial counts once; what it is worth further up the ladder changes the value after it.
        """
        by_trial: list[float] = []
        moments: list[Moment] = []
        known: dict[int, Observation] = {}
        front = ParetoFront(goal)
        start = record.events[0].at if record.events else 0.0
        for event in record.events:
            if not isinstance(event, Told):
                continue
            number = event.observation.trial.number
            if number in known:
                del by_trial[-1]
                # what it was worth before may have kept others off the front
                known[number] = event.observation
                front = ParetoFront(goal, known.values())
            else:
                known[number] = event.observation
                front.add(event.observation)
            by_trial.append(front.hypervolume())
            busy = sum(observation.seconds for observation in known.values())
            moments.append(Moment(before_s + event.at - start, busy, by_trial[-1]))
        points = tuple(
            goal.values(member.outcome)
            for member in front.members
            if isinstance(member.outcome, Measurement)
        )
        return cls(Course(searcher, seed, tuple(by_trial), tuple(moments)), points, folder)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild an entry from ``dataclasses.asdict``."""
        course = Course.from_json(data["course"])
        front, again = (tuple(map(tuple, data[name])) for name in ("front", "front_again"))
        return cls(course, front, str(data["folder"]), tuple(data["warnings"]), again)


@dataclass(frozen=True)
class Contest:
    """Searchers on one network, budget, ladder and meter, and the searches that have ended.

    `baseline` holds the unpruned network's metrics, `budget` its limits by name, and `conditions`
    what else outcomes depend on; `network` is the digest of its weights. Those of `profiled` were
    handed a profile; it took `profile_s`, which their seconds count. `untimed` says why the final
    fronts could not be timed again.
    """

    name: str
    goal: Goal
    baseline: Mapping[str, float]
    budget: Mapping[str, Any]
    searchers: tuple[str, ...]
    seeds: tuple[int, ...]
    device: str
    network: str
    conditions: Mapping[str, str] = field(default_factory=dict)
    profiled: tuple[str, ...] = ()
    profile_s: float = 0.0
    untimed: str = ""
    entries: tuple[Entry, ...] = field(default=())

    def plus(self, entry: Entry) -> Self:
        """The contest with one more search that has ended."""
        return replace(self, entries=(*self.entries, entry))

    def entry(self, searcher: str, seed: int) -> Entry | None:
        """The search of a searcher with a seed, where it has ended."""
        asked = (searcher, seed)
        return next((e for e in self.entries if (e.course.searcher, e.course.seed) == asked), None)

    def of(self, searcher: str) -> list[Entry]:
        """The searches of a searcher that have ended."""
        return [entry for entry in self.entries if entry.course.searcher == searcher]

    @property
    def complete(self) -> bool:
        """Whether every searcher has run with every seed."""
        return len(self.entries) == len(self.searchers) * len(self.seeds)

    @property
    def timed_again(self) -> bool:
        """Whether the final fronts have been timed again beside each other."""
        again = [entry.course.again for entry in self.entries]
        return bool(again) and None not in again

    @property
    def standings(self) -> Standings | None:
        """Where the searchers stand over the seeds with which all have run; None before that."""
        whole = [s for s in self.seeds if all(self.entry(name, s) for name in self.searchers)]
        courses = [entry.course for entry in self.entries if entry.course.seed in whole]
        return standings_of(courses) if courses else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        facts = {name: getattr(self, name) for name in FACTS}
        standings = self.standings
        return {
            **({} if standings is None else standings.to_json()),
            "contest": {
                **facts,
                "goal": self.goal.to_json(),
                "searchers": list(self.searchers),
                "seeds": list(self.seeds),
                "profiled": list(self.profiled),
            },
            "entries": [asdict(entry) for entry in self.entries],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a contest from `to_json`."""
        facts = data["contest"]
        return cls(
            **{name: facts[name] for name in FACTS},
            goal=Goal.from_json(facts["goal"]),
            searchers=tuple(facts["searchers"]),
            seeds=tuple(facts["seeds"]),
            profiled=tuple(facts["profiled"]),
            entries=tuple(map(Entry.from_json, data["entries"])),
        )


FACTS = ("name", "baseline", "budget", "device", "network", "conditions", "profile_s", "untimed")


def read_contest(folder: Path) -> Contest:
    """The contest in a folder. Raises AutopruneError where none can be read there."""
    file = folder / CONTEST_FILE
    try:
        return Contest.from_json(read_json(file, most=MAX_CONTEST))
    except OSError as error:
        raise AutopruneError(f"no contest at {folder} ({error.strerror}); name one") from error
    except UntrustedError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise AutopruneError(
            f"{file} is not as it was written ({error}); restore it, or delete it and start anew"
        ) from error


@dataclass(frozen=True, slots=True)
class Origin:
    """The config that a contest was made from, and where modules of its user are found."""

    config: Mapping[str, Any]
    code_paths: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Keep it where nobody else may read it: an argument of the user's may be a secret."""
        write_private(folder / CONFIG_FILE, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """That of the contest in a folder; None where it was started from Python.

        Raises AutopruneError where the file is damaged.
        """
        file = folder / CONFIG_FILE
        if not file.is_file():
            return None
        try:
            facts = read_json(file)
            return cls(dict(facts["config"]), tuple(facts["code_paths"]))
        except UntrustedError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise AutopruneError(
                f"{file} is not as it was written ({error}); restore it, or start a new contest"
            ) from error


def find_contest(output: Path, contest: str) -> Path:
    """The folder of a contest by its id, or of the latest one, below an output folder."""
    found = {path.parent.name: path for path in output.glob(f"*/{CONTEST_FILE}")}
    if contest in found:
        return found[contest].parent
    latest = sorted(found.values(), key=lambda path: path.stat().st_mtime)
    if contest == LATEST and latest:
        return latest[-1].parent
    there = ", ".join(path.parent.name for path in latest[-5:])
    remedy = f"the latest are {there}" if there else "set output=FOLDER, or compare first"
    raise AutopruneError(f"no contest {contest!r} in {output.resolve()}; {remedy}")
