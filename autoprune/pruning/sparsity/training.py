"""Sparse training: fitting with a proximal step behind every step of the optimizer."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.protocols import StepGuard
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.criteria import Criterion, Scores, Scoring
from autoprune.pruning.isolation import derive
from autoprune.pruning.recover import Epoch, FitPlan, FitState, fit
from autoprune.pruning.sparsity.blocks import silent_units
from autoprune.pruning.sparsity.shrink import Shrinking
from autoprune.tasks.protocol import CustomFit, Task

_OWN_SEED = 2  # so that its batches are not those of the training after the cut


def train_sparsely(
    model: nn.Module,
    task: Task,
    plan: FitPlan,
    shrinking: Shrinking,
    *,
    seed: int,
    resume: FitState | None = None,
    step_guard: StepGuard = nullcontext,
) -> Iterator[Epoch]:
    """Train `model`, which `shrinking` shrinks, in place, as `fit` does.

    What decays by `plan` decays besides the penalty. Raises what `fit` raises, and
    AutopruneError for a task that trains by itself.
    """
    check_task(task)
    yield from fit(
        model,
        task,
        plan,
        seed=derive(seed, _OWN_SEED),
        resume=resume,
        step_guard=step_guard,
        hook=shrinking,
    )


def check_task(task: Task) -> None:
    """Raise AutopruneError for a task that trains by itself."""
    if isinstance(task, CustomFit):
        raise AutopruneError(
            f"{type(task).__name__} trains by a fit of its own, into which no proximal step can be "
            "put; choose a recovery without sparsity"
        )


@dataclass(frozen=True)
class ZerosFirst:
    """A criterion by which units that are all zero go before any other goes.

    Most criteria rank them so by themselves; those that compare units with each other, or look at
    nothing, do not.
    """

    criterion: Criterion

    @property
    def name(self) -> str:
        """The criterion's own."""
        return self.criterion.name

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`: below the least of all others where a unit is zero."""
        silent = {c.group.name: silent_units(model, c) for c in couplings}
        found = self.criterion.scores(model, couplings, scoring)
        return {
            name: _below(torch.as_tensor(scores).detach().double().cpu(), silent.get(name))
            for name, scores in found.items()
        }


def _below(scores: torch.Tensor, silent: torch.Tensor | None) -> torch.Tensor:
    if silent is None or not len(scores):
        return scores
    return torch.where(silent, scores.min() - 1, scores)
