"""What hangs together: a group with every index of every layer that belongs to its units."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.domain.space import Group
from autoprune.pruning.cuts import Cut, Indices, Side


@dataclass(frozen=True, eq=False)
class Member:
    """One side of one layer in a group: `index[i]` of that side belongs to unit `unit[i]`.

    `side` and `axis` are as in `Cut`; `layer` is the parameter's own name where side is
    ``param``. A unit may own several indices (a channel flattened before a linear layer, or the
    channels of a head).
    """

    layer: str
    side: Side
    index: Indices
    unit: Indices
    axis: int = 0


@dataclass(frozen=True, eq=False)
class Coupling:
    """A group and its members. `cell[u]` is the cell of unit u: every cell keeps equally many.

    There is more than one cell where a grouped convolution or a group norm takes part. `pinned`
    are units that stay whatever is cut.
    """

    group: Group
    members: tuple[Member, ...]
    cell: Indices
    pinned: tuple[int, ...] = ()


def cuts_for(couplings: Iterable[Coupling], removed: Mapping[str, Indices]) -> tuple[Cut, ...]:
    """The cuts that remove the units `removed` (by group name), one for every side of a layer.

    Layers that go with a block or a branch have none of their own.
    """
    gone: dict[tuple[str, Side, int], list[Indices]] = defaultdict(list)
    absent: dict[tuple[str, Side], list[Indices]] = defaultdict(list)
    for coupling in couplings:
        units = removed.get(coupling.group.name, np.empty(0, np.int64))
        for member in coupling.members if len(units) else ():
            indices = member.index[np.isin(member.unit, units)]
            if len(indices):
                gone[member.layer, member.side, member.axis].append(indices)
                if coupling.group.kind != "connections":
                    absent[member.layer, member.side].append(indices)
    wholes = {layer: side for layer, side, _ in gone if side in ("block", "branch")}
    inside = tuple(f"{layer}." for layer, side in wholes.items() if side == "block")
    found = []
    for (layer, side, axis), parts in sorted(gone.items()):
        indices = np.unique(np.concatenate(parts))
        if side == "reads":
            given: Side = "in" if (layer, "in", 0) in gone else "out"  # a norm has outputs alone
            indices = _places(indices, absent[layer, given])
        lives = not layer.startswith(inside) and wholes.get(layer, side) == side
        if lives and len(indices):
            found.append(Cut.of(layer, side, indices, axis=axis))
    return tuple(found)


def _places(indices: Indices, absent: Sequence[Indices]) -> Indices:
    """Where channels stand among those that a layer is still given, without the absent ones."""
    missing = np.unique(np.concatenate([np.empty(0, np.int64), *absent]))
    there = np.setdiff1d(indices, missing)
    return (there - np.searchsorted(missing, there)).astype(np.int64)
