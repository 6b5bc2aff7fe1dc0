"""Which units of a group matter least.

Axis legend: u = units of a group, w = units of one side of one of its layers.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.domain.errors import AutopruneError, unknown
from autoprune.domain.protocols import StepGuard
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.cuts import LAYERS, sum_by_unit
from autoprune.pruning.isolation import derive, own_rng
from autoprune.tasks.protocol import Task, device_of

Scores = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Scoring:
    """What a criterion may need besides the network: data and loss, a seed, and the guard.

    `batches` bounds how many batches of the training split it reads, `step_guard` opens the
    context in which every step of computation on batches must run, and `device` is where the
    network is scored.
    """

    task: Task | None = None
    seed: int = 0
    batches: int = 8
    step_guard: StepGuard = nullcontext
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise AutopruneError(f"importance reads {self.batches} batches; choose 1 or more")


class Criterion(Protocol):
    """Scores the units of groups; the lowest are cut.

    Scores compare inside one group only: nothing may be concluded from those of two groups.
    """

    @property
    def name(self) -> str:
        """What a spec calls it."""
        ...

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """One finite score a unit, float [u], by group name.

        `model` is the unpruned network in a copy that the criterion may use up.
        """
        ...


@dataclass(frozen=True)
class Magnitude:
    """The mass of all weights of a unit, in the layers that make it and those that read it.

    The sum of abs(w)^p over the coupled convolutions, linear layers, embeddings and the scales of
    norms: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023. For p = 1 and a
    single layer it is the filter norm of Li et al., Pruning Filters for Efficient ConvNets,
    ICLR 2017. Scores compare inside one group only.
    """

    name: str
    power: int

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`; `scoring` is not used."""
        del scoring
        return {
            c.group.name: unit_sums(model, c, lambda w: w.detach().abs() ** self.power)
            for c in couplings
        }


@dataclass(frozen=True)
class Random:
    """Uniform scores, fixed by the seed and the group's name: the control experiment."""

    name: str = "random"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`; the order of the groups does not matter."""
        del model
        found = {}
        for coupling in couplings:
            digest = hashlib.sha256(coupling.group.name.encode()).digest()
            seed = derive(scoring.seed, int.from_bytes(digest[:8], "big"))
            generator = torch.Generator().manual_seed(seed)
            found[coupling.group.name] = torch.rand(coupling.group.size, generator=generator)
        return found


@dataclass(frozen=True)
class BatchNormScale:
    """The absolute scales of the batch norms in a group, summed.

    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017.
    A group without batch norm falls back to the L1 criterion, which is sound because scores
    compare inside one group only; a network without any is refused.
    """

    name: str = "bn_scale"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError for a network without scaled batch norm."""
        if not any(_has_scale(module) for module in model.modules()):
            raise AutopruneError(
                f"criterion {self.name!r} reads the scales of batch norms and "
                f"{type(model).__name__} has none; choose l1, l2 or taylor"
            )
        modules = dict(model.named_modules())
        found = {}
        for coupling in couplings:
            scaled = [m for m in coupling.members if _has_scale(modules.get(m.layer))]
            if scaled:
                only = Coupling(coupling.group, tuple(scaled), coupling.cell)
                found[coupling.group.name] = unit_sums(model, only, lambda w: w.detach().abs())
            else:
                found |= L1.scores(model, [coupling], scoring)
        return found


@dataclass(frozen=True)
class Taylor:
    """First-order estimate of how much the loss changes without a unit: sum of abs(w dL/dw).

    Averaged over `scoring.batches` batches of the training split, in evaluation mode: Molchanov
    et al., Importance Estimation for Neural Network Pruning, CVPR 2019, summed over coupled
    layers as DepGraph does. Scores compare inside one group only.
    """

    name: str = "taylor"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task or without data."""
        if scoring.task is None:
            raise AutopruneError(f"criterion {self.name!r} needs a task for its loss; pass one")
        model.eval().requires_grad_(True)
        totals = {c.group.name: torch.zeros(c.group.size, dtype=torch.float64) for c in couplings}
        seen = 0
        with own_rng(scoring.seed, device_of(model)), torch.enable_grad():
            for batch in islice(scoring.task.batches("train", seed=scoring.seed), scoring.batches):
                with scoring.step_guard():
                    model.zero_grad()
                    scoring.task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
                    for coupling in couplings:
                        totals[coupling.group.name] += unit_sums(model, coupling, _first_order)
                seen += 1
        if not seen:
            raise AutopruneError(f"criterion {self.name!r}: the task's train split has no batch")
        return {name: total / seen for name, total in totals.items()}


def unit_sums(
    model: nn.Module, coupling: Coupling, value: Callable[[nn.Parameter], torch.Tensor]
) -> torch.Tensor:
    """Sum `value(weight)`, shaped like the weight, over everything a unit owns: float64 [u]."""
    modules = dict(model.named_modules())
    total = torch.zeros(coupling.group.size, dtype=torch.float64)
    for member in coupling.members:
        layer = modules.get(member.layer)
        weight = getattr(layer, "weight", None)
        if weight is None or not isinstance(layer, LAYERS) or isinstance(layer, nn.PReLU):
            continue
        by_index = sum_by_unit(layer, member.side, value(weight)).double().cpu()
        index, unit = torch.from_numpy(member.index), torch.from_numpy(member.unit)
        total.index_add_(0, unit, by_index[index])
    return total


def _first_order(weight: nn.Parameter) -> torch.Tensor:
    if weight.grad is None:
        return torch.zeros_like(weight)
    return (weight.detach() * weight.grad).abs()


def _has_scale(module: nn.Module | None) -> bool:
    return isinstance(module, _BatchNorm) and module.affine


L1 = Magnitude("l1", 1)

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (L1, Magnitude("l2", 2), Random(), BatchNormScale(), Taylor())
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

    The criterion works on a copy of `model`. Raises AutopruneError for a group that it left out,
    for scores of another shape, or for scores that are not finite.
    """
    found = criterion.scores(copy.deepcopy(model).to(scoring.device), couplings, scoring)
    checked = {}
    for group in (coupling.group for coupling in couplings):
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
    return checked
