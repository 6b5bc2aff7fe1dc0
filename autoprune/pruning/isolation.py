"""Contexts that leave a network's modes and the process's random numbers as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


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
