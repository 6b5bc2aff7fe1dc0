"""What it means to train and to judge a network: the task protocol and the built-in tasks."""

from autoprune.tasks.classification import Classification
from autoprune.tasks.protocol import (
    CustomFit,
    Inputs,
    Split,
    Task,
    device_of,
    forward,
    map_inputs,
    move,
    tensors_of,
)

__all__ = [
    "Classification",
    "CustomFit",
    "Inputs",
    "Split",
    "Task",
    "device_of",
    "forward",
    "map_inputs",
    "move",
    "tensors_of",
]
