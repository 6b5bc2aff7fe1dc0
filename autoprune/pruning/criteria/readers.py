"""The layers that read a group's units, where all that leaves a unit can be heard and scaled.

Axis legend: w = inputs of a layer.
"""

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.cuts import has_inputs

READERS = (_ConvNd, nn.Linear)


def readers_of(model: nn.Module, coupling: Coupling) -> list[tuple[Member, nn.Module]]:
    """The convolutions and linear layers that take a group's units as inputs, with their share.

    Not depthwise ones, whose outputs are the units again.
    """
    modules = dict(model.named_modules())
    found: list[tuple[Member, nn.Module]] = []
    for member in coupling.members:
        layer = modules.get(member.layer)
        if member.side == "in" and layer is not None and has_inputs(layer):
            found.append((member, layer))
    return found


def blocks_of(model: nn.Module, coupling: Coupling) -> list[tuple[int, str, nn.Module]]:
    """The blocks of a group that may be bypassed: unit, name and module; none in other groups."""
    return [
        (int(member.unit[0]), member.layer, model.get_submodule(member.layer))
        for member in coupling.members
        if member.side == "block" and int(member.unit[0]) not in coupling.pinned
    ]


def input_axis(layer: nn.Module) -> int:
    """The axis of a reader's input on which its w inputs lie, counted from the last."""
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1


def rows_of(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Values with all axes but one flattened: [rows, w]."""
    return values.movedim(axis, -1).flatten(0, -2)
