"""Cutting what was cut before: what hangs together in it, and two histories in one."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from autoprune.pruning.coupling import Coupling, Member
from autoprune.pruning.cuts import Cut, Indices, Side

Removed = dict[tuple[str, Side, int], Indices]
"""The indices that are gone, ascending, of every side of a layer (and axis of a parameter)."""


def restrict(couplings: Iterable[Coupling], history: Iterable[Cut]) -> tuple[Coupling, ...]:
    """The couplings of the network that `history` leads to, without tracing it.

    `couplings` and `history` are of one network, and the history cuts whole units. Those that are
    left are numbered anew in the order that they had, like the indices of every layer. Groups
    keep their names, steps and blocks.
    """
    removed = _removed(history)
    return tuple(_restricted(coupling, removed) for coupling in couplings)


def compose(history: Iterable[Cut], further: Iterable[Cut]) -> tuple[Cut, ...]:
    """The one history that leads where `further` does after `history`.

    `further` is in indices of the network that `history` leads to, the result in those of the
    network that it begins with.
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
    stays = np.ones(coupling.group.size, bool)
    for member in coupling.members:
        stays[member.unit[np.isin(member.index, _gone(member, removed))]] = False
    number = np.cumsum(stays) - 1
    members = []
    for member in coupling.members:
        kept = stays[member.unit]
        index = member.index[kept]
        index = index - np.searchsorted(_gone(member, removed), index)
        members.append(replace(member, index=index, unit=number[member.unit[kept]]))
    return replace(
        coupling,
        group=replace(coupling.group, size=int(stays.sum())),
        members=tuple(members),
        cell=coupling.cell[stays],
    )


def _gone(member: Member, removed: Removed) -> Indices:
    return removed.get((member.layer, member.side, member.axis), _NOTHING)
