"""The networks worth keeping, in the sweep's own folder wherever its trials save."""

import json
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from autoprune.domain.errors import first_line
from autoprune.domain.pareto import ParetoFront
from autoprune.domain.trial import Measurement, Observation, Stage, Trial
from autoprune.orchestration.artifacts import MODEL_FOLDER, RECIPE_FILE
from autoprune.orchestration.background import Background
from autoprune.orchestration.folders import trial_folder
from autoprune.orchestration.storage import Storage
from autoprune.orchestration.store import PAUSES_S, StoreError, retried
from autoprune.orchestration.view import SweepView


class NetworksWatcher:
    """Brings home the networks of the front, and deletes those that left it, or never joined it.

    Home is the sweep's folder; a sweep of thousands of trials would fill its disk. With `keep_all`
    every network is brought home, and none deleted. It happens in a thread behind the sweep's back;
    what could not be brought home is tried again at the end, and then `fault` says so. When all is
    home after the last trial, nothing of the sweep is left in the storage.

    A trial that waits on the ladder keeps what it goes on from until the sweep is over; where a
    larger budget then lets it climb after all, it begins anew. What such a trial is worth may turn
    out to be less, so members of the front are kept that it alone dominates.
    """

    def __init__(self, folder: Path, storage: Storage, *, keep_all: bool = False) -> None:
        self.folder, self.storage, self.keep_all = folder, storage, keep_all
        self._members: set[int] = set()
        self._waiting: set[int] = set()
        self._abroad: dict[int, str] = {}
        self._reachable = True  # once it is not, every network is tried once only
        self._litter: str | None = None

    @property
    def fault(self) -> str | None:
        """What is not as it should be, once the sweep has ended."""
        if not self._abroad:
            return self._litter
        numbers, reasons = sorted(self._abroad), dict.fromkeys(self._abroad.values())
        which = f"trial{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
        return (
            f"networks worth keeping are not in {self.folder}: {which} ({'; '.join(reasons)}); "
            "once that is mended, a resume of the sweep brings them"
        )

    def on_start(self, view: SweepView) -> None:
        """Take up the networks that an earlier session kept, and those that it left behind."""
        self._background = Background("autoprune-networks")
        self._ended = ParetoFront(view.goal, [o for o in view.observations if o.rung is None])
        self._waiting = {o.trial.number for o in view.observations if o.rung is not None}
        self._background.submit(self._bring, self._wanted(view))
        self._discard(view, among={o.trial.number for o in view.observations})

    def on_progress(
        self, trial: Trial, stage: Stage, metrics: Mapping[str, float], *, epoch: int
    ) -> None:
        """The front changes with outcomes only."""

    def on_observation(self, observation: Observation, view: SweepView) -> None:
        """Bring what is worth keeping, and delete what is not any more."""
        number = observation.trial.number
        if observation.rung is None:
            self._ended.add(observation)
            self._waiting.discard(number)
        else:
            self._waiting.add(number)
        self._discard(view, among={number})
        if number in self._wanted(view):
            self._background.submit(self._fetch, number)

    def on_finish(self, view: SweepView, *, complete: bool) -> None:
        """Bring what is missing yet. No trial of a sweep that is over goes on."""
        if complete:
            waited, self._waiting = self._waiting, set()
            self._discard(view, among=waited)
        self._background.submit(self._bring, self._wanted(view))
        if complete:
            self._background.submit(self._clear)
        self._background.close(wait=True)

    def _wanted(self, view: SweepView) -> set[int]:
        if self.keep_all:
            return {o.trial.number for o in view.observations if _came_through(o)}
        return {m.trial.number for m in (*view.front.members, *self._ended.members)}

    def _discard(self, view: SweepView, *, among: set[int]) -> None:
        """Delete what left the front, and those of `among` that are not on it and do not wait."""
        if self.keep_all:
            return
        members = self._wanted(view)
        for number in (self._members | among) - members - self._waiting:
            self._background.submit(self._drop, number)
        self._members = members

    def _bring(self, numbers: Iterable[int]) -> None:
        """Bring those that are not home."""
        self._reachable = True
        for number in sorted(numbers):
            if not at_home(self.folder, number):
                self._fetch(number)

    def _fetch(self, number: int) -> None:
        fetch = partial(self.storage.fetch, number, self.folder)
        try:
            found = retried(fetch, pauses_s=PAUSES_S if self._reachable else ())
        except Exception as error:  # a full disk here, or whatever a store has to say
            self._reachable = False
            self._abroad[number] = first_line(error)
        else:
            self._reachable = True
            self._abroad.pop(number, None)
            if not found and not (trial_folder(self.folder, number) / MODEL_FOLDER).is_dir():
                self._abroad[number] = "there is none where its trial saved"

    def _drop(self, number: int) -> None:
        self._abroad.pop(number, None)
        shutil.rmtree(trial_folder(self.folder, number), ignore_errors=True)
        if self._reachable:  # what is left goes at the end, or with a resume
            try:
                self.storage.delete(number)
            except StoreError:
                self._reachable = False

    def _clear(self) -> None:
        if self._abroad:
            return
        try:
            retried(self.storage.clear)
        except StoreError as error:
            self._litter = f"what the trials saved is still there: {first_line(error)}"


def _came_through(observation: Observation) -> bool:
    """Whether a trial has a network to keep: one that failed, or was stopped early, has none."""
    outcome = observation.outcome
    return isinstance(outcome, Measurement) and outcome.complete


def at_home(folder: Path, number: int) -> bool:
    """Whether the network of a trial that came to its end is in the sweep's folder."""
    try:
        facts = json.loads((trial_folder(folder, number) / MODEL_FOLDER / RECIPE_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and bool(facts.get("done"))
