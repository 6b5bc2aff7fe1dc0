"""Groups taken apart for whoever wants to understand them.

Who makes, follows and reads a group, what of the network belongs to it, how its units are called,
and which of them the cuts of a recipe took.

Axis legend: u = units of a group.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from autoprune.domain.space import ALIGNED
from autoprune.pruning.attention import PROJECTIONS
from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.cuts import Cut, has_inputs, is_depthwise, width
from autoprune.pruning.foreign import is_conv1d

WHOLE = ("block", "branch")
"""Sides of whole modules: a unit is the module."""

UNPLACED = "reads"
"""A side that goes with another one; its cuts are counted among the inputs that are left."""

COUNTED = "heads"
"""A side of modules that count units, whose parameters other members name."""


class Role(StrEnum):
    """What a layer is to a group: it makes the units, follows them as they are, or reads them.

    `UNIT` is a module that is a unit itself.
    """

    MAKES = "makes"
    FOLLOWS = "follows"
    READS = "reads"
    UNIT = "unit"


@dataclass(frozen=True, slots=True)
class Part:
    """A layer, or a free parameter, and what it is to a group."""

    layer: str
    role: Role


def parts_of(coupling: Coupling, model: nn.Module) -> tuple[Part, ...]:
    """The layers of a group in order, each once with what it is; projections are their attention's.

    A layer that makes or reads the group is not listed as following it, too.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    members = [member for member in coupling.members if member.side != UNPLACED]
    found = list(dict.fromkeys(_part(member, modules) for member in members))
    busy = {part.layer for part in found if part.role is not Role.FOLLOWS}
    return tuple(p for p in found if p.role is not Role.FOLLOWS or p.layer not in busy)


def _part(member: Member, modules: Mapping[str, nn.Module]) -> Part:
    if member.side in WHOLE:
        return Part(member.layer, Role.UNIT)
    if member.side == "param":
        owner, _, own = member.layer.rpartition(".")
        if not isinstance(modules.get(owner), nn.MultiheadAttention):
            return Part(member.layer, Role.FOLLOWS)
        if member.axis == 1:
            return Part(owner, Role.READS)
        return Part(owner, Role.MAKES if own in PROJECTIONS else Role.FOLLOWS)
    if not multiplies(modules[member.layer]) or is_depthwise(modules[member.layer]):
        return Part(member.layer, Role.FOLLOWS)
    return Part(member.layer, Role.READS if member.side == "in" else Role.MAKES)


def multiplies(layer: nn.Module) -> bool:
    """Whether a layer has a weight between its inputs and its outputs, or a table of outputs."""
    return isinstance(layer, (_ConvNd, nn.Linear, nn.Embedding)) or is_conv1d(layer)


def params_in(coupling: Coupling, model: nn.Module) -> int:
    """How many parameters would go with all units of a group, but those that stay in any case.

    The rows of what makes and follows it, the columns of what reads it: a weight between two
    groups belongs to both.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    taken: dict[int, dict[object, float]] = defaultdict(lambda: defaultdict(float))
    sizes: dict[int, int] = {}
    for member in coupling.members:
        if set(member.unit.tolist()) <= set(coupling.pinned):
            continue
        for axis, parameter, share in _owned(member, modules, parameters):
            taken[id(parameter)][axis] += share
            sizes[id(parameter)] = parameter.numel()
    left = {
        key: math.prod(1.0 - min(share, 1.0) for share in by_axis.values())
        for key, by_axis in taken.items()
    }
    return round(sum(sizes[key] * (1.0 - part) for key, part in left.items()))


def _owned(
    member: Member,
    modules: Mapping[str, nn.Module],
    parameters: Mapping[str, nn.Parameter],
) -> Iterator[tuple[object, nn.Parameter, float]]:
    """The parameters that a member cuts: on which axis, and which share of that axis."""
    count = len(np.unique(member.index))
    if member.side == "param":
        parameter = parameters[member.layer]
        yield member.axis, parameter, count / parameter.shape[member.axis]
    elif member.side in WHOLE:
        yield from (("all", parameter, 1.0) for parameter in modules[member.layer].parameters())
    elif member.side not in (UNPLACED, COUNTED):
        layer = modules[member.layer]
        inner = member.side == "in" and has_inputs(layer)
        share = count / width(layer, member.side)
        for name, parameter in layer.named_parameters(recurse=False):
            if not inner or name == "weight":
                yield ("in" if inner else "out"), parameter, share


def unit_names(coupling: Coupling, couplings: Iterable[Coupling]) -> tuple[str, ...]:
    """What every unit of a group is called, u names.

    Units that are all of another group to somebody who reads both have that group's name, and
    those that are modules the module's; others have their number.
    """
    if coupling.group.kind in ALIGNED:
        return tuple(map(str, range(coupling.group.size)))
    others = {
        (member.layer, frozenset(member.index.tolist())): other.group.name
        for other in couplings
        if other is not coupling and other.group.kind in ALIGNED
        for member in other.members
        if member.side == "in"
    }
    names: dict[int, str] = {}
    for member in coupling.members:
        for unit in np.unique(member.unit).tolist():
            own = frozenset(member.index[member.unit == unit].tolist())
            if member.side == "in" and (member.layer, own) in others:
                names[unit] = others[member.layer, own]
            elif member.side in WHOLE:
                names.setdefault(unit, member.layer)
    return tuple(names.get(unit, str(unit)) for unit in range(coupling.group.size))


def gone_units(coupling: Coupling, cuts: Sequence[Cut]) -> tuple[int, ...]:
    """The units of a group of which nothing is left after cuts, in ascending order.

    Layers inside of what is gone as a whole have no cuts of their own: where all of a group is in
    there, all of its units are gone.
    """
    by_side = {(cut.layer, cut.side, cut.axis): cut for cut in cuts}
    whole = {cut.layer for cut in cuts if cut.side in WHOLE}
    inside = tuple(f"{layer}." for layer in whole)
    gone = np.ones(coupling.group.size, dtype=bool)
    for member in coupling.members:
        hidden = member.layer.startswith(inside) or (
            member.layer in whole and member.side not in WHOLE
        )
        if hidden or member.side == UNPLACED:
            continue
        cut = by_side.get((member.layer, member.side, member.axis))
        edges = [] if cut is None else [edge for pair in cut.removed for edge in pair]
        # between its first and its second edge, its third and its fourth, ... an index is removed
        stays = np.searchsorted(edges, member.index, side="right") % 2 == 0
        gone[member.unit[stays]] = False
    return tuple(np.flatnonzero(gone).tolist())


def went_with(coupling: Coupling, cuts: Sequence[Cut]) -> tuple[str, ...]:
    """The blocks and branches that took a whole group along; none where a unit of it is left.

    A cut of its own leaves every group a unit.
    """
    if len(gone_units(coupling, cuts)) < coupling.group.size:
        return ()
    inside = tuple(f"{member.layer}." for member in coupling.members)
    whole = sorted(cut.layer for cut in cuts if cut.side in WHOLE)
    return tuple(w for w in whole if any(layer.startswith(f"{w}.") for layer in inside))
