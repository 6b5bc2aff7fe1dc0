"""Which relations of Torch-Pruning's graph can be cut, by their structure."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from autoprune.domain.space import UNEVEN_KINDS, Group
from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.cuts import Indices, groups_of, is_depthwise, weight_axis, width


@dataclass(frozen=True, slots=True)
class Refused:
    """A layer whose outputs cannot be pruned, and why."""

    name: str
    reason: str


@dataclass(eq=False)
class Relation:
    """A root with everything that Torch-Pruning couples to it.

    `strange` names coupled layers that cannot be cut; `is_output` where it meets the output.
    `kind` and `pinned` are the group's; without a kind it follows from the root.
    """

    name: str
    size: int
    members: list[Member] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    is_output: bool = False
    kind: str | None = None
    pinned: tuple[int, ...] = ()


def sort_relations(
    relations: Sequence[Relation], modules: dict[str, nn.Module]
) -> tuple[list[Coupling], list[Refused]]:
    """Couplings of the relations that can be cut, and why the others cannot."""
    couplings: list[Coupling] = []
    refused: list[Refused] = []
    claimed: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    owners = _owners(modules)
    for relation in relations:
        found = (check(relation, modules) for check in _CHECKS)
        fault = next(filter(None, found), None) or _tie_fault(relation, modules, owners)
        cell = _cells(relation, modules)
        if fault is None and cell is None:
            fault = "a grouped convolution or a group norm allows no even removal from its blocks"
        taken = [claimed[m.layer, m.side, m.axis] for m in relation.members]
        if fault is None and any(
            not t.isdisjoint(m.index.tolist()) for t, m in zip(taken, relation.members, strict=True)
        ):
            fault = "it shares inputs or outputs of a layer with another group"
        if fault is not None or cell is None:
            refused.append(Refused(relation.name, str(fault)))
            continue
        for t, member in zip(taken, relation.members, strict=True):
            t.update(member.index.tolist())
        couplings.append(_coupling(relation, modules, cell))
    return couplings, refused


def _coupling(relation: Relation, modules: dict[str, nn.Module], cell: Indices) -> Coupling:
    rooted = "neurons" if isinstance(modules.get(relation.name), nn.Linear) else "channels"
    group = Group(
        relation.name,
        relation.kind or rooted,
        relation.size,
        step=len(np.unique(cell)),
        layers=tuple(dict.fromkeys(member.layer for member in relation.members)),
    )
    return Coupling(group, tuple(relation.members), cell, pinned=relation.pinned)


def _output_fault(relation: Relation, modules: dict[str, nn.Module]) -> str | None:
    if relation.kind == "blocks":
        return None
    if relation.is_output or not any(
        m.side == "in" or is_depthwise(modules[m.layer])
        for m in relation.members
        if m.side in ("in", "out")
    ):
        return "its units are part of the network's output"
    return None


def _layer_fault(relation: Relation, modules: dict[str, nn.Module]) -> str | None:
    """Layers that cannot be cut, or not in the way Torch-Pruning thinks."""
    for strange in relation.strange:
        return f"it is coupled to {strange}, which cannot be cut"
    for member, layer in _layers(relation, modules):
        if "weight" not in layer._parameters:
            return (
                f"the weight of {member.layer!r} is computed (weight norm or another "
                "parametrization); remove the parametrization first"
            )
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
            return f"{member.layer!r} normalises over more than one axis"
    return None


def _mapping_fault(relation: Relation, modules: dict[str, nn.Module]) -> str | None:
    """Units must own equally many indices of a side, each index one unit."""
    if relation.size < 2:
        return "it has one unit only"
    if relation.kind in UNEVEN_KINDS:
        return None
    for member in relation.members:
        counts = np.bincount(member.unit, minlength=relation.size)
        layer = modules.get(member.layer)
        size = int(member.index.max()) + 1 if layer is None else width(layer, member.side)
        repeats = len(np.unique(member.index)) < len(member.index)
        if repeats or member.index.max() >= size or counts.min() < counts.max():
            return f"its units do not map one to one to those of {member.layer!r}"
        whole = len(member.index) == size
        if layer is not None and groups_of(layer) > 1 and (not whole or counts.max() > 1):
            return f"it is only a part of the grouped layer {member.layer!r}"
    return None


def _layers(
    relation: Relation, modules: dict[str, nn.Module]
) -> Iterator[tuple[Member, nn.Module]]:
    """The members that are sides of layers, with those."""
    for member in relation.members:
        if member.side in ("in", "out"):
            yield member, modules[member.layer]


_CHECKS: tuple[Callable[[Relation, dict[str, nn.Module]], str | None], ...] = (
    _layer_fault,
    _output_fault,
    _mapping_fault,
)


def _cells(relation: Relation, modules: dict[str, nn.Module]) -> Indices | None:
    """The block of every unit that satisfies all grouped layers at once; None without one.

    With nested blocks, keeping equally many units of the finest ones is fair to all.
    """
    keys = np.zeros((relation.size, 1), np.int64)
    blocks = 1
    for member, layer in _layers(relation, modules):
        groups = groups_of(layer)
        if groups == 1:
            continue
        key = np.zeros((relation.size, 1), np.int64)
        key[member.unit, 0] = member.index // (width(layer, member.side) // groups)
        keys, blocks = np.hstack([keys, key]), max(blocks, groups)
    _, cell = np.unique(keys, axis=0, return_inverse=True)
    cell = cell.reshape(-1).astype(np.int64)
    sizes = np.bincount(cell)
    nested = len(sizes) == blocks and len(set(sizes)) == 1
    return cell if nested and sizes[0] > 1 else None


Owners = dict[int, list[str]]


def _owners(modules: dict[str, nn.Module]) -> Owners:
    """For every weight or bias that more than one layer holds, the names of those layers."""
    found: Owners = defaultdict(list)
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                found[id(parameter)].append(name)
    return {key: names for key, names in found.items() if len(names) > 1}


def _tie_fault(relation: Relation, modules: dict[str, nn.Module], owners: Owners) -> str | None:
    """Layers that share a parameter must be cut alike, or the tie would break."""
    cuts: dict[str, set[tuple[int, int, int]]] = defaultdict(set)
    for member, layer in _layers(relation, modules):
        axis = weight_axis(layer, member.side)
        pairs = zip(member.index.tolist(), member.unit.tolist(), strict=True)
        cuts[member.layer].update((axis, index, unit) for index, unit in pairs)
    for names in owners.values():
        if len({frozenset(cuts.get(name, ())) for name in names}) > 1:
            return f"layers {names} share a parameter that this group would cut in one of them only"
    return None
