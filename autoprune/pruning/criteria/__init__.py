"""Criteria: which units of a group matter least.

`weights` read the network alone, `loss` and `activations` also data, `chance` nothing at all.
"""

import copy
from collections.abc import Sequence

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.pruning.attention import narrow
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.criteria.activations import Activation, Gate, ShareOfNonzeros
from autoprune.pruning.criteria.chance import Random
from autoprune.pruning.criteria.loss import Fisher, Hessian, Taylor
from autoprune.pruning.criteria.protocol import Criterion, Scores, Scoring
from autoprune.pruning.criteria.weights import (
    L1,
    BatchNormScale,
    GeometricMedian,
    Lamp,
    Magnitude,
    unit_sums,
)
from autoprune.pruning.foreign import in_pytorchs_form

__all__ = [
    "CRITERIA",
    "Criterion",
    "Hessian",
    "Scores",
    "Scoring",
    "criterion_of",
    "score",
    "unit_sums",
]

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        L1,
        Magnitude("l2", 2),
        Lamp(),
        GeometricMedian(),
        BatchNormScale(),
        Taylor(),
        Fisher(),
        Hessian(),
        Activation(),
        ShareOfNonzeros(),
        Gate(),
        Random(),
    )
}
"""The built-in criteria by name."""


def criterion_of(name: str) -> Criterion:
    """The built-in criterion of that name, or AutopruneError with the near miss."""
    if name not in CRITERIA:
        raise unknown("criterion", name, CRITERIA)
    return CRITERIA[name]


def score(
    model: nn.Module, couplings: Sequence[Coupling], criterion: Criterion, scoring: Scoring
) -> dict[str, torch.Tensor]:
    """The criterion's scores, checked: float64 [u] on the CPU by group name.

    The criterion works on a copy of `model`. Pinned units have the group's highest score. Raises
    AutopruneError for a group that it left out, for scores of another shape, or for scores that
    are not finite.
    """
    scored = copy.deepcopy(model).to(scoring.device)
    narrow(scored, every=True)
    in_pytorchs_form(scored)
    found = criterion.scores(scored, couplings, scoring)
    checked = {}
    for coupling in couplings:
        group = coupling.group
        scores = found.get(group.name)
        if scores is None or tuple(scores.shape) != (group.size,):
            shape = "no scores" if scores is None else f"scores of shape {tuple(scores.shape)}"
            raise AutopruneError(
                f"criterion {criterion.name!r} gave {shape} for group {group.name!r}; "
                f"return one score for each of its {group.size} units"
            )
        checked[group.name] = scores.detach().double().cpu()
        if not checked[group.name].isfinite().all():
            raise AutopruneError(
                f"criterion {criterion.name!r} gave scores for group {group.name!r} that are not "
                "finite; check the network's weights and the loss"
            )
        checked[group.name][list(coupling.pinned)] = checked[group.name].max()
    return checked
