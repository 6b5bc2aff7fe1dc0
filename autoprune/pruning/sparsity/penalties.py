"""The penalty of a whole network, group by group, whether or not its groups overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from autoprune.pruning.sparsity.blocks import Piece
from autoprune.pruning.sparsity.groups import Longest, Penalised, block_weight, lasso_factors

Parts = Mapping[str, torch.Tensor]


class Penalty(Protocol):
    """The groups of a network under a penalty, in the order in which they were given."""

    @property
    def weights(self) -> Sequence[float]:
        """How much of the multiplier is every group's."""
        ...

    def shrink(self, thresholds: Sequence[float]) -> Sequence[int]:
        """One proximal step, in place, with a threshold a group; how many units each has left."""
        ...

    def state(self) -> Parts:
        """What a resume needs beside the network's weights."""
        ...

    def restore(self, state: Parts) -> None:
        """Go on from a `state`, on the weights of that moment."""
        ...


class Apart:
    """Groups that share no weight: each takes its own step."""

    def __init__(self, groups: Sequence[Penalised]) -> None:
        self._groups = groups
        self.weights = [group.weight for group in groups]

    def shrink(self, thresholds: Sequence[float]) -> Sequence[int]:
        """See `Penalty`."""
        return [g.shrink(t) for g, t in zip(self._groups, thresholds, strict=True)]

    def state(self) -> Parts:
        """Nothing."""
        return {}

    def restore(self, state: Parts) -> None:
        """Nothing to restore."""
        del state


@dataclass(frozen=True)
class Block:
    """The pieces of a group of `units` units, those that read it included."""

    pieces: Sequence[Piece]
    longest: Longest
    units: int


class Latent:
    """Groups that share weights: a unit's block is a latent copy of what it owns.

    A weight that k units own is the sum of their k copies over the root of k (Jacob, Obozinski and
    Vert, 2009, for k = 1 the weight itself), by which a step of the optimizer on the weight is one
    of the same length on the copies, and the proximal step on the copies is block
    soft-thresholding in closed form. A unit whose copies are zero may still have weights that
    others own, too; they go with it, since the cut will take them.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self.weights = [block_weight(block.pieces, block.units) for block in blocks]
        pieces = [piece for block in blocks for piece in block.pieces]
        self._tensors = list({id(piece.tensor): piece.tensor for piece in pieces}.values())
        self._owners = {id(tensor): torch.zeros_like(tensor) for tensor in self._tensors}
        for piece in pieces:
            self._owners[id(piece.tensor)] += self._inside(piece)
        self._roots = {key: owners.clamp_min(1).sqrt() for key, owners in self._owners.items()}
        self._copies = [
            [self._inside(p) * p.tensor.detach() / self._roots[id(p.tensor)] for p in block.pieces]
            for block in blocks
        ]
        self._before = {id(tensor): tensor.detach().clone() for tensor in self._tensors}

    def shrink(self, thresholds: Sequence[float]) -> Sequence[int]:
        """See `Penalty`."""
        moved = {
            id(tensor): (tensor - self._before[id(tensor)]) / self._roots[id(tensor)]
            for tensor in self._tensors
        }
        alive = {id(tensor): torch.ones_like(tensor) for tensor in self._tensors}
        left = []
        for block, copies, threshold in zip(self._blocks, self._copies, thresholds, strict=True):
            for piece, copy in zip(block.pieces, copies, strict=True):
                copy.add_(moved[id(piece.tensor)] * self._inside(piece))
            factors = lasso_factors(block.pieces, copies, block.longest, threshold, block.units)
            stays = (factors != 0).to(factors.dtype)
            for piece, copy in zip(block.pieces, copies, strict=True):
                copy.mul_(piece.spread(factors))
                alive[id(piece.tensor)].mul_(piece.spread(stays))
            left.append(int(stays.sum()))
        self._put_together(alive)
        return left

    def state(self) -> Parts:
        """The copies, by the numbers of their group and piece."""
        return {
            f"{g}.{p}": copy.clone()
            for g, copies in enumerate(self._copies)
            for p, copy in enumerate(copies)
        }

    def restore(self, state: Parts) -> None:
        """See `Penalty`. Raises KeyError for the state of another network."""
        for g, copies in enumerate(self._copies):
            for p, copy in enumerate(copies):
                copy.copy_(state[f"{g}.{p}"])

    def _put_together(self, alive: Mapping[int, torch.Tensor]) -> None:
        """Write the weights that the copies amount to."""
        totals = {id(tensor): torch.zeros_like(tensor) for tensor in self._tensors}
        for block, copies in zip(self._blocks, self._copies, strict=True):
            for piece, copy in zip(block.pieces, copies, strict=True):
                copy.mul_(alive[id(piece.tensor)])
                totals[id(piece.tensor)] += copy
        for tensor in self._tensors:
            key = id(tensor)
            owned = self._owners[key] > 0
            tensor.copy_(torch.where(owned, totals[key] / self._roots[key], tensor))
            self._before[key].copy_(tensor)

    @staticmethod
    def _inside(piece: Piece) -> torch.Tensor:
        """1 where the piece is, 0 elsewhere, to be broadcast to its parameter."""
        ones = torch.ones(int(piece.unit.max()) + 1, device=piece.unit.device)
        return piece.spread(ones.to(piece.tensor.dtype), rest=0.0)
