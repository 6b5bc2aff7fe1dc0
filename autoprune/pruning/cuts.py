"""What a cut is, and how the units of a layer's sides lie in its weight.

Axis legend: w = units of one side of a layer.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from autoprune.domain.errors import AutopruneError
from autoprune.pruning.attention import head_count
from autoprune.pruning.foreign import is_conv1d

Side = Literal["in", "out", "param", "heads", "block", "branch", "reads"]
Indices = NDArray[np.int64]

LAYERS = (
    _ConvNd,
    nn.Linear,
    _BatchNorm,
    _InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.PReLU,
    nn.Embedding,
)
"""The layers that can be cut."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What is removed from one side of one layer, in indices of the unpruned network.

    `side` is ``in`` or ``out``, or ``param`` for a free parameter, whose `axis` then says where.
    Of whole modules it is ``heads`` for those of an attention, whose layers have cuts of their
    own, ``block`` where the module (its only unit) is bypassed, ``branch`` where a layer goes with
    its branch, and ``reads`` where a layer leaves out some of the channels that it is still given,
    by their places among these. `removed` holds half-open ranges, ascending and apart.
    """

    layer: str
    side: Side
    removed: tuple[tuple[int, int], ...]
    axis: int = 0

    def __post_init__(self) -> None:
        edges = [edge for pair in self.removed for edge in pair]
        if not edges or edges[0] < 0 or any(a >= b for a, b in pairwise(edges)):
            raise AutopruneError(
                f"the cut of {self.layer!r} ({self.side}) removes {list(self.removed)[:4]}; "
                "give ascending, separate ranges [start, stop) of indices"
            )

    @classmethod
    def of(cls, layer: str, side: Side, indices: Indices, *, axis: int = 0) -> Self:
        """The cut that removes `indices` (at least one, in any order)."""
        ordered = np.unique(indices)
        breaks = np.flatnonzero(np.diff(ordered) > 1) + 1
        runs = np.split(ordered, breaks)
        return cls(layer, side, tuple((int(r[0]), int(r[-1]) + 1) for r in runs), axis=axis)

    @property
    def count(self) -> int:
        """How many indices it removes."""
        return sum(stop - start for start, stop in self.removed)

    def kept(self, width: int) -> torch.Tensor:
        """The indices that remain of `width`, ascending. Raises where none do or one is too big."""
        if self.removed[-1][1] > width or self.count >= width:
            raise AutopruneError(
                f"the cut of {self.layer!r} ({self.side}) removes {self.count} indices up to "
                f"{self.removed[-1][1] - 1} of {width}; it must leave one and stay in range"
            )
        keep = torch.ones(width, dtype=torch.bool)
        for start, stop in self.removed:
            keep[start:stop] = False
        return keep.nonzero().flatten()


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution gives every channel its own filter, so that in and out are one."""
    return (
        isinstance(layer, _ConvNd) and layer.groups == layer.in_channels == layer.out_channels > 1
    )


def has_inputs(layer: nn.Module) -> bool:
    """Whether a layer's inputs are others than its outputs: a weight lies between them."""
    between = isinstance(layer, (_ConvNd, nn.Linear)) or is_conv1d(layer)
    return between and not is_depthwise(layer)


def width(layer: nn.Module, side: Side) -> int:
    """The units on one side of a layer (one of `LAYERS`), or the heads of an attention."""
    if side == "heads":
        heads = head_count(layer)
        if heads is None:
            raise AutopruneError(f"{type(layer).__name__} has no heads to cut")
        return heads
    if is_conv1d(layer):
        return layer.nx if side == "in" else layer.nf
    match layer:
        case _ConvNd():
            return layer.in_channels if side == "in" else layer.out_channels
        case nn.Linear():
            return layer.in_features if side == "in" else layer.out_features
        case _BatchNorm() | _InstanceNorm():
            return layer.num_features
        case nn.LayerNorm():
            return int(layer.normalized_shape[-1])
        case nn.GroupNorm():
            return layer.num_channels
        case nn.PReLU():
            return layer.num_parameters
        case nn.Embedding():
            return layer.embedding_dim
    raise AutopruneError(f"{type(layer).__name__} cannot be cut; the layers that can: {_names()}")


def sum_by_unit(layer: nn.Module, side: Side, values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor shaped like the layer's weight over all but the units of a side: [w]."""
    return rows_by_unit(layer, side, values).sum(1)


def rows_by_unit(layer: nn.Module, side: Side, values: torch.Tensor) -> torch.Tensor:
    """A tensor shaped like the layer's weight with one row for every unit of a side: [w, ...]."""
    if isinstance(layer, nn.Embedding):
        return values.T
    if values.dim() == 1 or is_depthwise(layer) or is_row(layer, side):
        return values.reshape(len(values), -1)
    groups, columns = groups_of(layer), values.shape[1]
    blocks = values.reshape(groups, -1, columns, values[0, 0].numel())
    return blocks.transpose(1, 2).reshape(groups * columns, -1)


def weight_axis(layer: nn.Module, side: Side) -> int:
    """The axis of the layer's weight on which the units of a side lie."""
    if isinstance(layer, nn.Embedding):
        return 1
    if is_conv1d(layer):
        return 1 if side == "out" else 0
    if isinstance(layer, (_ConvNd, nn.Linear)) and not is_depthwise(layer):
        return 0 if is_row(layer, side) else 1
    return 0


def groups_of(layer: nn.Module) -> int:
    """The number of blocks whose widths must stay equal; 1 for layers without groups."""
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    if isinstance(layer, _ConvNd) and not is_depthwise(layer):
        return layer.groups
    return 1


def is_row(layer: nn.Module, side: Side) -> bool:
    """Whether a side's units are the weight's first axis, which groups leave whole."""
    return (side == "out") != bool(getattr(layer, "transposed", False))


def _names() -> list[str]:
    return [layer.__name__.strip("_") for layer in LAYERS]
