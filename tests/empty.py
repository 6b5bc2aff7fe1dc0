"""Trials that do no work, and tell all that a real one does; workers import them from here."""

import json
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ray import tune

from autoprune.domain.trial import Measurement, Observation, Speedup, Stage, Trial
from autoprune.evaluation import Progress, TrialLimits
from autoprune.orchestration.executors.tune import TrialActor
from autoprune.problems import ChainProblem

FIRST, FIRST_S = 2, 10.0
"""So many trials take so long: Tune 2.60 starts a second worker only where the first is busy for
longer than that takes, or has every trial wait for one worker."""

METRICS = {
    Stage.PRUNE: ("macs", "params", "size_mb"),
    Stage.RECALIBRATE: (),
    Stage.MEASURE: ("speedup", "speedup_low", "speedup_high", "latency_ms"),
    Stage.PROXY: ("accuracy", "proxy_accuracy"),
    Stage.RECOVER: ("train_loss",),
    Stage.EVALUATE: ("accuracy",),
}
"""What a trial of one epoch tells of every stage."""


@dataclass(frozen=True)
class EmptyContext:
    """What the trials share: the problem whose formula gives their outcomes, and what they tell.

    Silent ones tell their outcome alone, in one result.
    """

    problem: ChainProblem
    silent: bool = False
    limits: TrialLimits = field(default_factory=TrialLimits)


def empty_steps(trial: Trial, context: EmptyContext) -> Generator[Progress, None, Observation]:
    """The stages of a trial, each over at once but for the first trials."""
    time.sleep(FIRST_S if trial.number < FIRST else 0.0)
    for stage, names in () if context.silent else METRICS.items():
        yield Progress(stage, dict.fromkeys(names, 1.0), epoch=int(stage is Stage.RECOVER))
    return whole(context.problem.observe(trial))


def whole(observation: Observation) -> Observation:
    """An observation of a known problem with all that a real one has."""
    outcome = observation.outcome
    assert isinstance(outcome, Measurement)
    ratio, seconds = outcome.metrics["speedup"], dict.fromkeys(map(str, METRICS), 0.1)
    speedup = Speedup(ratio, ratio, ratio, 1.0, 1.0 / ratio, 60, "formula", "none", noise=0.01)
    more = {"macs": 1e6 / ratio, "params": 1e5 / ratio, "latency_ms": 1.0 / ratio}
    more |= {"speedup_low": ratio, "speedup_high": ratio, "train_loss": 1.0}
    measurement = Measurement({**outcome.metrics, **more}, speedup, seconds=seconds)
    return replace(observation, outcome=measurement)


class EmptyActor(TrialActor):
    """A slot of `TuneExecutor` whose trials are empty."""

    _context: EmptyContext

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        trial = Trial.from_json(json.loads(new_config["trial"]))
        self._steps = empty_steps(trial, self._context)
        self._began = time.perf_counter()
        return True


class StockTrial(tune.Trainable):
    """As little of a trial as stock Ray Tune takes: one step, one result."""

    results = 1

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        number, last = int(self.trial_id.rpartition("_")[2]), self.iteration + 1 == self.results
        time.sleep(FIRST_S if last and number < FIRST else 0.0)
        return {"accuracy": 0.9, "speedup": 2.0, "done": last}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save, as with our own."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


class StockStages(StockTrial):
    """The same for as many results as a trial of ours tells: its stages, and its outcome."""

    results = len(METRICS) + 1
