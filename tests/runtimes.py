"""Runtimes that tell what happens to them; a module of its own, for workers import it."""

from dataclasses import dataclass

import ray

from autoprune.domain.trial import Cause, TrialError
from autoprune.measurement.runtimes import TorchRuntime


@dataclass(frozen=True)
class Telling(TorchRuntime):
    """Eager PyTorch that tells the node which it ran on."""

    @property
    def library(self):
        return f"node {ray.get_runtime_context().get_node_id()}"


@dataclass(frozen=True)
class Refusing(TorchRuntime):
    """A runtime that can run nothing."""

    def prepare(self, model, example):
        raise TrialError(Cause.RUNTIME, "operator 'cut' has no form here")
