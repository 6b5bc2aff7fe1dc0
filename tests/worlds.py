"""A world in which networks take the time that they are said to take."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from autoprune.measurement.load import NodeLoad

EXAMPLE = torch.ones(1, 2)
IDLE = NodeLoad(others=0.0, steal=0.0, frequency_mhz=None)


class Timed(nn.Module):
    """A network that takes `seconds` for one inference."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        return 2.0 * x


class World:
    """A clock that moves only when a network runs, by its time and a disturbance."""

    def __init__(self, disturbance=lambda _: 1.0):
        self.now_s = 0.0
        self.disturbance = disturbance
        self.rng = np.random.default_rng(0)
        self.calls = []

    def clock(self):
        return self.now_s

    def run(self, seconds):
        self.calls.append(seconds)
        self.now_s += seconds * self.disturbance(self)


@dataclass
class WorldRuntime:
    """Runs networks in a world; remembers what it prepared."""

    world: World
    name: str = "world"
    library: str = "world 1"
    device: str = "cpu"
    threads: int = 1
    tolerance: float = 1e-3
    error: float = 0.0
    prepared: list = field(default_factory=list)

    def prepare(self, model, example):
        seconds, world, outputs = model.seconds, self.world, (2.0 + self.error) * example
        self.prepared.append((seconds, tuple(example.shape)))

        def infer():
            world.run(seconds)
            return outputs

        return infer


@dataclass
class Watch:
    """A node that is as busy as it is said to be."""

    device: str
    load: NodeLoad = IDLE

    def read(self):
        return self.load
