"""The sparse training of a trial: from the unpruned network to the one that is cut."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from autoprune.domain.errors import AutopruneError
from autoprune.domain.protocols import StepGuard
from autoprune.domain.space import UNEVEN_KINDS
from autoprune.domain.trial import Trial
from autoprune.evaluation.records import TrialContext
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.recover import Epoch, FitState
from autoprune.pruning.sparsity.cost import Cost, MacCost
from autoprune.pruning.sparsity.plan import Sparsity
from autoprune.pruning.sparsity.shrink import Shrinking
from autoprune.pruning.sparsity.training import train_sparsely


class Thinning:
    """Trains the unpruned network of a trial towards the zeros that its cut will take.

    `model` is the network: a copy of the baseline, or what `begun` has come to. With `low_rank` its
    layers are meant to be factored.
    """

    def __init__(self, trial: Trial, context: TrialContext, begun: nn.Module | None) -> None:
        """Raises AutopruneError where latency is the budget and nothing predicts it."""
        self._trial, self._context = trial, context
        recovery = context.recoveries[trial.spec.recovery]
        assert recovery.sparsity is not None
        self.low_rank = recovery.sparsity.method == "low_rank"
        self._fit = replace(recovery.fit, epochs=recovery.epochs_before)
        self.model = begun or copy.deepcopy(context.model).to(context.device)
        # which block or branch goes was decided when the cut was measured
        even = [c for c in context.dependencies.couplings if c.group.kind not in UNEVEN_KINDS]
        self._shrinking = Shrinking(
            self.model,
            even,
            recovery.sparsity,
            kept=trial.spec.widths,
            cost=_cost(recovery.sparsity, trial, context, even),
        )

    @property
    def metrics(self) -> dict[str, float]:
        """How far it is, as metrics of the trial."""
        return self._shrinking.metrics

    def epochs(self, resume: FitState | None, step_guard: StepGuard) -> Iterator[Epoch]:
        """Train an epoch at a time, as `train_sparsely` does."""
        return train_sparsely(
            self.model,
            self._context.task,
            self._fit,
            self._shrinking,
            seed=self._trial.seed,
            resume=resume,
            step_guard=step_guard,
        )


def _cost(
    plan: Sparsity, trial: Trial, context: TrialContext, couplings: Sequence[Coupling]
) -> Cost:
    """What the budget is in: MACs also where the trial's widths are predicted to save no time."""
    if plan.budget == "latency":
        if context.latency is None:
            raise AutopruneError(
                "sparsity.budget is latency, which a profile predicts, and this sweep has none; "
                "set profile=true (from Python, profile=True), or choose its budget macs"
            )
        if context.latency.share(trial.spec.widths) < context.latency.share({}):
            return context.latency.share
    return MacCost(context.model, context.task.example(), couplings)
