"""Proving a pruned network again, in a fresh process.

The process knows nothing of the sweep. It rebuilds the network from its folder, compares its
outputs with those it was saved with, judges it on the test split, and measures its speed against
the baseline.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.protocols import StepGuard
from autoprune.domain.trial import Speedup
from autoprune.evaluation import example_outputs
from autoprune.measurement.difference import relative_difference
from autoprune.measurement.meter import SpeedMeter
from autoprune.orchestration.artifacts import load, read_outputs
from autoprune.orchestration.fresh import FreshProcessError, in_fresh_process
from autoprune.pruning.accuracy import evaluate
from autoprune.tasks.protocol import Task


@dataclass(frozen=True)
class Subject:
    """What is to be proved: the network in `folder` against `baseline`, by `task` and `meter`.

    Both are judged on `device`, each batch inside `step_guard()`; the meter knows its own.
    """

    folder: Path
    baseline: nn.Module
    task: Task
    meter: SpeedMeter
    step_guard: StepGuard = nullcontext
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Proof:
    """What a fresh process found.

    `difference` is the largest difference between the outputs saved with the network and those
    of the rebuilt one, as a part of the largest entry (infinite where they cannot be compared);
    `candidate` and `baseline` hold the task's metrics on the test split.
    """

    difference: float
    candidate: Mapping[str, float]
    baseline: Mapping[str, float]
    speedup: Speedup

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a proof from `to_json`."""
        return cls(**{**data, "speedup": Speedup.from_json(data["speedup"])})


def prove(subject: Subject) -> Proof:
    """Rebuild, compare, judge and measure, in this process."""
    torch.set_num_threads(subject.threads)
    task, device = subject.task, subject.device
    network = load(subject.folder, model=subject.baseline)
    saved, found = read_outputs(subject.folder), example_outputs(network, task)
    judged = [
        evaluate(copy.deepcopy(model).to(device), task, "test", step_guard=subject.step_guard)
        for model in (network, subject.baseline)
    ]
    return Proof(
        difference=difference(saved, found),
        candidate=judged[0],
        baseline=judged[1],
        speedup=subject.meter.measure(network, subject.baseline, task.example()),
    )


def difference(saved: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """How far outputs are apart, as `relative_difference` has it.

    Infinite, too, where one holds a NaN or an infinity: equal ones prove nothing.
    """
    if not all(tensor.isfinite().all() for tensor in (*saved, *found)):
        return math.inf
    before, now = ([tensor.double().numpy() for tensor in side] for side in (saved, found))
    return relative_difference(now, before)


def prove_afresh(subject: Subject, *, code_paths: Sequence[str] = ()) -> Proof:
    """`prove` in a new process. Raises AutopruneError with its last words where it fails."""
    try:
        return Proof.from_json(in_fresh_process(_proved, subject, code_paths=code_paths))
    except FreshProcessError as error:
        raise AutopruneError(
            f"the proof of {subject.folder} could not be made: {error}; mend that, or choose "
            "another member of the front"
        ) from error


def _proved(subject: Subject) -> dict[str, Any]:
    return prove(subject).to_json()
