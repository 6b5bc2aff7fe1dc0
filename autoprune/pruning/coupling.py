"""What hangs together: a group with every index of every layer that belongs to its units."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
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

    Layers of a block that is removed have none of their own.
    """
    gone: dict[tuple[str, Side, int], list[Indices]] = defaultdict(list)
    for coupling in couplings:
        units = removed.get(coupling.group.name, np.empty(0, np.int64))
        for member in coupling.members if len(units) else ():
            indices = member.index[np.isin(member.unit, units)]
            if len(indices):
                gone[member.layer, member.side, member.axis].append(indices)
    blocks = tuple(f"{layer}." for layer, side, _ in gone if side == "block")
    return tuple(
        Cut.of(layer, side, np.concatenate(parts), axis=axis)
        for (layer, side, axis), parts in sorted(gone.items())
        if not layer.startswith(blocks)
    )
