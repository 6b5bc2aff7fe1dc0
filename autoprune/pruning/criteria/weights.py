"""Criteria that read the weights alone.

Axis legend: u = units of a group, w = units of one side of one of its layers, f = weights of a
unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from autoprune.domain.errors import AutopruneError
from autoprune.domain.space import UNEVEN_KINDS
from autoprune.pruning.attention import PROJECTIONS, NarrowAttention
from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.criteria.protocol import Scores, Scoring
from autoprune.pruning.cuts import LAYERS, rows_by_unit, sum_by_unit

MAKERS = (_ConvNd, nn.Linear, nn.Embedding)
"""The layers whose weights make units; what scales or shifts a unit is none of them."""


@dataclass(frozen=True)
class Magnitude:
    """The mass of all weights of a unit, in the layers that make it and those that read it.

    The sum of abs(w)^p over the coupled convolutions, linear layers, embeddings and the scales of
    norms: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023. For p = 1 and a
    single layer it is the filter norm of Li et al., Pruning Filters for Efficient ConvNets,
    ICLR 2017.
    """

    name: str
    power: int

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`; `scoring` is not used."""
        return {
            c.group.name: unit_sums(model, c, lambda w: w.detach().abs() ** self.power)
            for c in couplings
        }


@dataclass(frozen=True)
class Lamp:
    """The mass of a unit as a share of its own and that of all units no lighter: in [0, 1].

    Lee et al., Layer-Adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, score a weight
    by its square over the sum of the squares in its layer that are no smaller. Here the unit takes
    the place of the weight, the group that of the layer, and the square is the unit's L2 mass over
    all coupled layers (`Magnitude`). Units of equal mass get equal scores, where the paper goes by
    their order. Inside a group that ranks as l2 does; it is made for comparing groups, whose
    scores need no normalisation: the heaviest unit of each has the score 1.
    """

    name: str = "lamp"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`; `scoring` is not used."""
        masses = Magnitude(self.name, 2).scores(model, couplings, scoring)
        return {name: _share_of_heavier(mass) for name, mass in masses.items()}


@dataclass(frozen=True)
class GeometricMedian:
    """How far the weights that make a unit are from those of all others: sum of distances.

    He et al., Filter Pruning via Geometric Median for Deep Neural Networks Acceleration, CVPR
    2019: the unit with the least sum is nearest to the geometric median, so the others can stand
    in for it. Of a coupled group the outputs of all its convolutions, linear layers and embeddings
    count as one long filter; layers that read the units and norms do not. A unit of zeros is not
    the lowest here: one that resembles the others is. Blocks, branches and connections, whose units
    need not have as many weights each, fall back to L1.
    """

    name: str = "geometric_median"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`; `scoring` is not used."""
        found = {}
        for coupling in couplings:
            even = coupling.group.kind not in UNEVEN_KINDS
            filters = unit_weights(model, coupling) if even else None
            if filters is not None:
                found[coupling.group.name] = torch.cdist(filters, filters).sum(1)
        return or_l1(found, model, couplings)


@dataclass(frozen=True)
class BatchNormScale:
    """The absolute scales of the batch norms in a group, summed.

    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017.
    A group without batch norm falls back to the L1 criterion; a network without any is refused.
    """

    name: str = "bn_scale"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError for a network without scaled batch norm."""
        if not any(_has_scale(module) for module in model.modules()):
            raise AutopruneError(
                f"criterion {self.name!r} reads the scales of batch norms and "
                f"{type(model).__name__} has none; choose l1, l2 or taylor"
            )
        modules = dict(model.named_modules())
        found = {}
        for coupling in couplings:
            scaled = [
                m for m in coupling.members if m.side == "out" and _has_scale(modules.get(m.layer))
            ]
            if scaled:
                only = Coupling(coupling.group, tuple(scaled), coupling.cell)
                found[coupling.group.name] = unit_sums(model, only, lambda w: w.detach().abs())
        return or_l1(found, model, couplings)


L1 = Magnitude("l1", 1)


def or_l1(found: Scores, model: nn.Module, couplings: Sequence[Coupling]) -> Scores:
    """The scores `found`, and those by L1 of groups that have none.

    Where a criterion has nothing to read in a group its units still have to be told apart, and
    that is sound as long as scores are compared inside a group only.
    """
    rest = [c for c in couplings if c.group.name not in found]
    return {**found, **L1.scores(model, rest, Scoring())}


def unit_sums(
    model: nn.Module, coupling: Coupling, value: Callable[[nn.Parameter], torch.Tensor]
) -> torch.Tensor:
    """Sum `value(weight)`, shaped like the weight, over everything a unit owns: float64 [u]."""
    modules = dict(model.named_modules())
    total = torch.zeros(coupling.group.size, dtype=torch.float64)
    for member in coupling.members:
        sums = _sums_of(modules, member, value)
        if sums is not None:
            total += gather(member, sums, len(total))
    return total


def _sums_of(
    modules: Mapping[str, nn.Module],
    member: Member,
    value: Callable[[nn.Parameter], torch.Tensor],
) -> torch.Tensor | None:
    """The sums of `value(weight)` by the entries of a member, [w]; None where it has no weight."""
    match member.side:
        case "in" | "out":
            layer = modules[member.layer]
            weight = _weight(layer)
            return None if weight is None else sum_by_unit(layer, member.side, value(weight))
        case "block" | "branch":
            inside = (_weight(layer) for layer in modules[member.layer].modules())
            sums = [value(weight).double().sum() for weight in inside if weight is not None]
            return torch.stack(sums).sum()[None] if sums else None
        case "param":
            projection = _projection(modules, member)
            if projection is None:
                return None
            return value(projection).movedim(member.axis, 0).flatten(1).sum(1)
        case "heads" | "reads":
            return None


def _weight(layer: nn.Module) -> nn.Parameter | None:
    """What a layer multiplies by, but for that of PReLU, which is a slope."""
    if not isinstance(layer, LAYERS) or isinstance(layer, nn.PReLU):
        return None
    return layer._parameters["weight"]


def _projection(modules: Mapping[str, nn.Module], member: Member) -> nn.Parameter | None:
    """The weight of an attention that makes heads, or reads its inputs; None for what else is free.

    Biases, positions and the like have no part in a unit's mass.
    """
    owner, _, own = member.layer.rpartition(".")
    if own not in PROJECTIONS or not isinstance(modules[owner], NarrowAttention):
        return None
    return modules[owner]._parameters[own]


def gather(member: Member, values: torch.Tensor, size: int) -> torch.Tensor:
    """Sum the values of one side of a layer [w] by the unit that each belongs to: float64 [u]."""
    index, unit = torch.from_numpy(member.index), torch.from_numpy(member.unit)
    total = torch.zeros(size, dtype=torch.float64)
    return total.index_add_(0, unit, values.detach().double().cpu()[index])


def unit_weights(model: nn.Module, coupling: Coupling) -> torch.Tensor | None:
    """The weights that make each unit, in all layers that do, side by side: float64 [u, f]; None
    where none do.
    """
    modules = dict(model.named_modules())
    parts = []
    for member in coupling.members:
        rows = _rows_of(modules, member)
        if rows is not None:
            order = torch.from_numpy(member.index[member.unit.argsort(kind="stable")])
            parts.append(rows.detach().double().cpu()[order].reshape(coupling.group.size, -1))
    return torch.cat(parts, 1) if parts else None


def _rows_of(modules: Mapping[str, nn.Module], member: Member) -> torch.Tensor | None:
    """The weights that make the entries of a member, [w, ...]; None where it makes none."""
    if member.side == "param" and member.axis == 0:
        return _projection(modules, member)
    layer = modules.get(member.layer)
    if member.side != "out" or not isinstance(layer, MAKERS):
        return None
    return rows_by_unit(layer, "out", layer.weight)


def _share_of_heavier(mass: torch.Tensor) -> torch.Tensor:
    """Each mass over the sum of all that are at least as large; 0 for a mass of 0."""
    order = mass.argsort(descending=True)
    sums = mass[order].cumsum(0)
    # of equal masses all count for each: the sum up to the last of them
    last = torch.searchsorted(-mass[order], -mass, right=True) - 1
    return torch.where(mass > 0, mass / sums[last].clamp_min(torch.finfo(mass.dtype).tiny), 0.0)


def _has_scale(module: nn.Module | None) -> bool:
    return isinstance(module, _BatchNorm) and module.affine
