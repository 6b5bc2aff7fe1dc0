"""A small classification task for the tests of pruning: four blobs in an image."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from autoprune.domain.objective import Metric
from autoprune.tasks.protocol import device_of, move


class Blobs:
    """Which quarter of the image is bright. 48 samples a split, batches of 16."""

    metrics = (Metric("accuracy"),)

    def __init__(self, *, samples: int = 48) -> None:
        generator = torch.Generator().manual_seed(0)
        self.y = torch.arange(samples) % 4
        self.x = torch.randn(samples, 1, 4, 4, generator=generator)
        for x, y in zip(self.x, self.y, strict=True):
            x[:, 2 * int(y // 2) :, 2 * int(y % 2) :] += 2

    def batches(self, split: str, *, seed: int | None = None) -> list[Any]:
        del split  # they are all alike
        order = torch.arange(len(self.x))
        if seed is not None:
            order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(seed))
        return [(self.x[i], self.y[i]) for i in order.split(16) if len(i)]

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = move(batch, device_of(model))
        return F.cross_entropy(model(x), y)

    def evaluate(self, model: nn.Module, batches: Iterable[Any]) -> dict[str, float]:
        hits = [(model(x).argmax(1) == y).float() for x, y in batches]
        return {"accuracy": float(torch.cat(hits).mean())}

    def example(self) -> torch.Tensor:
        return self.x[:1]


class OwnFit(Blobs):
    """A task that trains by itself."""

    def fit(self, model: nn.Module, *, epochs: int, seed: int) -> Iterator[float]:
        del model, seed
        yield from [0.0] * epochs


class Unsized(Blobs):
    """A task whose passes have no length."""

    def batches(self, split: str, *, seed: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        return iter(super().batches(split, seed=seed))


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def small_net(*, dropout: float = 0.2, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(128, 6),
            nn.ReLU(),
            nn.Linear(6, 4),
        )
