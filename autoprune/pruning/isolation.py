"""What leaves a network's modes and the process's random numbers as they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.tasks.protocol import Inputs, device_of, forward, move


@contextmanager
def own_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators of the CPU and of `device` inside, restore them afterwards."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        # Not torch.manual_seed: it reseeds every accelerator, also those that are not forked.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def derive(seed: int, *path: int) -> int:
    """A seed of its own for one part of what `seed` governs, e.g. for every epoch."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0])


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode inside; every module's own mode is restored afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


def outputs_of(model: nn.Module, example: Inputs) -> Any:
    """What a network computes of an example in evaluation mode, where the network is."""
    device = device_of(model)
    with mode(model, training=False), own_rng(0, device), torch.no_grad():
        return forward(model, move(example, device))
