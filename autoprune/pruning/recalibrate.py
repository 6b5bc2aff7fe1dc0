"""Statistics of batch norm, estimated anew after a cut."""

from contextlib import nullcontext
from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.domain.errors import AutopruneError
from autoprune.domain.protocols import StepGuard
from autoprune.pruning.isolation import derive, mode, own_rng
from autoprune.tasks.protocol import Task, device_of


def recalibrate(
    model: nn.Module,
    task: Task,
    *,
    batches: int,
    seed: int,
    step_guard: StepGuard = nullcontext,
) -> None:
    """Estimate the statistics of every batch norm anew, in place, as the mean over `batches`.

    Pruning shifts what reaches a batch norm; its old statistics rank pruned networks badly (Li
    et al., EagleEye, ECCV 2020). Weights, modes, momenta and the global random numbers stay as
    they are, and a network without batch norm altogether. Each batch runs inside `step_guard()`.
    Raises AutopruneError where `batches` is below 1 or the train split has no batch.
    """
    if batches < 1:
        raise AutopruneError(f"batch norm is recalibrated over {batches} batches; choose 1 or more")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    seen = 0
    with own_rng(derive(seed, 0), device_of(model)), mode(model, training=False), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative mean
                norm.train()
            for batch in islice(task.batches("train", seed=seed), batches):
                with step_guard():
                    task.loss(model, batch)
                seen += 1
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not seen:
        raise AutopruneError("the task's train split has no batch to recalibrate batch norm with")
