"""Cutting what was cut before: what hangs together in it, and two histories in one."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from autoprune.domain.space import UNEVEN_KINDS
from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.cuts import Cut, Indices, Side

Removed = dict[tuple[str, Side, int], Indices]
"""The indices that are gone, ascending, of every side of a layer (and axis of a parameter)."""


def restrict(couplings: Iterable[Coupling], history: Iterable[Cut]) -> tuple[Coupling, ...]:
    """The couplings of the network that `history` leads to, without tracing it.

    `couplings` and `history` are of one network, and the history cuts whole units, of other kinds
    than `UNEVEN_KINDS`. Those that are left are numbered anew in the order that they had, like the
    indices of every layer. Groups keep their names, steps and cells.
    """
    removed = _removed(history)
    return tuple(_restricted(coupling, removed) for coupling in couplings)


def compose(history: Iterable[Cut], further: Iterable[Cut]) -> tuple[Cut, ...]:
    """The one history that leads where `further` does after `history`.

    `further` is in indices of the network that `history` leads to, the result in those of the
    network that it begins with, but for what layers read of what they are given: that is by its
    place among what is given in the end.
    """
    removed = _removed(history)
    for key, left in _removed(further).items():
        gone = removed.get(key, _NOTHING)
        # an index counts those that were left; of the removed ones, how many came before it?
        before = np.searchsorted(gone - np.arange(len(gone)), left, side="right")
        removed[key] = np.concatenate([gone, left + before])
    return tuple(
        Cut.of(layer, side, indices, axis=axis)
        for (layer, side, axis), indices in sorted(removed.items(), key=lambda item: item[0])
    )


_NOTHING: Indices = np.empty(0, np.int64)


def _removed(cuts: Iterable[Cut]) -> Removed:
    found: Removed = {}
    for cut in cuts:
        ranges = [np.arange(*ends, dtype=np.int64) for ends in cut.removed]
        found[cut.layer, cut.side, cut.axis] = np.concatenate(ranges)
    return found


def _restricted(coupling: Coupling, removed: Removed) -> Coupling:
    gone = [removed.get(_side_of(member, coupling), _NOTHING) for member in coupling.members]
    stays = np.ones(coupling.group.size, bool)
    if coupling.group.kind not in UNEVEN_KINDS:
        for member, missing in zip(coupling.members, gone, strict=True):
            stays[member.unit[np.isin(member.index, missing)]] = False
    number = np.cumsum(stays) - 1
    members = []
    for member, missing in zip(coupling.members, gone, strict=True):
        kept = stays[member.unit] & ~np.isin(member.index, missing)
        index = member.index[kept]
        index = index - np.searchsorted(missing, index)
        members.append(replace(member, index=index, unit=number[member.unit[kept]]))
    return replace(
        coupling,
        group=replace(coupling.group, size=int(stays.sum())),
        members=tuple(members),
        cell=coupling.cell[stays],
    )


def _side_of(member: Member, coupling: Coupling) -> tuple[str, Side, int]:
    """The side of a layer that a member's indices are of: what a layer reads are its inputs, which
    of a norm are its outputs.
    """
    side = member.side
    if side == "reads":
        reads = any((m.layer, m.side) == (member.layer, "in") for m in coupling.members)
        side = "in" if reads else "out"
    return member.layer, side, member.axis
