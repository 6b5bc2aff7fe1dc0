"""One group under a penalty: which of its units a proximal step shrinks, and how.

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


class Longest:
    """The units that no step touches: the longest, as many of each block as the cut will leave,
    those that are pinned first.

    The penalty is the sum of the lengths of all others, whose proximal step is exactly this: the
    longest stay, the others are soft-thresholded (Gotoh, Takeda and Tono, DC Formulations and
    Algorithms for Sparse Optimization Problems, Mathematical Programming, 2018). Units change sides
    as the loss makes them longer or shorter; once the others are zero the penalty is, too.
    """

    def __init__(self, coupling: Coupling, kept: int, device: torch.device) -> None:
        cells = [np.flatnonzero(coupling.cell == c) for c in np.unique(coupling.cell)]
        self._units = torch.from_numpy(np.stack(cells)).to(device)  # [b, u / b]
        self._pinned = list(coupling.pinned)
        self._falling = (coupling.group.size - kept) // len(cells)

    def among(self, lengths: torch.Tensor) -> torch.Tensor:
        """Which they are, by the lengths of all [u]; of equal ones the later: bool [u]."""
        lengths = lengths.clone()
        lengths[self._pinned] = torch.inf
        units = self._units.gather(1, lengths[self._units].argsort(dim=1, stable=True))
        found = torch.zeros_like(lengths, dtype=torch.bool)
        found[units[:, self._falling :]] = True
        return found


class Lasso:
    """Everything that makes a unit, as one block."""

    def __init__(self, pieces: Sequence[Piece], longest: Longest, units: int) -> None:
        self._pieces, self._longest, self._units = pieces, longest, units
        self.weight = block_weight(pieces, units)

    def shrink(self, threshold: float) -> int:
        """See `Penalised`."""
        tensors = [piece.tensor for piece in self._pieces]
        factors = lasso_factors(self._pieces, tensors, self._longest, threshold, self._units)
        for piece in self._pieces:
            piece.tensor.mul_(piece.spread(factors))
        return int((factors != 0).sum())


class Slimming:
    """The scales of a group's batch norms, each by itself; a unit that has none left is silent."""

    weight = 1.0

    def __init__(
        self, pieces: Sequence[Piece], scales: Sequence[Piece], longest: Longest, units: int
    ) -> None:
        self._pieces, self._scales, self._longest, self._units = pieces, scales, longest, units

    def shrink(self, threshold: float) -> int:
        """See `Penalised`."""
        shrunk = [soft_threshold(scale.tensor, threshold) for scale in self._scales]
        before = self._sums([scale.tensor for scale in self._scales])
        spared = self._longest.among(before)
        for scale, after in zip(self._scales, shrunk, strict=True):
            stays = scale.spread(spared.float(), rest=1.0) > 0
            scale.tensor.copy_(torch.where(stays, scale.tensor, after))
        # one that says nothing but its shift is silenced, so that it can go without a trace
        alive = self._sums([scale.tensor for scale in self._scales]) > 0
        for piece in self._pieces:
            piece.tensor.mul_(piece.spread(alive.to(piece.tensor.dtype)))
        return int(alive.sum())

    def _sums(self, scales: Sequence[torch.Tensor]) -> torch.Tensor:
        parts = zip(self._scales, scales, strict=True)
        return torch.stack([piece.sums(scale.abs(), self._units) for piece, scale in parts]).sum(0)


def lasso_factors(
    pieces: Sequence[Piece],
    tensors: Sequence[torch.Tensor],
    longest: Longest,
    threshold: float,
    units: int,
) -> torch.Tensor:
    """What the step multiplies every unit's block with [u]: what the unit owns of `tensors`, one a
    piece. Exactly zero where nothing is left of it.
    """
    norms = norms_of(pieces, tensors, units)
    factors = block_factors(norms, threshold)
    return torch.where(longest.among(norms) & (norms > 0), torch.ones_like(factors), factors)


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
