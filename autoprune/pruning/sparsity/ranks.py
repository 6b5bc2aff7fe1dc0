"""The nuclear norm of weights, by singular-value thresholding.

Axis legend: o = outputs of a layer, n = its inputs (channels times kernel).
"""

from collections.abc import Sequence

import torch
from torch import nn

from autoprune.pruning.coupling import Coupling
from autoprune.pruning.factors import factorable
from autoprune.pruning.sparsity.prox import singular_value_threshold

EVERY = 16
"""At most so many steps' thresholds are taken at once: a decomposition costs more than a step."""


class Ranks:
    """The weights under the penalty: those of layers that a cut thins out and that can be factored.

    A weight's norm counts the root of its longer side, by which a random one's largest singular
    value grows. The step comes behind that for whole units, so of the two penalties together it
    is not the exact one; units that are zero stay so.
    """

    def __init__(self, model: nn.Module, couplings: Sequence[Coupling], strength: float) -> None:
        layers = factorable(model)
        names = dict.fromkeys(member.layer for c in couplings for member in c.members)
        weights = [layers[name].weight for name in names if name in layers]
        self._weights = [weight for weight in weights if weight.requires_grad]
        self._strength, self._owed, self._steps = strength, 0.0, 0

    def after_step(self, lr: float) -> None:
        """Take note of a step; every so often the weights change, in place."""
        self._owed += lr * self._strength
        self._steps += 1
        if self._steps == EVERY:
            self.settle()

    def settle(self) -> None:
        """Take the steps that were noted and not taken yet."""
        for weight in self._weights:
            _threshold(weight, self._owed)
        self._owed, self._steps = 0.0, 0


def _threshold(weight: torch.Tensor, threshold: float) -> None:
    """The step on the weight [o, n], without its rows and columns that are zero."""
    matrix = weight.detach().flatten(1)
    if not matrix.isfinite().all():
        return  # no decomposition takes it, and the next loss tells of it with a remedy
    rows, columns = matrix.any(1).nonzero().flatten(), matrix.any(0).nonzero().flatten()
    if not len(rows):
        return
    part = matrix[rows][:, columns]
    shrunk = singular_value_threshold(part, threshold * max(part.shape) ** 0.5)
    left = torch.zeros_like(matrix)
    left[rows[:, None], columns] = shrunk
    weight.copy_(left.view_as(weight))
