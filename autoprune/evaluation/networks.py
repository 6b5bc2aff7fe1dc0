"""Small things done to whole networks."""

import copy

import torch
from torch import nn

from autoprune.tasks.protocol import Task, forward, tensors_of


def portable(model: nn.Module) -> nn.Module:
    """A copy of a network on the CPU in evaluation mode, without gradients: ready to travel."""
    copied = copy.deepcopy(model).cpu().eval()
    copied.zero_grad(set_to_none=True)
    return copied


def example_outputs(model: nn.Module, task: Task) -> tuple[torch.Tensor, ...]:
    """Every tensor that a network in evaluation mode returns for the task's example input."""
    with torch.no_grad():
        return tuple(tensors_of(forward(model, task.example())))
