"""What a searcher proposes: it is asked and told in a thread of its own, where nothing waits."""

import json
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.protocols import Learner, Searcher, Stateful, StepGuard
from autoprune.domain.space import PruningSpec, SearchSpace
from autoprune.domain.trial import Observation, Trial, trial_seed
from autoprune.orchestration.background import Background
from autoprune.orchestration.durable import replace_folder
from autoprune.orchestration.record import Event, Told, as_searched
from autoprune.searchers.novelty import nearest_unseen

STATES_FOLDER, DRAFT = "searcher", "draft"
COUNTS_FILE = "counts.json"


class ReplayError(AutopruneError):
    """A searcher that cannot be brought to where a journal ends."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial that is being worked out; `heard` counts the outcomes that it can build on."""

    heard: int
    trial: Future[Trial]


@contextmanager
def _blamed(searcher: Searcher, doing: str) -> Iterator[None]:
    """Say of whatever a searcher raises that it was the searcher, and where."""
    try:
        yield
    except AutopruneError:
        raise
    except Exception as error:  # code of a user's may raise anything
        places = traceback.extract_tb(error.__traceback__)
        home = getattr(sys.modules.get(type(searcher).__module__), "__file__", None)
        place = ([place for place in places if place.filename == home] or places)[-1]
        raise AutopruneError(
            f"the searcher {type(searcher).__name__}, {doing}, raised {type(error).__name__}: "
            f"{first_line(error)} ({place.filename}, line {place.lineno}); mend it there"
        ) from error


class Proposals:
    """The searcher of a sweep at work: calls are carried out one after the other, in order.

    The `first` specs are proposed before the searcher is asked at all. A proposal that repeats
    one of them, whose outcome may not be in yet, gives way to the nearest spec that is new. `seed`
    is the sweep's, from which every trial gets its own. All that the searcher does runs inside
    `guard()`, like any other work that would disturb a measurement on this node. What it raises
    becomes an AutopruneError that says where; when told, it comes out of the next call.

    A `Stateful` searcher is saved below `folder` whenever it has learnt all there is to learn,
    and restored from there by `replay`. `fault` says what the search goes on without: a state that
    could not be saved, or proposals that come out differently on replay.
    """

    def __init__(
        self,
        searcher: Searcher,
        space: SearchSpace,
        *,
        seed: int = 0,
        first: Sequence[PruningSpec] = (),
        guard: StepGuard = nullcontext,
        folder: Path | None = None,
    ) -> None:
        self.searcher, self.fault = searcher, ""
        self._space, self._seed, self._guard = space, seed, guard
        self._first = tuple(dict.fromkeys(first))
        self._states = None if folder is None else folder / STATES_FOLDER
        self._proposed: set[PruningSpec] = set()
        self._asked = self._told = 0
        self._curves: Mapping[str, float] = {}
        self._thread = Background("searcher")
        self._failed: Exception | None = None
        self._last: Trial | None = None
        self._queued: Future[None] | None = None

    @property
    def curves(self) -> Mapping[str, float]:
        """How the searcher's learning goes, as of the last outcome that it has taken in."""
        return self._curves

    def ask(self, number: int) -> Proposal:
        """Have trial `number` proposed; returns at once."""
        self._raise_what_failed()
        return Proposal(self._told, self._thread.submit(self._propose, number))

    def tell(self, observation: Observation) -> None:
        """Have the searcher hear of an outcome; returns at once."""
        self._raise_what_failed()
        self._told += 1
        self._queued = self._thread.submit(self._learn, observation, self._told)

    def settle(self) -> None:
        """Wait until the searcher has taken in all that it was told."""
        if self._queued is not None:
            self._queued.result()

    def replay(self, events: Sequence[Event]) -> None:
        """Bring a new searcher to where a journal ends, from its saved state where there is one.

        What it once proposed is told to it whatever it proposes now: other versions or another
        processor can make a difference of one bit that decides. `fault` tells of that, except of a
        `Stateful` searcher, which may differ across machines. Raises ReplayError where a state
        cannot be restored.
        """
        asked, heard = self._restored(sum(isinstance(event, Told) for event in events))
        for event in as_searched(events):
            if isinstance(event, Told):
                if self._told < heard:
                    self._told += 1
                else:
                    self.tell(event.observation)
            elif self._asked < asked:
                self._note(event.trial.spec)
            else:
                self._ask_again(event.trial)

    def close(self, *, wait: bool = True) -> None:
        """Come to an end: with `wait` of all that was asked and told, else of what is under way.

        Raises what the searcher raised.
        """
        self._thread.close(wait=wait)
        if wait:
            self._raise_what_failed()

    def _raise_what_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _propose(self, number: int) -> Trial:
        if self._last is not None and self._last.number == number:
            return self._last  # proposed before it was killed, and not journaled
        if number < len(self._first):
            spec = self._first[number]
        else:
            with self._guard(), _blamed(self.searcher, f"asked for trial {number}"):
                spec = self.searcher.ask(number)
            if not isinstance(spec, PruningSpec):
                raise AutopruneError(
                    f"the searcher proposed {spec!r} for trial {number}; `ask` returns a "
                    "PruningSpec of the space"
                )
            if spec in self._first:
                rng = np.random.default_rng(number)
                spec = nearest_unseen(self._space, spec, self._proposed, rng) or spec
        self._space.check(spec)
        self._last = Trial(number, spec, trial_seed(self._seed, number))
        self._note(spec)
        return self._last

    def _note(self, spec: PruningSpec) -> None:
        self._proposed.add(spec)
        self._asked += 1

    def _ask_again(self, trial: Trial) -> None:
        proposed = self.ask(trial.number).trial.result()
        if proposed != trial and not isinstance(self.searcher, Stateful):
            self.fault = self.fault or (
                f"trial {trial.number} is not what the searcher proposes on replay (it, its "
                "settings, a library's version or the machine is another): the search goes on "
                "from all that was run, though not as it would have"
            )
        self._proposed.add(trial.spec)

    def _learn(self, observation: Observation, told: int) -> None:
        try:
            with self._guard():
                with _blamed(self.searcher, f"told of trial {observation.trial.number}"):
                    self.searcher.tell(observation)
                    self._look_at_curves()
                # where the next outcome is waiting already, it is worth saving after that one
                if told == self._told:
                    self._save(told)
        except Exception as error:  # whatever the user's searcher raises
            self._failed = self._failed or error

    def _look_at_curves(self) -> None:
        if isinstance(self.searcher, Learner):
            self._curves = dict(self.searcher.curves)

    def _save(self, told: int) -> None:
        searcher, states = self.searcher, self._states
        if not isinstance(searcher, Stateful) or states is None:
            return
        draft, place = states / DRAFT, states / f"{told:06d}"
        try:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            searcher.save(draft)
            last = None if self._last is None else self._last.to_json()
            counts = {"asked": self._asked, "told": told, "last": last}
            (draft / COUNTS_FILE).write_text(json.dumps(counts))
            replace_folder(place, draft)
            for older in saved_states(states)[:-1]:
                shutil.rmtree(older, ignore_errors=True)
        except Exception as error:  # torch.save (2.13) raises RuntimeError for a full disk
            self.fault = f"the searcher's state in {states} is not up to date ({first_line(error)})"
        else:
            self.fault = ""

    def _restored(self, outcomes: int) -> tuple[int, int]:
        """How many asks and outcomes the restored state has behind it, of `outcomes` in all."""
        found = [] if self._states is None else saved_states(self._states)
        if not isinstance(self.searcher, Stateful) or not found:
            return 0, 0
        place = found[-1]
        try:
            counts = json.loads((place / COUNTS_FILE).read_text())
            if counts["told"] > outcomes:
                raise ValueError(
                    f"it has heard of {counts['told']} outcomes, and the journal holds {outcomes}"
                )
            self.searcher.load(place)
            self._look_at_curves()
            self._last = None if counts["last"] is None else Trial.from_json(counts["last"])
            return int(counts["asked"]), int(counts["told"])
        except Exception as error:  # whatever a damaged file raises
            raise ReplayError(
                f"{place}: the searcher cannot be restored ({type(error).__name__}: "
                f"{first_line(error)}); delete that folder: the searcher then learns anew from "
                "the journal"
            ) from error


def saved_states(states: Path) -> list[Path]:
    """The states that were saved whole, the one that had heard of most outcomes last."""
    return sorted(place for place in states.glob("*") if place.name.isdigit())
