"""Small things done to whole networks."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.domain.protocols import StepGuard
from autoprune.tasks.protocol import Task, forward, tensors_of


def portable(model: nn.Module) -> nn.Module:
    """A copy of a network on the CPU in evaluation mode, without gradients: ready to travel.

    Raises AutopruneError for a network that cannot be copied.
    """
    try:
        copied = copy.deepcopy(model).cpu().eval()
    except Exception as error:  # whatever its attributes raise; torch's tensors with a history do
        raise AutopruneError(
            f"{type(model).__name__} cannot be copied ({first_line(error)}); let it hold "
            "parameters and buffers, and compute the rest in forward"
        ) from error
    copied.zero_grad(set_to_none=True)
    return copied


def settled_steps(guard: StepGuard, device: str) -> StepGuard:
    """A guard whose steps are over when the device is idle: CUDA calls return before that."""
    if torch.device(device).type != "cuda":
        return guard

    @contextmanager
    def step() -> Iterator[None]:
        with guard():
            yield
            torch.cuda.synchronize(device)

    return step


def example_outputs(model: nn.Module, task: Task) -> tuple[torch.Tensor, ...]:
    """Every tensor that a network in evaluation mode returns for the task's example input."""
    with torch.no_grad():
        return tuple(tensors_of(forward(model, task.example())))
