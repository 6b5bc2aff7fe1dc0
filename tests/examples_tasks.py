"""Two tasks as a user would write them, with networks that can be pruned: none classifies images.

Axis legend: N samples, B batch, F features, T tokens, V vocabulary, D embedding.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.nn import functional

from autoprune.data import Splits, TensorSplit
from autoprune.domain.objective import Direction, Metric
from autoprune.tasks import Split, device_of, move

Batch = tuple[torch.Tensor, torch.Tensor]


def pairs(data: Splits, split: Split, *, batch_size: int, seed: int | None) -> Iterator[Batch]:
    """One pass over a split, shuffled where there is a seed."""
    samples: TensorSplit = getattr(data, split)
    order = torch.arange(len(samples))
    if seed is not None:
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    for start in range(0, len(samples), batch_size):
        chosen = order[start : start + batch_size]
        yield samples.inputs[chosen], samples.targets[chosen]


def in_three(inputs: torch.Tensor, targets: torch.Tensor, *, seed: int) -> Splits:
    """60% of the samples to train on, 20% for val, 20% for test."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    cuts = (len(order) * 6 // 10, len(order) * 8 // 10)
    parts = torch.tensor_split(order, cuts)
    return Splits(*(TensorSplit(inputs[part], targets[part]) for part in parts))


@dataclass(frozen=True)
class Regression:
    """Progression of diabetes from ten measurements: mean squared error, judged by R2."""

    data: Splits
    batch_size: int = 32
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("r2", Direction.MAX, tolerance=0.1),
        Metric("mae", Direction.MIN),
    )

    def batches(self, split: Split, *, seed: int | None = None) -> Iterator[Batch]:
        return pairs(self.data, split, batch_size=self.batch_size, seed=seed)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        inputs, targets = move(batch, device_of(model))
        return functional.mse_loss(model(inputs), targets)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        predicted, expected = [], []
        for inputs, targets in batches:
            predicted.append(model(move(inputs, device_of(model))).cpu().double())
            expected.append(targets.double())
        errors, targets = torch.cat(predicted) - torch.cat(expected), torch.cat(expected)
        spread = (targets - targets.mean()).square().mean()
        return {
            "r2": 1.0 - float(errors.square().mean() / spread),
            "mae": float(errors.abs().mean()),
        }

    def example(self) -> torch.Tensor:
        return self.data.train.inputs[:1].clone()


def diabetes(*, seed: int = 0) -> Regression:
    """The regression task on scikit-learn's diabetes data, everything in standard units."""
    bundled = load_diabetes()
    inputs = torch.from_numpy(bundled.data).float()
    targets = torch.from_numpy(bundled.target).float()[:, None]
    return Regression(
        in_three(inputs / inputs.std(0), (targets - targets.mean()) / targets.std(), seed=seed)
    )


def regressor(*, width: int = 64, depth: int = 2) -> nn.Sequential:
    """A perceptron float[B, 10] -> float[B, 1]."""
    layers: list[nn.Module] = []
    features = 10
    for _ in range(depth):
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 1))


@dataclass(frozen=True)
class LanguageModel:
    """Next-token prediction on windows int64[N, T], judged by perplexity: lower is better."""

    data: Splits
    batch_size: int = 32
    metrics: ClassVar[tuple[Metric, ...]] = (Metric("perplexity", Direction.MIN),)

    def batches(self, split: Split, *, seed: int | None = None) -> Iterator[Batch]:
        return pairs(self.data, split, batch_size=self.batch_size, seed=seed)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        tokens, following = move(batch, device_of(model))
        return functional.cross_entropy(model(tokens), following)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        total, count = 0.0, 0
        for batch in batches:
            total += float(self.loss(model, batch)) * batch[1].numel()
            count += batch[1].numel()
        return {"perplexity": math.exp(total / count)}

    def example(self) -> torch.Tensor:
        return self.data.train.inputs[:1].clone()


class CausalConvolutions(nn.Module):
    """Dilated causal convolutions over an embedding; int64[B, T] -> scores float[B, V, T].

    Token t sees the 2 * (1 + 2 + 4 + ...) tokens before it and none after.
    """

    def __init__(self, *, vocabulary: int, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.Sequential()
        for level in range(depth):
            dilation = 2**level
            self.layers.append(nn.ConstantPad1d((2 * dilation, 0), 0.0))
            self.layers.append(nn.Conv1d(width, width, 3, dilation=dilation))
            self.layers.append(nn.ReLU())
        self.head = nn.Conv1d(width, vocabulary, 1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(tokens).transpose(1, 2)))  # type: ignore[no-any-return]


NOUNS = ("fox", "owl", "hare", "wolf", "crow", "bear")
ADJECTIVES = ("old", "quick", "small", "grey")
VERBS = ("sees", "hears", "follows", "fears")
PLACES = ("forest", "valley", "river")
VOCABULARY = (*NOUNS, *ADJECTIVES, *VERBS, *PLACES, "the", "in", ".")


def text(sentences: int, *, seed: int) -> list[str]:
    """Sentences of a grammar in which the verb follows from the subject, three words before."""
    random = np.random.default_rng(seed)
    words: list[str] = []
    for _ in range(sentences):
        subject, thing = random.choice(len(NOUNS), size=2, replace=False)
        words += ["the", str(random.choice(ADJECTIVES)), NOUNS[subject]]
        words += [VERBS[subject % len(VERBS)], "the", NOUNS[thing]]
        words += ["in", "the", PLACES[thing % len(PLACES)], "."]
    return words


def sentences(*, count: int = 1500, length: int = 24, seed: int = 0) -> LanguageModel:
    """The language model's task on windows of `length` tokens of generated text."""
    numbers = {word: number for number, word in enumerate(VOCABULARY)}
    stream = torch.tensor([numbers[word] for word in text(count, seed=seed)])
    windows = stream.unfold(0, length + 1, length)
    return LanguageModel(
        in_three(windows[:, :-1].contiguous(), windows[:, 1:].contiguous(), seed=seed)
    )


def language_model(*, width: int = 48, depth: int = 3) -> CausalConvolutions:
    """The network for `sentences`."""
    return CausalConvolutions(vocabulary=len(VOCABULARY), width=width, depth=depth)
