"""Criteria that estimate what the loss on data does without a unit.

Axis legend: B = batch, n = a sample, u = units of a group.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoprune.domain.errors import AutopruneError, first_line
from autoprune.pruning.coupling import Coupling
from autoprune.pruning.criteria.masks import masked
from autoprune.pruning.criteria.protocol import Scores, Scoring, over_batches
from autoprune.pruning.criteria.weights import or_l1, unit_sums
from autoprune.pruning.isolation import derive
from autoprune.tasks.protocol import Task, device_of

PROBES = 4
"""Random vectors a batch for the Hessian's diagonal; each is one product, and every sample of the
batch has its own."""


@dataclass(frozen=True)
class Taylor:
    """First-order estimate of how much the loss changes without a unit: sum of abs(w dL/dw).

    Averaged over `scoring.batches` batches of the training split, in evaluation mode: Molchanov
    et al., Importance Estimation for Neural Network Pruning, CVPR 2019, summed over coupled
    layers as DepGraph does.
    """

    name: str = "taylor"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task or without data."""
        totals = {c.group.name: torch.zeros(c.group.size, dtype=torch.float64) for c in couplings}

        def step(task: Task, batch: Any) -> None:
            model.zero_grad()
            task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
            for coupling in couplings:
                totals[coupling.group.name] += unit_sums(model, coupling, _first_order)

        seen = over_batches(self.name, model, scoring, step, needs="loss")
        return {name: total / seen for name, total in totals.items()}


@dataclass(frozen=True)
class Fisher:
    """The unit's entry on the diagonal of the empirical Fisher information, halved.

    With m a factor on the unit in all layers that read it, and N samples in up to
    `scoring.batches` batches of train: sum over n of (dl_n/dm)^2 / 2N. Theis et al., Faster Gaze
    Prediction with Dense Networks and Fisher Pruning, 2018 (arXiv:1801.05787); one factor for all
    coupled layers is Liu et al., Group Fisher Pruning, ICML 2021. The loss is taken for a mean over
    samples; evaluation mode. A group that no convolution or linear layer reads falls back to L1.
    """

    name: str = "fisher"

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task or data, and where samples cannot
        be told apart.
        """
        total: dict[str, torch.Tensor] = {}
        samples: Counter[str] = Counter()

        def step(task: Task, batch: Any) -> None:
            loss = task.loss(model, batch)
            taken = masks.take()
            if not taken:
                return
            gradients = torch.autograd.grad(loss, _flat(taken), allow_unused=True)
            for name, found in _by_group(taken, gradients).items():
                for slope in found:  # of the mean over B samples: B times that of one
                    squares = (slope * len(slope)).double().square().sum(0).cpu()
                    total[name] = total.get(name, 0.0) + squares
                    samples[name] += len(slope)

        with masked(model, couplings, criterion=self.name) as masks:
            over_batches(self.name, model, scoring, step, needs="loss")
        found = {name: squares / (2 * samples[name]) for name, squares in total.items()}
        return or_l1(found, model, couplings)


@dataclass(frozen=True)
class Hessian:
    """Second-order estimate of how much the loss changes without a unit: abs(h) / 2.

    h is the second derivative of the loss by m, a factor on the unit in all layers that read it;
    LeCun et al., Optimal Brain Damage, NIPS 1990, whose parameters may be shared by connections
    as m is by the unit's. The gradient is left out, as there, because the network is trained; the
    sign, because it is a distance from that minimum. The diagonal is Hutchinson's estimate, the
    mean of z * Hz over vectors z of random signs with exact products Hz: `probes` for each sample
    of up to `scoring.batches` batches of train, in evaluation mode. It is exact where no two units
    act together. A group that no convolution or linear layer reads falls back to L1.
    """

    name: str = "hessian"
    probes: int = PROBES

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise AutopruneError(
                f"criterion {self.name!r} draws {self.probes} probes a batch; choose 1 or more"
            )

    def scores(self, model: nn.Module, couplings: Sequence[Coupling], scoring: Scoring) -> Scores:
        """See `Criterion`. Raises AutopruneError without a task or data, where samples cannot be
        told apart, and where the network or the loss has no second derivative.
        """
        total: dict[str, torch.Tensor] = {}
        device = device_of(model)
        generator = torch.Generator().manual_seed(derive(scoring.seed, 1))

        def step(task: Task, batch: Any) -> None:
            loss = task.loss(model, batch)
            taken = masks.take()
            if not taken:
                return
            flat = _flat(taken)
            slopes = torch.autograd.grad(
                loss, flat, create_graph=True, allow_unused=True, materialize_grads=True
            )
            for _ in range(self.probes):
                signs = [_signs(mask, generator).to(device) for mask in flat]
                bent = _product(slopes, signs, flat)
                for name, found in _by_group(taken, _times(signs, bent)).items():
                    for curvature in found:
                        total[name] = total.get(name, 0.0) + curvature.double().sum(0).cpu()

        # PyTorch's fused attention has no second derivative
        with (
            masked(model, couplings, criterion=self.name) as masks,
            sdpa_kernel(SDPBackend.MATH),
        ):
            seen = self._over_batches(model, scoring, step)
        found = {name: (h / (seen * self.probes)).abs() / 2 for name, h in total.items()}
        return or_l1(found, model, couplings)

    def _over_batches(self, model: nn.Module, scoring: Scoring, step: Any) -> int:
        try:
            return over_batches(self.name, model, scoring, step, needs="loss")
        except RuntimeError as error:
            if "derivative" not in str(error):
                raise
            raise AutopruneError(
                f"criterion {self.name!r} needs second derivatives, which {type(model).__name__} "
                f"or its loss does not have ({first_line(error)}); choose fisher or taylor"
            ) from error


Taken = Mapping[str, Sequence[torch.Tensor]]


def _flat(taken: Taken) -> list[torch.Tensor]:
    return [mask for masks in taken.values() for mask in masks]


def _by_group(taken: Taken, values: Sequence[torch.Tensor | None]) -> dict[str, list[torch.Tensor]]:
    """The inverse of `_flat`; without what the loss does not depend on."""
    rest = iter(values)
    pairs = {name: [next(rest) for _ in masks] for name, masks in taken.items()}
    return {name: [v for v in found if v is not None] for name, found in pairs.items()}


def _signs(mask: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randint(0, 2, mask.shape, generator=generator)
    return drawn.to(mask.dtype) * 2 - 1


def _product(
    slopes: Sequence[torch.Tensor], signs: Sequence[torch.Tensor], masks: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    """The Hessian times `signs`; zeros where the loss is linear in every mask."""
    along = [(g * z).sum() for g, z in zip(slopes, signs, strict=True) if g.requires_grad]
    if not along:
        return [torch.zeros_like(mask) for mask in masks]
    return torch.autograd.grad(
        torch.stack(along).sum(),
        masks,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )


def _times(
    left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    return [a * b for a, b in zip(left, right, strict=True)]


def _first_order(weight: nn.Parameter) -> torch.Tensor:
    if weight.grad is None:
        return torch.zeros_like(weight)
    return (weight.detach() * weight.grad).abs()
