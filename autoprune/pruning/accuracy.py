"""Judging a network by its task."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import is_measured
from autoprune.domain.protocols import StepGuard
from autoprune.pruning.isolation import mode, own_rng
from autoprune.tasks.protocol import Split, Task, device_of


def evaluate(
    model: nn.Module, task: Task, split: Split, *, step_guard: StepGuard = nullcontext
) -> dict[str, float]:
    """The task's metrics over a split.

    In evaluation mode, without gradients, each batch inside `step_guard()`; the network's modes
    and the global random numbers are as before afterwards. Raises AutopruneError for a task that
    leaves out one of its metrics, or names one like what is measured of every network.
    """
    # Not inference_mode: tensors that a network caches in it could not be trained with later.
    with (
        mode(model, training=False),
        own_rng(0, device_of(model)),
        torch.no_grad(),
        closing(_guarded(task.batches(split), step_guard)) as batches,
    ):
        found = task.evaluate(model, batches)
    if not isinstance(found, Mapping):
        raise AutopruneError(
            f"the task's evaluate returned a {type(found).__name__}; return metrics by name"
        )
    taken = sorted(name for name in found if is_measured(name))
    if taken:
        raise AutopruneError(
            f"the task's evaluate returned {taken}, which are measured of every network; give them "
            "other names, or leave them out"
        )
    missing = [metric.name for metric in task.metrics if metric.name not in found]
    if missing:
        raise AutopruneError(
            f"the task's evaluate returned {sorted(found)} without {missing}; return every metric"
        )
    return {name: float(value) for name, value in found.items()}


def _guarded(batches: Iterable[Any], step_guard: StepGuard) -> Generator[Any, None, None]:
    """Hold the guard while the consumer works on a batch, not while the next one is loaded."""
    for batch in batches:
        with step_guard():
            yield batch
