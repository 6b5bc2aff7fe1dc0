"""The global ranking of a network: what its criteria make of every unit."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from autoprune.domain.ranking import Ranking
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.criteria import Criterion, Scoring, score


def rank(
    model: nn.Module,
    couplings: Sequence[Coupling],
    criteria: Mapping[str, Criterion],
    scoring: Scoring,
) -> Ranking:
    """Score every unit by every criterion; `Ranking.path` makes specs of it.

    Raises what `score` raises.
    """
    found = {}
    for name, criterion in criteria.items():
        scores = score(model, couplings, criterion, scoring)
        found[name] = {c.group.name: _in_order(c, scores[c.group.name]) for c in couplings}
    return Ranking(found)


def _in_order(coupling: Coupling, scores: torch.Tensor) -> tuple[float, ...]:
    """The scores as units go: the lowest of every cell, then the second lowest of every cell."""
    cells = [scores[coupling.cell == cell].sort().values for cell in np.unique(coupling.cell)]
    return tuple(torch.stack(cells, 1).flatten().tolist())
