"""Image (or any tensor) classification with one label a sample.

Axis legend: B batch, C channels, S image side, K classes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from autoprune.data.splits import Splits, TensorSplit
from autoprune.domain.errors import AutopruneError
from autoprune.domain.objective import Direction, Metric
from autoprune.tasks.protocol import Split, device_of, move

Augment = Literal["none", "shift", "flip_shift"]
Batch = tuple[torch.Tensor, torch.Tensor]

NORMAL_95 = 1.959963984540054
SHIFT_SHARE = 8


@dataclass(frozen=True)
class Classification:
    """Cross-entropy and accuracy over splits with one label a sample.

    A batch is a pair of inputs float32[B, ...] and labels int64[B]; uint8 inputs are pixels and
    scaled from 0..255 to [-1, 1]. `label_smoothing` acts on the training loss alone. `augment`
    acts on shuffled batches of train alone: ``shift`` moves every image by up to an eighth of
    its side, repeating the border, ``flip_shift`` also mirrors half of them.

    Raises AutopruneError for labels that are not int64[N], options out of range, and inputs
    that are no images where they are to be augmented.
    """

    data: Splits
    _: KW_ONLY
    batch_size: int = 64
    label_smoothing: float = 0.0
    augment: Augment = "none"

    def __post_init__(self) -> None:
        if not isinstance(self.data, Splits):
            raise AutopruneError(
                f"data is a {type(self.data).__name__}; give (return) autoprune.data.Splits with "
                "train, val and test"
            )
        targets, inputs = self.data.train.targets, self.data.train.inputs
        if targets.dtype is not torch.int64 or targets.ndim != 1:
            raise AutopruneError(
                f"classification needs one int64 label a sample; the targets are "
                f"{targets.dtype}{list(targets.shape)}"
            )
        for name, split in self.data:
            if int(split.targets.max()) > int(targets.max()):
                raise AutopruneError(
                    f"labels of {name!r} lie in {int(split.targets.min())}.."
                    f"{int(split.targets.max())} and those of 'train' up to {int(targets.max())}; "
                    "give every split the same classes"
                )
        if inputs.dtype is torch.int64:
            raise AutopruneError("classification needs float32 or uint8 inputs; they are int64")
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise AutopruneError(f"batch_size is {self.batch_size!r}; choose an integer above 0")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise AutopruneError(f"label_smoothing is {self.label_smoothing}; choose it in [0, 1)")
        if self.augment not in get_args(Augment):
            raise AutopruneError(
                f"augment is {self.augment!r}; choose one of {list(get_args(Augment))}"
            )
        if self.augment != "none" and inputs.ndim != 4:
            raise AutopruneError(
                f"augment {self.augment!r} needs images [N, C, S, S]; the inputs are "
                f"{list(inputs.shape)}; choose 'none'"
            )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy in [0, 1], then cross-entropy."""
        return (
            Metric("accuracy", Direction.MAX, tolerance=0.05),
            Metric("loss", Direction.MIN),
        )

    def batches(self, split: Split, *, seed: int | None = None) -> "Pass":
        """One pass over a split; `seed` shuffles and, on train, augments.

        A shuffled pass leaves out a last batch of one sample: batch norm cannot train on it.
        """
        samples: TensorSplit = getattr(self.data, split)
        return Pass(samples, self.batch_size, self.augment if split == "train" else "none", seed)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The batch's mean cross-entropy with smoothed labels."""
        scores, labels = _judge(model, batch)
        return functional.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Accuracy with its 95% Wilson interval, and mean cross-entropy.

        Raises AutopruneError for no batches and for a network whose outputs do not fit.
        """
        samples, correct, total_loss = 0, 0, 0.0
        for batch in batches:
            scores, labels = _judge(model, batch)
            samples += len(labels)
            correct += int((scores.argmax(1) == labels).sum())
            total_loss += float(functional.cross_entropy(scores.float(), labels, reduction="sum"))
        if samples == 0:
            raise AutopruneError("there is no sample to evaluate on; give at least one batch")
        low, high = wilson(correct, samples)
        return {
            "accuracy": correct / samples,
            "accuracy_low": low,
            "accuracy_high": high,
            "loss": total_loss / samples,
        }

    def example(self) -> torch.Tensor:
        """The first image of train, as the network receives it: float32[1, ...]."""
        return _scaled(self.data.train.inputs[:1].clone())


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over a split: its length is the number of batches, and each iteration is the same.

    `seed` None keeps the order and augments nothing.
    """

    samples: TensorSplit
    batch_size: int
    augment: Augment
    seed: int | None

    def __len__(self) -> int:
        return len(self._starts())

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator()
        order, augment = torch.arange(len(self.samples)), "none"
        if self.seed is not None:
            generator.manual_seed(self.seed)
            order = torch.randperm(len(self.samples), generator=generator)
            augment = self.augment
        for start in self._starts():
            chosen = order[start : start + self.batch_size]
            images = _augmented(self.samples.inputs[chosen], augment, generator)
            yield _scaled(images), self.samples.targets[chosen]

    def _starts(self) -> range:
        count = len(self.samples)
        alone = self.seed is not None and count > 1 and count % self.batch_size == 1
        return range(0, count - 1 if alone else count, self.batch_size)


def wilson(correct: int, samples: int) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson 1927); it holds near 0 and 1 too."""
    share, square = correct / samples, NORMAL_95**2 / samples
    centre = (share + square / 2) / (1 + square)
    margin = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return min(max(0.0, centre - margin), share), max(min(1.0, centre + margin), share)


def _scaled(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.float() / 127.5 - 1.0 if inputs.dtype is torch.uint8 else inputs


def _augmented(images: torch.Tensor, augment: str, generator: torch.Generator) -> torch.Tensor:
    """Shifted (and mirrored) copies of images [B, C, H, W]; the border repeats outwards."""
    if augment == "none":
        return images
    batch, channels, height, width = images.shape
    if augment == "flip_shift":
        mirrored = torch.rand(batch, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    rows = _shifted(height, batch, generator)[:, None, :, None]
    columns = _shifted(width, batch, generator)[:, None, None, :]
    samples = torch.arange(batch)[:, None, None, None]
    return images[samples, torch.arange(channels)[None, :, None, None], rows, columns]


def _shifted(side: int, batch: int, generator: torch.Generator) -> torch.Tensor:
    """For every sample the source index of every position, int64[B, side]."""
    reach = side // SHIFT_SHARE
    offsets = torch.randint(-reach, reach + 1, (batch, 1), generator=generator)
    return (torch.arange(side) + offsets).clamp(0, side - 1)


def _judge(model: nn.Module, batch: Batch) -> Batch:
    """Scores float[B, K] and labels int64[B] on the model's device, once they fit together."""
    low, high = int(batch[1].min()), int(batch[1].max())  # before the move: no wait for a GPU
    inputs, labels = move(batch, device_of(model))
    scores = model(inputs)
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2 or len(scores) != len(labels):
        found = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise AutopruneError(
            f"classification needs scores [{len(labels)}, classes] from the network; it returned "
            f"{found}; let forward return one row of class scores a sample"
        )
    if high >= scores.shape[1]:
        raise AutopruneError(
            f"labels lie in {low}..{high} and the network scores {scores.shape[1]} classes; "
            "set the model's num_classes to the data's"
        )
    return scores, labels
