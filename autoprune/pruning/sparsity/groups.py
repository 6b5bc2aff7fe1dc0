"""One group under a penalty: which of its units a proximal step shrinks, and which it spares.

Axis legend: u = units of the group, b = blocks of units of which equally many stay.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.pruning.coupling import Coupling
from autoprune.pruning.sparsity.blocks import Piece, pieces_of
from autoprune.pruning.sparsity.prox import block_factors, soft_threshold


class Penalised(Protocol):
    """The units of a group under a penalty."""

    @property
    def weight(self) -> float:
        """How much of the multiplier is theirs: one of a larger block is pulled at more."""
        ...

    def shrink(self, threshold: float) -> int:
        """One proximal step, in place; how many units are not zero after it."""
        ...


class Floor:
    """The units that a cut may not take: a group never has fewer that are not zero.

    So long as a group has more units than it will keep, all are shrunk alike, and whether one
    becomes zero is between the penalty and the loss. Once as many are zero as the cut takes, the
    others are left alone: to make more of them zero would be for nothing, and to shrink them only
    harm.
    """

    def __init__(self, coupling: Coupling, kept: int, device: torch.device) -> None:
        cells = [np.flatnonzero(coupling.cell == c) for c in np.unique(coupling.cell)]
        self._units = torch.from_numpy(np.stack(cells)).to(device)  # [b, u / b]
        self._falling = (coupling.group.size - kept) // len(cells)

    def spared(self, norms: torch.Tensor, dying: torch.Tensor) -> torch.Tensor:
        """Which units must not be shrunk: bool [u], from what they weigh [u] and which of them the
        step would make zero, or are zero [u].
        """
        units = self._units.gather(1, norms[self._units].argsort(dim=1, stable=True))
        falling, staying = units[:, : self._falling], units[:, self._falling :]
        complete = dying[falling].all(1, keepdim=True)
        spared = torch.zeros_like(dying)
        spared[staying] = dying[staying] | complete
        return spared


class Lasso:
    """Everything that makes a unit, as one block."""

    def __init__(self, pieces: Sequence[Piece], floor: Floor, units: int) -> None:
        self._pieces, self._floor, self._units = pieces, floor, units
        self.weight = block_weight(pieces, units)

    def shrink(self, threshold: float) -> int:
        """See `Penalised`."""
        tensors = [piece.tensor for piece in self._pieces]
        factors = lasso_factors(self._pieces, tensors, self._floor, threshold, self._units)
        for piece in self._pieces:
            piece.tensor.mul_(piece.spread(factors))
        return int((factors != 0).sum())


class Slimming:
    """The scales of a group's batch norms, each by itself; a unit that has none left is silent."""

    weight = 1.0

    def __init__(
        self, pieces: Sequence[Piece], scales: Sequence[Piece], floor: Floor, units: int
    ) -> None:
        self._pieces, self._scales, self._floor, self._units = pieces, scales, floor, units

    def shrink(self, threshold: float) -> int:
        """See `Penalised`."""
        shrunk = [soft_threshold(scale.tensor, threshold) for scale in self._scales]
        before = self._sums([scale.tensor for scale in self._scales])
        dying = self._sums(shrunk) == 0
        spared = self._floor.spared(before, dying)
        for scale, after in zip(self._scales, shrunk, strict=True):
            stays = scale.spread(spared.float(), rest=1.0) > 0
            scale.tensor.copy_(torch.where(stays, scale.tensor, after))
        # one that says nothing but its shift is silenced, so that it can go without a trace
        alive = (~dying | spared) & (before > 0)
        for piece in self._pieces:
            piece.tensor.mul_(piece.spread(alive.to(piece.tensor.dtype)))
        return int(alive.sum())

    def _sums(self, scales: Sequence[torch.Tensor]) -> torch.Tensor:
        parts = zip(self._scales, scales, strict=True)
        return torch.stack([piece.sums(scale.abs(), self._units) for piece, scale in parts]).sum(0)


def lasso_factors(
    pieces: Sequence[Piece],
    tensors: Sequence[torch.Tensor],
    floor: Floor,
    threshold: float,
    units: int,
) -> torch.Tensor:
    """What the step multiplies every unit's block with [u]: what the unit owns of `tensors`, one a
    piece. Exactly zero where nothing is left of it.
    """
    norms = norms_of(pieces, tensors, units)
    factors = block_factors(norms, threshold)
    spared = floor.spared(norms, (factors == 0) | (norms == 0))
    return torch.where(spared, torch.ones_like(factors), factors) * (norms > 0)


def norms_of(pieces: Sequence[Piece], tensors: Sequence[torch.Tensor], units: int) -> torch.Tensor:
    """The length of every unit's block: [u]."""
    parts = zip(pieces, tensors, strict=True)
    return torch.stack([piece.sums(x.square(), units) for piece, x in parts]).sum(0).sqrt()


def block_weight(pieces: Sequence[Piece], units: int) -> float:
    """The root of the numbers in a block, so that large blocks are not favoured (Yuan and Lin)."""
    ones = [torch.ones_like(piece.tensor) for piece in pieces]
    return float(norms_of(pieces, ones, units).mean())


def scales_of(model: nn.Module, coupling: Coupling) -> tuple[Piece, ...]:
    """The scales of the batch norms of a group."""
    modules = dict(model.named_modules())
    found = [
        piece
        for member in coupling.members
        if isinstance(norm := modules.get(member.layer), _BatchNorm) and norm.affine
        for piece in pieces_of(model, replace(coupling, members=(member,)), readers=False)
        if piece.tensor is norm.weight
    ]
    return tuple(found)
