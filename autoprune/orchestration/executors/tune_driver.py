"""The driver's side of the Ray Tune executor: what Tune asks, and hears, of a sweep."""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import cloudpickle
from ray import tune
from ray.exceptions import OutOfMemoryError, RayTaskError, RuntimeEnvSetupError
from ray.tune.search import Searcher as TuneSearcher

from autoprune.domain.errors import AutopruneError
from autoprune.domain.trial import Cause, Failure, Observation, Stage, Trial
from autoprune.evaluation import failure_of
from autoprune.orchestration.executors.tune_actors import GoneError
from autoprune.orchestration.interrupt import Interrupt
from autoprune.orchestration.sweep import Sweep


class InDriver:
    """Lives in the driver alone.

    Tune 2.60 pickles its searcher, stopper and callbacks for Tuner.restore, which nobody calls:
    a resumed sweep replays its journal into a new Tuner. An empty object stands in for them.
    """

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (object, ())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


WORTH = "worth"
"""The key of a result under which a trial on a rung of the ladder says what it is worth."""

RETRIES: Mapping[Cause, int | None] = {
    Cause.WORKER_LOST: 2,
    Cause.PREEMPTED: None,
    Cause.OUT_OF_MEMORY: 1,
    Cause.TIME_LIMIT: 0,
}
"""How often a trial that was lost with its worker is run again, by cause; None does not bound."""

PATIENCE_S = 0.03
"""How long Tune's loop may wait for a proposal: most searchers are done by then."""


@dataclass
class Slot:
    """A trial under way: when its worker took it up, and the last stage that ended."""

    trial: Trial
    started: float
    stage: Stage | None = None

    @property
    def under_way(self) -> Stage:
        """The stage that a worker is in that has not been heard of since the last one ended."""
        if self.stage is None:
            return Stage.PRUNE
        if self.stage is Stage.RECOVER:
            return Stage.RECOVER
        stages = list(Stage)
        return stages[min(stages.index(self.stage) + 1, len(stages) - 1)]


class Adapter(InDriver, TuneSearcher):
    """Lets Tune drive a Sweep: at most `slots` trials are under way at a time.

    Holding back keeps Tune from asking far ahead of the results, so that the searcher knows as
    much as it can, and one slot proposes just what the inline executor would.
    """

    def __init__(
        self,
        sweep: Sweep,
        slots: Callable[[], int],
        interrupt: Interrupt,
        *,
        retries: Mapping[Cause, int | None] = RETRIES,
        limit_s: float | None = None,
    ) -> None:
        """`slots` tells how many trials may run just now.

        `limit_s` is how long a trial may take; its worker ends itself where it takes longer.
        """
        super().__init__()
        self.sweep, self.slots, self.interrupt = sweep, slots, interrupt
        self.retries, self.limit_s = retries, limit_s
        self.fault: Exception | None = None
        self.live: dict[str, Slot] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial, None while every slot is taken, or FINISHED."""
        if self.fault is not None or self.interrupt.requested:
            return TuneSearcher.FINISHED
        if len(self.live) >= self.slots():
            return None
        try:
            trial = self.sweep.next_trial(wait_s=PATIENCE_S)
        except Exception as error:
            self.fault = error
            return TuneSearcher.FINISHED
        if trial is None:
            # what runs may yet be lost with its worker, and Tune asks no more once it has finished
            over = self.sweep.spent and not self.live
            return TuneSearcher.FINISHED if over else None
        self.live[trial_id] = Slot(trial, time.perf_counter())
        return {"trial": json.dumps(trial.to_json())}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the sweep of a trial that came to its end; of an error `failed` tells more."""
        if not error and result is not None and "observation" in result:
            del self.live[trial_id]
            self._record(Observation.from_json(json.loads(result["observation"])))

    def progress(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Tell the sweep of a stage or an epoch that has ended."""
        slot = self.live[trial_id]
        slot.stage = Stage(result["stage"])
        metrics, epoch = json.loads(result["metrics"]), int(result["epoch"])
        self.sweep.progress(slot.trial, slot.stage, metrics, epoch=epoch)

    def reached(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Tell the sweep of a trial that came to a rung of the ladder; whether it goes on."""
        self.progress(trial_id, result)
        worth = Observation.from_json(json.loads(result[WORTH]))
        try:
            goes_on = self.sweep.reached(worth)
        except Exception as fault:  # raised again once Tune has wound down
            self.fault, goes_on = fault, False
        if not goes_on:
            del self.live[trial_id]
        return goes_on

    def failed(self, trial_id: str, error: Exception | None) -> None:
        """Tell the sweep of a trial whose worker died, or never came to work on it."""
        slot = self.live.pop(trial_id)
        spent_s = time.perf_counter() - slot.started
        failure = _failure(error, slot.under_way)
        if failure.cause is Cause.WORKER_LOST and self.limit_s and spent_s >= self.limit_s:
            failure = replace(
                failure,
                cause=Cause.TIME_LIMIT,
                reason=f"it hung: it was still in this stage {spent_s:.0f} s after it began, so "
                f"its worker was ended; budget.trial_limit_s is {self.limit_s:g}",
            )
        observation = Observation(slot.trial, failure, seconds=spent_s)
        if failure.cause in self.retries:
            self._guarded(lambda: self.sweep.lost(observation, again=self.retries[failure.cause]))
        else:
            self._record(observation)

    def cut_off(self, part: str) -> None:
        """The cluster is gone: nothing more can come of the sweep in this process."""
        self.fault = AutopruneError(
            f"the Ray cluster is gone: {part} no longer answers; start it again, then resume the "
            "sweep: nothing is lost that came to an outcome"
        )

    def leave(self) -> None:
        """End the process, from which Ray does not let its main thread go, with what is to be said.

        Nothing is lost by it: the journal is on the disk, and Ray would do the same a little later.
        """
        again = self.sweep.view.command("resume")
        lines = [str(self.fault), f"once that is mended, `{again}` goes on"]
        os.write(2, "".join(f"autoprune: {line}\n" for line in lines).encode())
        os._exit(1)

    def _record(self, observation: Observation) -> None:
        self._guarded(lambda: self.sweep.record(observation))

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as fault:  # raised again once Tune has wound down
            self.fault = fault

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Progress is heard through the callback, which sees results unflattened."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the journal is the state of a sweep."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a resumed sweep replays its journal into a new Tuner."""

    def get_state(self) -> dict[str, Any]:
        """Nothing: the journal is the state of a sweep."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back the nothing of `get_state`."""
        assert not state


class ProgressCallback(InDriver, tune.Callback):
    """Hears from Tune of what happens to trials, results unflattened."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A worker takes up a trial: from now on its time counts."""
        slot = self.adapter.live.get(trial.trial_id)
        if slot is not None:
            slot.started = time.perf_counter()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A stage or an epoch has ended."""
        if "stage" in result and WORTH not in result:
            self.adapter.progress(trial.trial_id, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A worker died, or could not begin."""
        # Tune 2.60 looks for the error in the storage, where it has not been copied to yet
        file = trial.pickled_error_file
        error = None if file is None else cloudpickle.loads(Path(file).read_bytes())
        self.adapter.failed(trial.trial_id, error)

    def get_state(self) -> None:
        """Nothing to save."""
        return


class Stopper(InDriver, tune.Stopper):
    """Ends the experiment at once where running trials are to be given up."""

    def __init__(self, adapter: Adapter, interrupt: Interrupt) -> None:
        self.adapter, self.interrupt = adapter, interrupt

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial is stopped from here: `run_trial` ends its own."""
        return False

    def stop_all(self) -> bool:
        """Whether the experiment ends at once."""
        return self.interrupt.give_up or self.adapter.fault is not None


def trial_name(trial: Any) -> str:
    """What Tune calls a trial and its folder."""
    number = json.loads(trial.config["trial"])["number"]
    return f"trial-{number:04d}-{trial.trial_id}"


def _failure(error: Exception | None, stage: Stage) -> Failure:
    """What a trial failed of that did not get to tell it itself."""
    if isinstance(error, GoneError):
        error = error.why
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        return failure_of(error.cause, stage)
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    if isinstance(error, OutOfMemoryError):
        return Failure(stage, Cause.OUT_OF_MEMORY, f"the node ran out of memory: {lines[0]}")
    if getattr(error, "actor_init_failed", False):
        return Failure(stage, Cause.ERROR, f"a worker could not begin: {lines[-1]}")
    why = f" ({lines[-1]})" if lines else ""
    if getattr(error, "preempted", False):
        return Failure(stage, Cause.PREEMPTED, f"the node of the trial was preempted{why}")
    if isinstance(error, RuntimeEnvSetupError):
        return Failure(stage, Cause.WORKER_LOST, f"a node could not set up a worker{why}")
    return Failure(stage, Cause.WORKER_LOST, f"the worker process of the trial died{why}")
