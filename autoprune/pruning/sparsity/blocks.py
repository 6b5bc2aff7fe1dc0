"""Which weights belong to a unit of a group: all that makes it, and what reads it where wanted.

Axis legend: u = units of a group, w = indices of one side of a layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.cuts import groups_of, weight_axis


@dataclass(frozen=True, eq=False)
class Piece:
    """What of one parameter belongs to the units of a group.

    Index `index[i]` of the axis `axis` belongs to unit `unit[i]`. Where `groups` is more than one
    the parameter is a grouped convolution's weight and its columns are counted block by block of
    rows, as the convolution's inputs are.
    """

    tensor: nn.Parameter
    axis: int
    index: torch.Tensor
    unit: torch.Tensor
    groups: int = 1

    def sums(self, values: torch.Tensor, units: int) -> torch.Tensor:
        """Sum a tensor shaped like the parameter over everything of a unit: [u]."""
        if self.groups > 1:
            rows = values.reshape(self.groups, -1, *values.shape[1:]).transpose(1, 2)
            along = rows.reshape(self.groups * values.shape[1], -1).sum(1)
        else:
            along = values.movedim(self.axis, 0).reshape(values.shape[self.axis], -1).sum(1)
        total: torch.Tensor = along.new_zeros(units)
        return total.index_add_(0, self.unit, along[self.index])

    def spread(self, values: torch.Tensor, rest: float = 1.0) -> torch.Tensor:
        """The values of units [u], to be broadcast to the parameter; `rest` where no unit is."""
        shape = self.tensor.shape
        along = values.new_full((self.groups * shape[self.axis],), rest)
        along[self.index] = values[self.unit]
        if self.groups > 1:
            blocks = along.view(self.groups, 1, -1).expand(-1, shape[0] // self.groups, -1)
            return blocks.reshape(*shape[:2], *[1] * (len(shape) - 2))
        return along.view([-1 if axis == self.axis else 1 for axis in range(len(shape))])

    @cached_property
    def key(self) -> tuple[int, int, tuple[int, ...], tuple[int, ...]]:
        """What two pieces that are the same one have in common: shared weights are held twice."""
        return id(self.tensor), self.axis, tuple(self.index.tolist()), tuple(self.unit.tolist())


def pieces_of(model: nn.Module, coupling: Coupling, *, readers: bool) -> tuple[Piece, ...]:
    """The pieces that the units of a group own in `model`, the unpruned network, each once.

    Weights and biases of the layers that make the units, scales and shifts of the norms that
    these pass through, and free parameters; with `readers` also the weights that layers read the
    units with, as in Fang et al., DepGraph, CVPR 2023. A unit that lacks all of it is silent: so
    slopes of a PReLU do not count.
    """
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found: dict[object, Piece] = {}
    for member in coupling.members:
        if member.side not in ("out", "param") and not (readers and member.side == "in"):
            continue
        if member.side == "param":
            pieces: Sequence[Piece] = [_piece(parameters[member.layer], member, member.axis)]
        else:
            pieces = list(_of_layer(modules[member.layer], member))
        for piece in pieces:
            found.setdefault(piece.key, piece)
    return tuple(found.values())


def silent_units(model: nn.Module, coupling: Coupling) -> torch.Tensor:
    """Which units of a group have nothing but zeros in all that makes them: bool [u], on the CPU.
    None of those that are made of whole layers.

    What they put out is zero, as long as what follows takes zero to zero; so ReLU and GELU do, and
    a sigmoid does not.
    """
    units = coupling.group.size
    pieces = pieces_of(model, coupling, readers=False)
    total = torch.zeros(units, dtype=torch.float64)
    for piece in pieces:
        total += piece.sums(piece.tensor.detach().abs().double(), units).cpu()
    return (total == 0) & bool(pieces)


def _of_layer(layer: nn.Module, member: Member) -> Iterator[Piece]:
    if isinstance(layer, nn.PReLU):
        return
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if weight is not None:
        axis = weight_axis(layer, member.side)
        columns = weight.dim() > 1 and axis == 1
        yield _piece(weight, member, axis, groups=groups_of(layer) if columns else 1)
    if bias is not None and member.side == "out":
        yield _piece(bias, member, 0)


def _piece(tensor: nn.Parameter, member: Member, axis: int, *, groups: int = 1) -> Piece:
    index, unit = torch.from_numpy(member.index), torch.from_numpy(member.unit)
    return Piece(tensor, axis, index.to(tensor.device), unit.to(tensor.device), groups)
