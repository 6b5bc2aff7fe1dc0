"""Groups of what a concatenation joins: its branches, and who of its readers reads which part.

A concatenation is seen in the couplings: layers of which several couplings own a part of the
inputs each.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.domain.space import ALIGNED
from autoprune.pruning.checks import Relation
from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.cuts import groups_of, has_inputs, width

Modules = Mapping[str, nn.Module]
Parts = Mapping[str, Member]
"""By the name of a coupling, its part of the inputs of one layer."""


def joined(couplings: Sequence[Coupling], modules: Modules, order: Sequence[str]) -> list[Relation]:
    """Relations of branches, and of connections where the parts are not read by all alike."""
    known = {c.group.name: c for c in couplings if c.group.kind in ALIGNED}
    inputs = {name: parts for name, parts in _inputs(known, modules).items() if len(parts) > 1}
    branches = list(_branches(known, modules, inputs))
    in_branches = {m.layer for relation in branches for m in relation.members if m.side == "in"}
    dense = {name: parts for name, parts in inputs.items() if name not in in_branches}
    return branches + list(_connections(known, modules, dense, order))


def _inputs(known: Mapping[str, Coupling], modules: Modules) -> dict[str, dict[str, Member]]:
    """The readers of couplings, each with the parts of its inputs by their coupling."""
    found: dict[str, dict[str, Member]] = defaultdict(dict)
    for name, coupling in known.items():
        for member in coupling.members:
            if member.side != "in":
                continue
            layer = modules[member.layer]
            if has_inputs(layer) and groups_of(layer) == 1:
                found[member.layer][name] = member
    return found


def _is_whole(layer: nn.Module, parts: Parts) -> bool:
    """Whether couplings own all inputs of a layer."""
    return sum(len(member.index) for member in parts.values()) == width(layer, "in")


def _branches(
    known: Mapping[str, Coupling], modules: Modules, inputs: Mapping[str, Parts]
) -> Iterator[Relation]:
    """Couplings that the same layers read, and that make up all of their inputs: one a branch."""
    sets: dict[frozenset[str], set[str]] = defaultdict(set)
    readers = {name: _readers_of(coupling) for name, coupling in known.items()}
    for layer, parts in inputs.items():
        if _is_whole(modules[layer], parts):
            sets[frozenset(parts)].add(layer)
    for names, layers in sets.items():
        ordered = _sorted(names, known)
        if any(readers[name] != layers for name in names):
            continue
        found = [_branch(known, name, unit, modules) for unit, name in enumerate(ordered)]
        if all(branch is not None for branch in found):
            members = [member for branch in found for member in branch or ()]
            yield Relation(f"{ordered[0]}:branches", len(found), members, kind="branches")


def _sorted(names: frozenset[str], known: Mapping[str, Coupling]) -> list[str]:
    return [name for name in known if name in names]


def _readers_of(coupling: Coupling) -> set[str]:
    return {member.layer for member in coupling.members if member.side == "in"}


def _branch(
    known: Mapping[str, Coupling], name: str, unit: int, modules: Modules
) -> list[Member] | None:
    """What belongs to a branch: its part of what reads it, and the layers that it alone needs.

    None where something takes part that cannot be taken from it: a free parameter, or a transposed
    convolution.
    """
    members, dead = list[Member](), set[str]()
    for member in known[name].members:
        if member.side == "param":
            return None
        if member.side == "out" and len(member.index) == width(modules[member.layer], "out"):
            dead.add(member.layer)
        else:
            members.append(_of_unit(member, unit))
    while True:
        more = {
            member.layer
            for coupling in known.values()
            if _readers_of(coupling) and _readers_of(coupling) <= dead
            for member in coupling.members
            if member.side == "out"
        }
        if more <= dead:
            break
        dead |= more
    if any(isinstance(modules[layer], _ConvTransposeNd) for layer in dead):
        return None
    zero = np.zeros(1, np.int64)
    gone = [Member(layer, "branch", zero, zero + unit) for layer in sorted(dead)]
    return members + gone


def _of_unit(member: Member, unit: int) -> Member:
    """All that a member names, as one unit."""
    owner = np.full(len(member.index), unit, np.int64)
    return Member(member.layer, member.side, member.index, owner)


def _connections(
    known: Mapping[str, Coupling],
    modules: Modules,
    inputs: Mapping[str, Parts],
    order: Sequence[str],
) -> Iterator[Relation]:
    """For every layer that reads several couplings, which of them it reads."""
    for reader, parts in inputs.items():
        chain = _chain(reader, parts, known, modules, order)
        members = []
        for unit, name in enumerate(_sorted(frozenset(parts), known)):
            for layer in chain:
                side = "in" if layer == reader else "out"
                own = [m for m in known[name].members if (m.layer, m.side) == (layer, side)]
                members += [_of_unit(member, unit) for member in own]
            index = members[-1].index
            members.append(Member(chain[0], "reads", index, np.full(len(index), unit, np.int64)))
        yield Relation(f"{reader}:inputs", len(parts), members, kind="connections")


def _chain(
    reader: str,
    parts: Parts,
    known: Mapping[str, Coupling],
    modules: Modules,
    order: Sequence[str],
) -> list[str]:
    """The reader, behind a batch norm of its own where it has one: what just that layer reads."""
    layers = [name for name in order if isinstance(modules[name], (_ConvNd, nn.Linear, _BatchNorm))]
    at = layers.index(reader)
    before = layers[at - 1] if at else None
    if before is None or not isinstance(modules[before], _BatchNorm):
        return [reader]
    normed = {
        name: member.index
        for name, coupling in known.items()
        for member in coupling.members
        if member.layer == before
    }
    same = normed.keys() == parts.keys() and all(
        np.array_equal(normed[name], parts[name].index) for name in parts
    )
    return [before, reader] if same else [reader]
