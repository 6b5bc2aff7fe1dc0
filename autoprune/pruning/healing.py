"""How a cut network heals: what is mended at once, and what is trained after that."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Self

from torch import nn

from autoprune.domain.errors import FaultsError
from autoprune.domain.protocols import StepGuard
from autoprune.domain.typed import check_types
from autoprune.pruning.cuts import Cut
from autoprune.pruning.distill import Distillation, Distilled
from autoprune.pruning.recalibrate import recalibrate
from autoprune.pruning.reconstruct import Reconstruction, reconstruct
from autoprune.pruning.recover import Epoch, FitPlan, FitState, fit
from autoprune.pruning.schedule import ONE_SHOT, Schedule
from autoprune.pruning.sparsity.plan import Sparsity
from autoprune.tasks.protocol import Task, device_of

LATER = ("sparsity", "schedule")
"""The sections of a recovery that sweeps did not have in their beginnings."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """How a network is made ready for its cut, and how a cut one heals.

    With `sparsity` the cut that was judged first is not the last one: the unpruned network is then
    trained towards zeros, and cut to the same widths again.

    At once, before it is judged the first time: what reads a cut layer is fitted by
    `reconstruction`, and batch norm is recalibrated over `recalibration_batches` of train. Then it
    is trained by `fit`, with the unpruned network as its teacher where there is a `distillation`.
    A `schedule` of several rounds shares out the epochs among them; in each the network is cut
    further, mended, and trained, from the warm-up to the end of the cosine.
    """

    fit: FitPlan
    recalibration_batches: int = 16
    sparsity: Sparsity | None = None
    reconstruction: Reconstruction | None = None
    distillation: Distillation | None = None
    schedule: Schedule = ONE_SHOT

    def __repr__(self) -> str:
        """Journals and profiles hold it: a section that came later is told where there is one."""
        values = ((f, getattr(self, f.name)) for f in fields(self))
        told = (f"{f.name}={v!r}" for f, v in values if f.name not in LATER or v != f.default)
        return f"Recovery({', '.join(told)})"

    def __post_init__(self) -> None:
        check_types(self)
        faults = []
        if self.recalibration_batches < 1:
            faults.append(
                f"recalibration_batches is {self.recalibration_batches}; choose 1 or more"
            )
        if self.distillation is not None and not self.fit.epochs:
            faults.append(
                "distillation is training, and fit.epochs is 0; choose 1 epoch or more, or no "
                "distillation"
            )
        faults += self.schedule.misfits(self.fit)
        if self.sparsity is not None and self.schedule.again:
            faults.append(
                "sparsity prepares the unpruned network for one cut, and schedule cuts it again or "
                "rewinds it; choose one of them"
            )
        if self.schedule.rewind and self.reconstruction is not None:
            faults.append(
                "reconstruction fits weights that schedule.rewind sets back; choose one of them"
            )
        if faults:
            raise FaultsError(faults)

    @property
    def name(self) -> str:
        """What it does: none, or of a method of sparse training, reconstruct, iterative, rewind,
        distill and finetune what applies, such as reconstruct_distill; finetune is what no other
        word says of its training.
        """
        parts = [] if self.sparsity is None else [self.sparsity.method]
        if self.reconstruction is not None:
            parts.append("reconstruct")
        if self.fit.epochs:
            taught, rewound = self.distillation is not None, self.schedule.rewind
            words = {"iterative": self.schedule.rounds > 1, "rewind": rewound, "distill": taught}
            words["finetune"] = not taught and not rewound
            parts += [word for word, holds in words.items() if holds]
        return "_".join(parts) or "none"

    @property
    def at_once(self) -> Self:
        """The same without training."""
        return replace(
            self, fit=FitPlan(epochs=0), sparsity=None, distillation=None, schedule=ONE_SHOT
        )

    def in_round(self, number: int) -> Self:
        """What it does in one of its rounds, the first of which is 0."""
        epochs = self.schedule.epochs(self.fit.epochs)[number]
        return replace(self, fit=replace(self.fit, epochs=epochs), schedule=ONE_SHOT)

    @property
    def epochs_before(self) -> int:
        """Epochs of training before the cut."""
        return 0 if self.sparsity is None else self.sparsity.epochs

    @property
    def epochs(self) -> int:
        """Epochs of training in all."""
        return self.epochs_before + self.fit.epochs

    def __str__(self) -> str:
        """All that it does, in order."""
        parts = [] if self.sparsity is None else [str(self.sparsity)]
        if self.schedule.rewind:
            parts.append("early weights")
        if self.reconstruction is not None:
            parts.append(f"least squares over {self.reconstruction.batches} batches")
        parts.append(f"batch norm over {self.recalibration_batches} batches")
        if self.fit.epochs:
            shares = self.schedule.epochs(self.fit.epochs)
            epochs = "1 epoch" if shares[0] == 1 else f"{shares[0]} epochs"
            rest = "" if shares[0] == shares[-1] else f" ({shares[-1]} in the last)"
            teacher = "" if self.distillation is None else " with a teacher"
            parts.append(f"{epochs}{rest} of {self.fit.optimizer}{teacher}")
        rounds = self.schedule.rounds
        told = f"{rounds} {self.schedule.shape} rounds of " if rounds > 1 else ""
        return told + ", ".join(parts)


@dataclass(frozen=True)
class Healing:
    """A recovery at work on the network that `cuts` led to from `unpruned`, which stays as it is.

    Each step of work runs inside `step_guard()`.
    """

    recovery: Recovery
    task: Task
    unpruned: nn.Module
    cuts: Sequence[Cut]
    seed: int
    step_guard: StepGuard = nullcontext

    def at_once(self, model: nn.Module) -> None:
        """Mend the cut network in place, without training it.

        Raises AutopruneError where the train split has no batch.
        """
        if self.recovery.reconstruction is not None:
            reconstruct(
                model,
                self._unpruned_beside(model),
                self.cuts,
                self.task,
                plan=self.recovery.reconstruction,
                seed=self.seed,
                step_guard=self.step_guard,
            )
        recalibrate(
            model,
            self.task,
            batches=self.recovery.recalibration_batches,
            seed=self.seed,
            step_guard=self.step_guard,
        )

    def train(self, model: nn.Module, *, resume: FitState | None = None) -> Iterator[Epoch]:
        """Train the cut network in place, an epoch at a time, as `fit` does.

        Raises what `fit` and `Distilled` raise.
        """
        task, plan = self.task, self.recovery.distillation
        if plan is not None:
            task = Distilled(task, self._unpruned_beside(model), plan, cuts=self.cuts)
        yield from fit(
            model,
            task,
            self.recovery.fit,
            seed=self.seed,
            resume=resume,
            step_guard=self.step_guard,
        )

    def _unpruned_beside(self, model: nn.Module) -> nn.Module:
        """A copy of the unpruned network on the device of the cut one."""
        return copy.deepcopy(self.unpruned).to(device_of(model))
