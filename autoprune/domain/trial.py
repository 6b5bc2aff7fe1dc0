"""A trial and its two possible outcomes."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import PruningSpec


class Stage(StrEnum):
    """The stages of a trial, in order."""

    PRUNE = "prune"
    RECALIBRATE = "recalibrate"
    MEASURE = "measure"
    PROXY = "proxy"
    RECOVER = "recover"
    EVALUATE = "evaluate"


class Cause(StrEnum):
    """Why a trial failed; `ERROR` is everything that has no name of its own."""

    GRAPH = "graph"
    EMPTY_GROUP = "empty group"
    NAN_LOSS = "NaN loss"
    OUT_OF_MEMORY = "out of memory"
    TIME_LIMIT = "time limit"
    RUNTIME = "runtime"
    WORKER_LOST = "worker lost"
    PREEMPTED = "preempted"
    UNSAVED = "not saved"
    ERROR = "error"


class TrialError(AutopruneError):
    """A fault of one trial that has a cause of its own; the sweep counts it and goes on."""

    def __init__(self, cause: Cause, reason: str) -> None:
        self.cause = cause
        super().__init__(reason)

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception pickles by its message alone, which is not what the constructor takes.
        return TrialError, (self.cause, str(self))


@dataclass(frozen=True, slots=True)
class Trial:
    """One point to try: its number in the sweep, what to cut, and its own seed."""

    number: int
    spec: PruningSpec
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        return {"number": self.number, "spec": self.spec.to_json(), "seed": self.seed}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a trial from `to_json`."""
        return cls(int(data["number"]), PruningSpec.from_json(data["spec"]), int(data["seed"]))


def trial_seed(sweep_seed: int, number: int) -> int:
    """The seed of trial `number`: fixed by the sweep's seed, whichever worker runs it."""
    return int(np.random.SeedSequence([sweep_seed, number]).generate_state(1)[0])


@dataclass(frozen=True, slots=True)
class Speedup:
    """A paired speed measurement of a candidate against the baseline beside it.

    `ratio` is the ratio of times baseline / candidate, the mean over `runs` of each run's median
    over pairs, and [low, high] the 95% interval of what any preparation of the two gives; times
    are in milliseconds for one call at `batch_size`, medians and, ending in `_p95_ms`, 95th
    percentiles; `noise` is the coefficient of variation of the pairwise ratios and `samples` the
    number of pairs. Meanwhile other processes kept `others` cores busy, the hypervisor took the
    share `steal` of the node's time, and the processor ran at `frequency_mhz` (None where it does
    not tell). `settled` tells whether the interval over the runs became as narrow as was asked, in
    time and on a node quiet enough. `further` holds the same pair at other batch sizes.
    """

    ratio: float
    low: float
    high: float
    baseline_ms: float
    candidate_ms: float
    samples: int
    runtime: str
    device: str
    noise: float
    runs: int = 1
    batch_size: int = 1
    threads: int = 1
    settled: bool = True
    baseline_p95_ms: float | None = None
    candidate_p95_ms: float | None = None
    others: float = 0.0
    steal: float = 0.0
    frequency_mhz: float | None = None
    further: tuple["Speedup", ...] = ()

    @property
    def throughput(self) -> float:
        """Samples a second of the candidate."""
        return 1e3 * self.batch_size / self.candidate_ms

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a speedup from ``dataclasses.asdict``."""
        further = tuple(cls.from_json(one) for one in data.get("further", ()))
        return cls(**{**data, "further": further})

    def __post_init__(self) -> None:
        times = (self.ratio, self.low, self.high, self.baseline_ms, self.candidate_ms)
        if not all(math.isfinite(t) and t > 0 for t in times):
            raise AutopruneError(f"speed must be positive and finite, got {times}")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise AutopruneError(f"a speedup's noise is finite and not negative, got {self.noise}")
        if not self.low <= self.ratio <= self.high:
            raise AutopruneError(
                f"a speedup lies inside its interval: {self.low} <= {self.ratio} <= {self.high}"
            )


@dataclass(frozen=True)
class Measurement:
    """What a trial found out, as a flat table of finite numbers.

    `metrics` holds the task's own metrics on val, ``speedup``, ``latency_ms``, ``macs``,
    ``params``, ``size_mb`` and whatever else was measured; the bounds of an interval stand
    beside their metric as ``<name>_low`` and ``<name>_high``, the value before recovery as
    ``proxy_<name>``, and that right after the cut which sparse training ended in as
    ``sparsity_<name>``. `stopped_by` names the broken constraint for which the trial was ended
    early; its task metrics are then the proxy's. `seconds` is the time spent by stage.
    """

    metrics: Mapping[str, float]
    speedup: Speedup | None = None
    stopped_by: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {**self.metrics, **{f"seconds of {k}": v for k, v in self.seconds.items()}}
        wrong = {name: value for name, value in numbers.items() if not math.isfinite(value)}
        if wrong:
            raise AutopruneError(f"a measurement holds finite numbers only, got {wrong}")

    @property
    def complete(self) -> bool:
        """Whether the trial went through every stage."""
        return self.stopped_by is None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, NumPy's numbers made Python's; `from_json` is the inverse."""
        return {
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "speedup": None if self.speedup is None else asdict(self.speedup),
            "stopped_by": self.stopped_by,
            "seconds": {stage: float(value) for stage, value in self.seconds.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a measurement from `to_json`."""
        speedup = data["speedup"]
        return cls(
            dict(data["metrics"]),
            None if speedup is None else Speedup.from_json(speedup),
            data["stopped_by"],
            dict(data["seconds"]),
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A trial that gave no measurement: where it failed, of what, and the message to show."""

    stage: Stage
    cause: Cause
    reason: str

    def to_json(self) -> dict[str, str]:
        """Plain JSON types; `from_json` is the inverse."""
        return {"stage": self.stage.value, "cause": self.cause.value, "reason": self.reason}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a failure from `to_json`."""
        return cls(Stage(data["stage"]), Cause(data["cause"]), data["reason"])


Outcome = Measurement | Failure


@dataclass(frozen=True, slots=True)
class Observation:
    """A trial and its outcome, with the host it ran on and the wall seconds it took.

    `rung` is where on the ladder of fidelities the trial paused, counted from 0; None where it
    came to its end.
    """

    trial: Trial
    outcome: Outcome
    host: str = ""
    seconds: float = 0.0
    rung: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        match self.outcome:
            case Measurement() as measurement:
                outcome: dict[str, Any] = {"measurement": measurement.to_json()}
            case Failure() as failure:
                outcome = {"failure": failure.to_json()}
        return {
            "trial": self.trial.to_json(),
            **outcome,
            "host": self.host,
            "seconds": float(self.seconds),
            **({} if self.rung is None else {"rung": self.rung}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild an observation from `to_json`."""
        outcome: Outcome
        if "measurement" in data:
            outcome = Measurement.from_json(data["measurement"])
        else:
            outcome = Failure.from_json(data["failure"])
        trial = Trial.from_json(data["trial"])
        return cls(
            trial,
            outcome,
            host=str(data["host"]),
            seconds=float(data["seconds"]),
            rung=None if data.get("rung") is None else int(data["rung"]),
        )


def latest(observations: Iterable[Observation]) -> dict[int, Observation]:
    """What was told last of every trial by its number, in the order of arrival."""
    found: dict[int, Observation] = {}
    for observation in observations:
        found.pop(observation.trial.number, None)
        found[observation.trial.number] = observation
    return found
