"""Networks and data with which something is wrong: what `_target_` may lead to."""

from typing import Any

import torch
from torch import nn

from autoprune.data import Splits, TensorSplit


class Fails(nn.Module):
    """Cannot take the data's images."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layer(images.flatten(1))
        return scores


class OneLayer(nn.Module):
    """Has nothing that can be pruned: the only layer gives the output."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(images.flatten(1))
        return scores


class Detached(nn.Module):
    """Leaves autograd, by which graphs are traced."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(images.flatten(1)))
        return scores.detach()


def number(**_: Any) -> int:
    """No network at all."""
    return 3


def raises(**_: Any) -> None:
    """Fails while it is built."""
    raise RuntimeError("the moon is full")


def splits(fault: str, **_: Any) -> Splits:
    """Data of digits' shape, 8 x 8, with a fault."""
    parts = []
    for part in range(3):
        inputs, labels = torch.rand(20, 1, 8, 8), torch.arange(20) % 10
        if fault == "negative":
            labels[3] = -1
        if fault == "not_finite":
            inputs[0, 0, 0, 0] = torch.nan
        if fault == "shapes" and part == 1:
            inputs = inputs[:, :, :4]
        if fault == "lengths":
            labels = labels[:-1]
        parts.append(TensorSplit(inputs, labels))
    return Splits(*parts)


def searcher(space: object, goal: object, seed: int) -> object:
    """What a factory gives that is no searcher."""
    return (space, goal, seed)
