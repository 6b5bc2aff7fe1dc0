"""The control experiment: a criterion that looks at nothing."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from autoprune.pruning.coupling import Coupling
from autoprune.pruning.criteria.protocol import Scores, Scoring
from autoprune.pruning.isolation import derive


@dataclass(frozen=True)
class Random:
    """Uniform scores in [0, 1), fixed by the seed and the group's name."""

    name: str = "random"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`; the order of the groups does not matter."""
        found = {}
        for coupling in couplings:
            digest = hashlib.sha256(coupling.group.name.encode()).digest()
            seed = derive(scoring.seed, int.from_bytes(digest[:8], "big"))
            generator = torch.Generator().manual_seed(seed)
            found[coupling.group.name] = torch.rand(coupling.group.size, generator=generator)
        return found
