"""What it means to train and to judge a network: the task protocol and the built-in tasks."""

from autoprune.tasks.classification import Classification
from autoprune.tasks.protocol import CustomFit, Inputs, Split, Task, device_of, forward, move

__all__ = [
    "Classification",
    "CustomFit",
    "Inputs",
    "Split",
    "Task",
    "device_of",
    "forward",
    "move",
]
