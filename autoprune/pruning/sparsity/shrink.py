"""The proximal steps of sparse training, and the multiplier that is learnt."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.sparsity.blocks import Piece, pieces_of
from autoprune.pruning.sparsity.cost import Cost
from autoprune.pruning.sparsity.groups import Lasso, Longest, Penalised, Slimming, scales_of
from autoprune.pruning.sparsity.penalties import Apart, Block, Latent, Penalty
from autoprune.pruning.sparsity.plan import Sparsity
from autoprune.pruning.sparsity.ranks import Ranks
from autoprune.tasks.protocol import device_of

PRICES = (1 / 3, 3.0)
"""How far a unit's price may be from the mean: a group that costs nothing shrinks all the same."""


class Shrinking:
    """The proximal step behind every step of an optimizer (a `StepHook`).

    `kept` are the units of every group that the cut will leave: so many of each are not touched,
    the longest, and groups that stay whole not at all. `cost` tells what live units cost. With a
    budget the threshold of a group is its unit's price, in that cost, times the multiplier.
    `weights` are how much of the multiplier every group has.
    """

    def __init__(
        self,
        model: nn.Module,
        couplings: Sequence[Coupling],
        plan: Sparsity,
        *,
        kept: Mapping[str, int],
        cost: Cost,
    ) -> None:
        self._plan, self._cost = plan, cost
        self.multiplier = plan.strength
        shrinking = [c for c in couplings if _thins(c, kept)]
        owned = [_trained(pieces_of(model, c, readers=plan.overlap)) for c in shrinking]
        pairs = [(c, pieces) for c, pieces in zip(shrinking, owned, strict=True) if pieces]
        self._sizes = {c.group.name: c.group.size for c, _ in pairs}
        self._kept = {name: kept[name] for name in self._sizes}
        self._live = dict(self._sizes)
        self._penalty = _penalty(model, pairs, plan, self._kept)
        thinned = shrinking if plan.method == "low_rank" else []
        self._ranks = Ranks(model, thinned, plan.rank_strength)
        prices = _prices(self._sizes, self._kept, cost if plan.budget != "none" else None)
        self.weights = [w * p for w, p in zip(self._penalty.weights, prices, strict=True)]
        self._target = cost(self._kept)

    @torch.no_grad()
    def after_step(self, lr: float, span: float) -> None:
        """Shrink the weights, in place, after a step with learning rate `lr`, and move the
        multiplier by a step that spans `span` epochs.
        """
        thresholds = [lr * self.multiplier * weight for weight in self.weights]
        left = self._penalty.shrink(thresholds)
        self._ranks.after_step(lr)
        self._live = dict(zip(self._sizes, left, strict=True))
        if self._plan.budget != "none":
            # a predicted latency may be below the target where more units are left, too
            over = min(self._cost(self._live) / self._target - 1, 1.0)
            self.multiplier *= math.exp(self._plan.multiplier_lr * span * over)

    @torch.no_grad()
    def after_epoch(self) -> None:
        """Take what the nuclear norm is owed."""
        self._ranks.settle()

    @property
    def metrics(self) -> dict[str, float]:
        """The multiplier; the cost of the units that are not zero as a share of what the cut will
        leave, 1 where the budget is met; and their share of the units of the groups that shrink.
        """
        units = sum(self._sizes.values())
        return {
            "sparsity_multiplier": self.multiplier,
            "sparsity_cost": self._cost(self._live) / self._target,
            "sparsity_live": sum(self._live.values()) / units if units else 1.0,
        }

    def state(self) -> dict[str, Any]:
        """What a resume needs beside the network's weights."""
        return {
            "multiplier": self.multiplier,
            "live": list(self._live.values()),
            "copies": dict(self._penalty.state()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`. Raises AutopruneError for one of another training."""
        try:
            self.multiplier = float(state["multiplier"])
            self._live = dict(zip(self._sizes, state["live"], strict=True))
            self._penalty.restore(state["copies"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise AutopruneError(
                f"the state of the sparse training is of another one ({error}); start again"
            ) from error


def check_method(plan: Sparsity, model: nn.Module, couplings: Sequence[Coupling]) -> None:
    """Raise AutopruneError where the method has nothing to work on in the network."""
    if plan.method == "slimming" and not any(scales_of(model, c) for c in couplings):
        raise AutopruneError(
            f"sparsity.method is slimming, which shrinks the scales of batch norms, and "
            f"{type(model).__name__} has none; choose group_lasso"
        )


def _penalty(
    model: nn.Module,
    pairs: Sequence[tuple[Coupling, Sequence[Piece]]],
    plan: Sparsity,
    kept: Mapping[str, int],
) -> Penalty:
    device = device_of(model)
    longest = [Longest(c, kept[c.group.name], device) for c, _ in pairs]
    blocks = [
        Block(pieces, stay, c.group.size) for (c, pieces), stay in zip(pairs, longest, strict=True)
    ]
    if plan.overlap:
        return Latent(blocks)
    groups: list[Penalised] = []
    for (coupling, _), block in zip(pairs, blocks, strict=True):
        scales = _trained(scales_of(model, coupling)) if plan.method == "slimming" else ()
        # a group without batch norm takes the other method, as the criterion bn_scale falls back
        groups.append(
            Slimming(block.pieces, scales, block.longest, block.units)
            if scales
            else Lasso(block.pieces, block.longest, block.units)
        )
    return Apart(groups)


def _prices(
    sizes: Mapping[str, int], kept: Mapping[str, int], cost: Cost | None
) -> Sequence[float]:
    """What a unit of every group costs, in shares of the mean: what the cost falls by where this
    group alone is cut, for each of the units. All are 1 where there is no cost.
    """
    if cost is None or not sizes:
        return [1.0] * len(sizes)
    full = cost({})
    each = [(full - cost({name: kept[name]})) / (sizes[name] - kept[name]) for name in sizes]
    mean = float(np.mean(each))
    if mean <= 0:
        return [1.0] * len(sizes)
    return [float(np.clip(price / mean, *PRICES)) for price in each]


def _thins(coupling: Coupling, kept: Mapping[str, int]) -> bool:
    """Whether the cut takes units that have weights of their own, and not whole layers."""
    whole = any(member.side in ("block", "branch", "reads") for member in coupling.members)
    return not whole and kept.get(coupling.group.name, coupling.group.size) < coupling.group.size


def _trained(pieces: Sequence[Piece]) -> Sequence[Piece]:
    """What is frozen stays as it is."""
    return [piece for piece in pieces if piece.tensor.requires_grad]
