"""The three splits of a data set, and how to cut them.

Axis legend: N samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from autoprune.domain.errors import AutopruneError


@dataclass(frozen=True, slots=True, eq=False)
class TensorSplit:
    """Samples in memory: `inputs` [N, ...] and `targets` [N, ...], on the CPU.

    Inputs are float32, int64 (tokens) or uint8 (pixels, left for the task to scale); targets are
    int64 (labels, 0 or more) or float32.
    """

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Train, val and test: the search sees the first two, promotion alone the third.

    Raises AutopruneError unless every split has a sample, as many targets as inputs, finite
    numbers and no negative label, and all three agree in shapes and dtypes.
    """

    train: TensorSplit
    val: TensorSplit
    test: TensorSplit

    def __post_init__(self) -> None:
        for name, split in self:
            _check(name, split)
            for kind in ("inputs", "targets"):
                expected, found = getattr(self.train, kind), getattr(split, kind)
                if (found.dtype, found.shape[1:]) != (expected.dtype, expected.shape[1:]):
                    raise AutopruneError(
                        f"split {name!r}: {kind} are {_sample(found)} and those of 'train' "
                        f"{_sample(expected)}; give all splits one shape and one dtype"
                    )

    def __iter__(self) -> Iterator[tuple[str, TensorSplit]]:
        """Name and split, in the order train, val, test."""
        return iter((("train", self.train), ("val", self.val), ("test", self.test)))


def _check(name: str, split: TensorSplit) -> None:
    inputs, targets = split.inputs, split.targets
    _check_dtype(name, "inputs", inputs, allowed=(torch.float32, torch.int64, torch.uint8))
    _check_dtype(name, "targets", targets, allowed=(torch.int64, torch.float32))
    if inputs.ndim < 2 or targets.ndim < 1:
        raise AutopruneError(
            f"split {name!r}: inputs have shape {list(inputs.shape)} and targets "
            f"{list(targets.shape)}; give inputs [N, ...] and targets [N] or [N, ...]"
        )
    if len(inputs) != len(targets):
        raise AutopruneError(
            f"split {name!r} has {len(inputs)} inputs and {len(targets)} targets; "
            "give one target for every input"
        )
    if len(inputs) == 0:
        raise AutopruneError(f"split {name!r} has no sample; give it at least one")
    for kind, values in (("inputs", inputs), ("targets", targets)):
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise AutopruneError(
                f"split {name!r}: {kind} hold NaN or infinity; clean the data first"
            )
    if targets.dtype is torch.int64 and int(targets.min()) < 0:
        raise AutopruneError(
            f"split {name!r} has the label {int(targets.min())}; number the classes from 0 and "
            "leave out samples without a label"
        )


def _check_dtype(
    name: str, kind: str, values: torch.Tensor, *, allowed: tuple[torch.dtype, ...]
) -> None:
    if not isinstance(values, torch.Tensor) or values.dtype not in allowed:
        found = values.dtype if isinstance(values, torch.Tensor) else type(values).__name__
        names = " or ".join(str(dtype) for dtype in allowed)
        raise AutopruneError(f"split {name!r}: {kind} are {found}; give tensors of {names}")


def _sample(values: torch.Tensor) -> str:
    return f"{values.dtype}{list(values.shape[1:])}"


def hold_out(
    labels: NDArray[np.int64], share: float, *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the samples that stay and of the `share` held out, with the classes in proportion.

    `labels` is int[N]; the same seed gives the same cut. Raises AutopruneError for a share
    outside (0, 1) and where a class has too few samples to be in both parts.
    """
    # scikit-learn takes a second to import, and a worker, whose data come pickled, needs none
    from sklearn.model_selection import train_test_split

    if not 0.0 < share < 1.0:
        raise AutopruneError(f"a share of {share} cannot be held out; choose one between 0 and 1")
    try:
        stay, held = train_test_split(
            np.arange(len(labels)), test_size=share, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise AutopruneError(
            f"{len(labels)} samples of {len(np.unique(labels))} classes cannot be split with "
            f"{share:g} held out ({error}); give more samples of every class or another share"
        ) from error
    return stay, held


def stratified(
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Cut labelled samples into three splits in which the classes keep their proportions.

    `inputs` is [N, ...] and `targets` int64[N]; `val` and `test` are shares of all N. Raises
    AutopruneError for shares that leave nothing to train on or classes that are too small.
    """
    _check("all", TensorSplit(inputs, targets))
    if not (0.0 < val < 1.0 and 0.0 < test < 1.0 and val + test < 1.0):
        raise AutopruneError(
            f"shares val={val} and test={test}; choose both above 0 and together below 1"
        )
    labels = targets.numpy()
    rest, test_indices = hold_out(labels, test, seed=seed)
    train_of_rest, val_of_rest = hold_out(labels[rest], val / (1.0 - test), seed=seed)
    return Splits(
        *(
            TensorSplit(inputs[indices], targets[indices])
            for indices in map(
                torch.from_numpy, (rest[train_of_rest], rest[val_of_rest], test_indices)
            )
        )
    )
